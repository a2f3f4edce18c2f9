//! `moorline ssh`: executes ssh with `moorline connect` as its ProxyCommand.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::cli::{Sources, Ssh};
use crate::exit::{Exit, Failure};

/// Replaces this process by ssh, whose exit code becomes this process's.
///
/// # Errors
/// ssh is not installed or cannot be started.
pub(crate) fn run(ssh: &Ssh, sources: &Sources) -> Result<Infallible, Failure> {
    let program =
        std::env::current_exe().map_err(|error| Failure::new(Exit::Failed, "cannot find this program's path for ssh").caused_by(&error))?;
    let error = Command::new("ssh").args(arguments(ssh, sources, &program)).exec();
    let failure = Failure::new(Exit::Failed, "cannot run ssh").caused_by(&error);
    Err(failure.next("install the OpenSSH client, or use `moorline forward` with another one"))
}

/// The arguments for ssh.
fn arguments(ssh: &Ssh, sources: &Sources, program: &Path) -> Vec<OsString> {
    let device = ssh.login.device.as_str();
    let mut proxy = OsString::from("ProxyCommand=");
    proxy.push(proxy_command(ssh, sources, program));
    // known_hosts has the device's key under its id, whatever host name the user's ssh configuration maps it to.
    let mut arguments = vec!["-o".into(), proxy, "-o".into(), format!("HostKeyAlias={device}").into()];
    arguments.push(match &ssh.login.user {
        Some(user) => format!("{user}@{device}").into(),
        None => device.into(),
    });
    arguments.extend(ssh.args.iter().cloned());
    arguments
}

/// The command line with which ssh's shell starts `moorline connect`. It contains no token: that is in the profile, file or environment.
fn proxy_command(ssh: &Ssh, sources: &Sources, program: &Path) -> OsString {
    let mut words = vec![program.as_os_str().to_owned()];
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    for (name, path) in [("--profile", &sources.profile), ("--token-file", &sources.token_file)] {
        if let Some(path) = path {
            option(name, std::path::absolute(path).unwrap_or_else(|_| path.clone()).into_os_string());
        }
    }
    words.extend(["connect".into(), "--for-ssh".into()]);
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    for (name, duration) in [("--wait", ssh.stream_args.wait), ("--deadline", ssh.stream_args.deadline)] {
        if let Some(duration) = duration {
            option(name, format!("{}s", duration.as_secs()).into());
        }
    }
    if let Some(reason) = &ssh.stream_args.reason {
        // One word, so that a reason that begins with a dash is not taken for an option.
        words.push(format!("--reason={reason}").into());
    }
    if ssh.stream_args.timeline {
        words.push("--timeline".into());
    }
    words.extend([ssh.login.device.as_str().into(), ssh.service.as_str().into()]);
    OsString::from_vec(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(&b' '))
}

/// Quotes a word for ssh's shell: in single quotes if necessary, `%` doubled because ssh expands `%h` and the like.
fn quoted(word: &OsStr) -> Vec<u8> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@".contains(byte);
    let bytes = word.as_bytes();
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return bytes.to_vec();
    }
    let mut out = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => out.extend(br"'\''"),
            b'%' => out.extend(b"%%"),
            other => out.push(*other),
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::cli::StreamArgs;

    fn ssh(login: &str) -> Ssh {
        Ssh { service: "ssh".parse().unwrap(), stream_args: StreamArgs::default(), login: login.parse().unwrap(), args: Vec::new() }
    }

    fn none() -> Sources {
        Sources { profile: None, token_file: None }
    }

    #[test]
    fn ssh_gets_the_proxy_command_and_the_device_id_as_host_key_alias() {
        let mut ssh_args = ssh("root@lamp-1");
        ssh_args.args = vec!["-v".into(), "uptime".into()];
        assert_eq!(
            arguments(&ssh_args, &none(), Path::new("/usr/bin/moorline")),
            [
                "-o",
                "ProxyCommand=/usr/bin/moorline connect --for-ssh lamp-1 ssh",
                "-o",
                "HostKeyAlias=lamp-1",
                "root@lamp-1",
                "-v",
                "uptime"
            ]
        );
    }

    #[test]
    fn moorline_options_are_passed_to_connect() {
        let mut ssh_args = ssh("lamp-1");
        ssh_args.stream_args = StreamArgs {
            wait: Some(Duration::from_secs(600)),
            deadline: Some(Duration::from_secs(5)),
            reason: Some(moorline_proto::text::Text::new("Bob's 50% job").unwrap()),
            timeline: true,
        };
        let sources = Sources { profile: Some("/etc/my profile".into()), token_file: Some("/run/token".into()) };
        assert_eq!(
            proxy_command(&ssh_args, &sources, Path::new("/opt/m")),
            r"/opt/m --profile '/etc/my profile' --token-file /run/token connect --for-ssh --wait 600s --deadline 5s '--reason=Bob'\''s 50%% job' --timeline lamp-1 ssh"
        );
    }

    #[test]
    fn a_relative_profile_is_made_absolute() {
        let sources = Sources { profile: Some(PathBuf::from("p.toml")), token_file: None };
        let here = std::env::current_dir().unwrap().join("p.toml");
        let proxy = proxy_command(&ssh("lamp-1"), &sources, Path::new("/m")).into_string().unwrap();
        assert!(proxy.contains(here.to_str().unwrap()), "{proxy}");
    }

    /// A real shell splits the words, after ssh has replaced `%%` by `%`.
    #[test]
    fn the_shell_reads_back_what_was_quoted() {
        for word in ["plain", "", "two words", "it's", "$HOME `id` \"x\" \\ ; & | < > * ?", "%h 100%", "line\nline", "-dash", "ü"] {
            let script = String::from_utf8(quoted(OsStr::new(word))).unwrap().replace("%%", "%");
            let out = Command::new("sh").arg("-c").arg(format!("printf '%s' {script}")).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
    }
}
