//! `moorline ssh`: hands over to ssh, which comes back through `moorline connect` as its ProxyCommand.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::cli::{Sources, Ssh};
use crate::exit::{Exit, Failure};

/// Becomes ssh; its exit code is then this process's.
///
/// # Errors
/// There is no ssh here, or it does not start.
pub(crate) fn run(ssh: &Ssh, sources: &Sources) -> Result<Infallible, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Failed, "cannot find the path of this program for ssh").caused_by(&error))?;
    let error = Command::new("ssh").args(arguments(ssh, sources, &program)).exec();
    let failure = Failure::new(Exit::Failed, "cannot run ssh").caused_by(&error);
    Err(failure.next("install the OpenSSH client, or use `moorline forward` with another one"))
}

/// What ssh is given.
fn arguments(ssh: &Ssh, sources: &Sources, program: &Path) -> Vec<OsString> {
    let device = ssh.login.device.as_str();
    let mut proxy = OsString::from("ProxyCommand=");
    proxy.push(proxy_command(ssh, sources, program));
    // The device's key is known under its id, whatever host name the user's own configuration makes of it.
    let mut arguments = vec!["-o".into(), proxy, "-o".into(), format!("HostKeyAlias={device}").into()];
    arguments.push(match &ssh.login.user {
        Some(user) => format!("{user}@{device}").into(),
        None => device.into(),
    });
    arguments.extend(ssh.args.iter().cloned());
    arguments
}

/// The command by which ssh's shell starts `moorline connect`. The token is not in it: the profile, the token file or the environment is.
fn proxy_command(ssh: &Ssh, sources: &Sources, program: &Path) -> OsString {
    let mut words = vec![program.as_os_str().to_owned()];
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    for (name, path) in [("--profile", &sources.profile), ("--token-file", &sources.token_file)] {
        if let Some(path) = path {
            option(name, std::path::absolute(path).unwrap_or_else(|_| path.clone()).into_os_string());
        }
    }
    words.push("connect".into());
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    for (name, duration) in [("--wait", ssh.stream_args.wait), ("--deadline", ssh.stream_args.deadline)] {
        if let Some(duration) = duration {
            option(name, format!("{}s", duration.as_secs()).into());
        }
    }
    if let Some(reason) = &ssh.stream_args.reason {
        // One word, so that a reason that begins with a dash is no option.
        words.push(format!("--reason={reason}").into());
    }
    words.extend([ssh.login.device.as_str().into(), ssh.service.as_str().into()]);
    OsString::from_vec(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(&b' '))
}

/// A word as the shell behind ssh reads it: in single quotes where it needs them, `%` doubled because ssh replaces `%h` and the like.
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
    fn ssh_is_given_the_proxy_command_and_the_devices_own_name() {
        let mut ssh_args = ssh("root@lamp-1");
        ssh_args.args = vec!["-v".into(), "uptime".into()];
        assert_eq!(
            arguments(&ssh_args, &none(), Path::new("/usr/bin/moorline")),
            ["-o", "ProxyCommand=/usr/bin/moorline connect lamp-1 ssh", "-o", "HostKeyAlias=lamp-1", "root@lamp-1", "-v", "uptime"]
        );
    }

    #[test]
    fn options_of_ours_go_on_to_connect() {
        let mut ssh_args = ssh("lamp-1");
        ssh_args.stream_args = StreamArgs {
            wait: Some(Duration::from_secs(600)),
            deadline: Some(Duration::from_secs(5)),
            reason: Some(moorline_proto::text::Text::new("Bob's 50% job").unwrap()),
        };
        let sources = Sources { profile: Some("/etc/my profile".into()), token_file: Some("/run/token".into()) };
        assert_eq!(
            proxy_command(&ssh_args, &sources, Path::new("/opt/m")),
            r"/opt/m --profile '/etc/my profile' --token-file /run/token connect --wait 600s --deadline 5s '--reason=Bob'\''s 50%% job' lamp-1 ssh"
        );
    }

    #[test]
    fn a_relative_profile_is_made_absolute() {
        let sources = Sources { profile: Some(PathBuf::from("p.toml")), token_file: None };
        let here = std::env::current_dir().unwrap().join("p.toml");
        let proxy = proxy_command(&ssh("lamp-1"), &sources, Path::new("/m")).into_string().unwrap();
        assert!(proxy.contains(here.to_str().unwrap()), "{proxy}");
    }

    /// The real shell takes the words apart again, after ssh has halved the percent signs.
    #[test]
    fn the_shell_reads_back_what_was_quoted() {
        for word in ["plain", "", "two words", "it's", "$HOME `id` \"x\" \\ ; & | < > * ?", "%h 100%", "line\nline", "-dash", "ü"] {
            let script = String::from_utf8(quoted(OsStr::new(word))).unwrap().replace("%%", "%");
            let out = Command::new("sh").arg("-c").arg(format!("printf '%s' {script}")).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
    }
}
