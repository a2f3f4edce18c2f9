//! Standard input and output of a program, as parents of many kinds give them: pipes, sockets, terminals, files.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, tcgetattr, tcsetattr};

/// What standard input and output are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two pipes.
    Pipes,
    /// Two socket pairs, as Node.js gives them.
    Sockets,
    /// One socket pair for both, as socat gives it.
    OneSocket,
    /// One TCP connection for both, as inetd and systemd give it.
    Tcp,
    /// A terminal in canonical mode, without echo.
    Terminal,
    /// Files.
    Files,
}

/// Both ends of the streams of one program.
#[derive(Debug)]
pub struct Streams {
    /// For the program.
    pub input: Stdio,
    /// For the program.
    pub output: Stdio,
    /// For the test.
    pub ours: Ours,
}

/// The test's end.
#[derive(Debug)]
pub struct Ours {
    kind: Kind,
    to_input: Option<File>,
    from_output: File,
}

impl Streams {
    /// Makes them. A file for input has the bytes `input` already; other kinds get them by [`Ours::send`].
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(kind: Kind, is_blocking: bool, folder: &Path, input: &[u8]) -> io::Result<Self> {
        let (theirs, ours) = match kind {
            Kind::Pipes => {
                let ((input, to_input), (from_output, output)) = (io::pipe()?, io::pipe()?);
                let theirs: [OwnedFd; 2] = [input.into(), output.into()];
                (theirs, [OwnedFd::from(to_input), from_output.into()])
            }
            Kind::Sockets => {
                let ((input, to_input), (output, from_output)) = (UnixStream::pair()?, UnixStream::pair()?);
                ([input.into(), output.into()], [to_input.into(), from_output.into()])
            }
            Kind::OneSocket => {
                let (theirs, ours) = UnixStream::pair()?;
                twice(theirs.into(), ours.into())?
            }
            Kind::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let ours = TcpStream::connect(listener.local_addr()?)?;
                twice(listener.accept()?.0.into(), ours.into())?
            }
            Kind::Terminal => {
                let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
                twice(terminal_of(&ours)?, ours)?
            }
            Kind::Files => {
                let (from, to) = (folder.join("input"), folder.join("output"));
                std::fs::write(&from, input)?;
                let output = File::create(&to)?;
                ([File::open(&from)?.into(), output.into()], [File::open("/dev/null")?.into(), File::open(&to)?.into()])
            }
        };
        for descriptor in &theirs {
            rustix::io::ioctl_fionbio(descriptor, !is_blocking)?;
        }
        let ([input, output], [to_input, from_output]) = (theirs, ours);
        let ours = Ours { kind, to_input: Some(to_input.into()), from_output: from_output.into() };
        Ok(Self { input: input.into(), output: output.into(), ours })
    }
}

fn twice(theirs: OwnedFd, ours: OwnedFd) -> io::Result<([OwnedFd; 2], [OwnedFd; 2])> {
    Ok(([theirs.try_clone()?, theirs], [ours.try_clone()?, ours]))
}

/// The program's end of a terminal: no echo, and output as it was written.
fn terminal_of(ours: &OwnedFd) -> io::Result<OwnedFd> {
    grantpt(ours)?;
    unlockpt(ours)?;
    let name = ptsname(ours, Vec::new())?;
    let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut modes = tcgetattr(&terminal)?;
    modes.local_modes.remove(LocalModes::ECHO);
    modes.output_modes.remove(OutputModes::OPOST);
    tcsetattr(&terminal, OptionalActions::Now, &modes)?;
    Ok(terminal)
}

impl Ours {
    /// Sends bytes to the program's standard input, and ends it. A terminal gets lines.
    ///
    /// # Errors
    /// The program reads no more.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        const END_OF_TRANSMISSION: u8 = 4;
        let Some(mut to_input) = self.to_input.take().filter(|_| self.kind != Kind::Files) else { return Ok(()) };
        to_input.write_all(bytes)?;
        match self.kind {
            Kind::Terminal => to_input.write_all(&[END_OF_TRANSMISSION]),
            Kind::OneSocket | Kind::Tcp => socket2::SockRef::from(&to_input.as_fd()).shutdown(Shutdown::Write),
            Kind::Pipes | Kind::Sockets | Kind::Files => Ok(()),
        }
    }

    /// Types at a terminal.
    ///
    /// # Errors
    /// The operating system's.
    pub fn type_keys(&mut self, keys: &[u8]) -> io::Result<()> {
        self.to_input.as_mut().map_or(Ok(()), |to_input| to_input.write_all(keys))
    }

    /// Reads `count` bytes of the program's standard output, and its end where the kind has one. A file is read as it is: call it when the program
    /// has ended.
    ///
    /// # Errors
    /// The operating system's, and an output that goes on behind `count` bytes.
    pub fn receive(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.from_output.read_exact(&mut bytes)?;
        let more = if self.kind == Kind::Terminal { 0 } else { self.from_output.read(&mut [0])? };
        if more == 0 { Ok(bytes) } else { Err(io::Error::other("the output goes on")) }
    }
}
