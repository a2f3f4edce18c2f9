//! The command line of `moorline ssh`, where ssh's own options may stand before the device: rsync, scp, sftp and git put them there.
//!
//! ```text
//!   moorline ssh -x -l root --wait 5m lamp-1 -v uptime
//!                ^^^^^^^^^^           ^^^^^^ ^^^^^^^^^ ssh's; two dashes are moorline's, until the command begins
//! ```

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Command;

/// The subcommand.
const SSH: &str = "ssh";
/// The name under which the program is `moorline ssh`: `scp -S` and `sftp -S` take a program without arguments.
const SSH_PROGRAM: &str = "moorline-ssh";
/// Ends moorline's options for clap.
const END: &str = "--";
/// ssh's options that have an argument (`ssh.c` of OpenSSH 9.9).
const WITH_ARGUMENT: &[u8] = b"BDEFIJLOPQRSWbceilmopw";

/// Brings the words of `moorline ssh` into the order that `command` describes: moorline's options, the device, and what ssh gets. Other command
/// lines stay as they are.
pub(crate) fn sorted(command: &Command, words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    if words.first().is_some_and(|program| Path::new(program).file_name() == Some(OsStr::new(SSH_PROGRAM))) {
        words.insert(1, SSH.into());
    }
    let Some(at) = subcommand(command, &words).filter(|&at| words[at] == SSH) else { return words };
    let rest = words.split_off(at + 1);
    let Sorted { own, device, ssh } = Sorted::of(command, rest);
    words.extend(own);
    words.push(END.into());
    words.extend(device);
    words.extend(ssh);
    words
}

/// Where the first word is that is neither an option nor its value.
fn subcommand(command: &Command, words: &[OsString]) -> Option<usize> {
    let mut at = 1;
    while is_long_option(words.get(at)?) {
        at += if takes_next(command, &words[at]) { 2 } else { 1 };
    }
    Some(at)
}

#[derive(Default)]
struct Sorted {
    own: Vec<OsString>,
    device: Option<OsString>,
    ssh: Vec<OsString>,
}

impl Sorted {
    fn of(command: &Command, words: Vec<OsString>) -> Self {
        let mut sorted = Self::default();
        let mut words = words.into_iter().peekable();
        let mut options_end = false;
        while let Some(word) = words.next_if(|word| options_end || sorted.device.is_none() || is_option(word)) {
            let is_option = !options_end && is_option(&word);
            if word == END && !options_end {
                options_end = true;
            } else if !is_option && sorted.device.is_none() {
                sorted.device = Some(word);
            } else if !is_option {
                sorted.ssh.push(word);
            } else if is_long_option(&word) || word == "-h" {
                let value = takes_next(command, &word).then(|| words.next()).flatten();
                sorted.own.extend([Some(word), value].into_iter().flatten());
            } else {
                let argument = ssh_takes_next(&word).then(|| words.next()).flatten();
                sorted.ssh.extend([Some(word), argument].into_iter().flatten());
            }
        }
        sorted.ssh.extend(words);
        sorted
    }
}

fn is_option(word: &OsStr) -> bool {
    word.as_bytes().first() == Some(&b'-') && word.len() > 1
}

fn is_long_option(word: &OsStr) -> bool {
    word.as_bytes().starts_with(END.as_bytes()) && word != END
}

/// Whether moorline's option has a value, which is the next word.
fn takes_next(command: &Command, option: &OsStr) -> bool {
    let ssh = command.find_subcommand(SSH).into_iter().flat_map(Command::get_arguments);
    let mut named =
        command.get_arguments().chain(ssh).filter(|arg| arg.get_long().is_some_and(|long| option == format!("--{long}").as_str()));
    named.any(|arg| arg.get_action().takes_values())
}

/// Whether the last of these letters is an option of ssh with an argument, which is the next word. `-oName=value` has it already.
fn ssh_takes_next(letters: &OsStr) -> bool {
    let first = letters.as_bytes().iter().skip(1).position(|letter| WITH_ARGUMENT.contains(letter));
    first.is_some_and(|at| at + 2 == letters.len())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn sort(line: &str) -> String {
        let words = sorted(&Cli::command(), line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_of_both_may_stand_on_both_sides_of_the_device() {
        for (line, expected) in [
            ("moorline ssh lamp-1", "moorline ssh -- lamp-1"),
            ("moorline ssh -l root lamp-1 rsync --server .", "moorline ssh -- lamp-1 -l root rsync --server ."),
            ("moorline ssh -vi key -oA=b --wait 5m lamp-1 -t top -h", "moorline ssh --wait 5m -- lamp-1 -vi key -oA=b -t top -h"),
            ("moorline ssh lamp-1 --service admin -v ls --all", "moorline ssh --service admin -- lamp-1 -v ls --all"),
            ("moorline ssh lamp-1 -L 1:a:2 --timeline true", "moorline ssh --timeline -- lamp-1 -L 1:a:2 true"),
            ("moorline --profile ssh ssh --service=x lamp-1", "moorline --profile ssh ssh --service=x -- lamp-1"),
            ("moorline ssh -x -oRequestTTY=no -- lamp-1 sftp", "moorline ssh -- lamp-1 -x -oRequestTTY=no sftp"),
            ("moorline ssh lamp-1 -- -v ls --all", "moorline ssh -- lamp-1 -v ls --all"),
            ("/opt/bin/moorline-ssh -G lamp-1", "/opt/bin/moorline-ssh ssh -- lamp-1 -G"),
            ("moorline ssh -h", "moorline ssh -h --"),
            ("moorline ssh -i", "moorline ssh -- -i"),
        ] {
            assert_eq!(sort(line), expected, "{line}");
        }
    }

    #[test]
    fn other_command_lines_stay_as_they_are() {
        for line in ["moorline", "moorline connect lamp-1 ssh -v", "moorline --profile ssh", "moorline device show ssh", "moorline --help"]
        {
            assert_eq!(sort(line), line);
        }
    }
}
