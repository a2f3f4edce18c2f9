//! Standard input and output as one connection, so that a stream can be bridged with them as with a socket.
//!
//! ```text
//!   fd 0 ── thread ──▶ queue ──▶ poll_read        a read that never returns blocks neither a task nor the exit
//!   fd 1 ◀── thread ◀── queue ◀── poll_write      [`OutputDone`] completes when everything is written
//! ```
//!
//! tokio's `Stdin` and `Stdout` do not fit: shutting down the output leaves the descriptor open, so the reader never sees EOF, and a write
//! that is under way when the process exits is lost.

use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use bytes::{Buf, Bytes};
use moorline::LocalSide;
use moorline_files::Blocking;
use moorline_transport::unacknowledged;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::net::{AddressFamily, Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;

/// The size of one read: the largest message of a leg.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks queued per direction. More would only hide a slow local side from the far side.
const QUEUED_CHUNKS: usize = 4;

/// Reads standard input and writes standard output. Shutting it down closes standard output, so that its reader sees EOF.
#[derive(Debug)]
pub(crate) struct Stdio {
    input: mpsc::Receiver<io::Result<Bytes>>,
    pending: Bytes,
    output: PollSender<Bytes>,
    written: Written,
    socket: Option<OneSocket>,
    /// Whether the output was shut down, and not just dropped.
    is_shut_down: Arc<AtomicBool>,
}

/// How the thread that writes has ended.
#[derive(Debug)]
enum Written {
    NotYet(oneshot::Receiver<Result<(), io::ErrorKind>>),
    Done(Result<(), io::ErrorKind>),
}

impl Written {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), io::ErrorKind>> {
        if let Self::NotYet(written) = self {
            *self = Self::Done(ready!(Pin::new(written).poll(cx)).unwrap_or(Err(io::ErrorKind::BrokenPipe)));
        }
        match self {
            Self::NotYet(_) => Poll::Pending,
            Self::Done(written) => Poll::Ready(*written),
        }
    }
}

/// Completes when everything written to a [`Stdio`] has reached standard output, or cannot any more.
#[derive(Debug)]
#[must_use = "what is still in the queue is lost when the process ends"]
pub(crate) struct OutputDone(oneshot::Receiver<io::Result<()>>);

impl OutputDone {
    /// Waits for it. The [`Stdio`] must have been dropped or shut down.
    ///
    /// # Errors
    /// Why standard output took no more: the reader has closed the pipe, or the disk is full.
    pub(crate) async fn wait(self) -> io::Result<()> {
        self.0.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes is gone")))
    }
}

impl Stdio {
    /// Starts the two threads.
    ///
    /// # Errors
    /// A thread could not be started.
    pub(crate) fn take() -> io::Result<(Self, OutputDone)> {
        let socket = OneSocket::find();
        let (input_end, input) = mpsc::channel(QUEUED_CHUNKS);
        let (output, output_end) = mpsc::channel(QUEUED_CHUNKS);
        let (done, written) = oneshot::channel();
        let (confirm, is_written) = oneshot::channel();
        let is_shut_down = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&is_shut_down);
        // The first ends with the process or when the receiver is dropped, the second when the sender is.
        thread::Builder::new().name("stdin".to_owned()).spawn(move || read_all(&input_end))?;
        thread::Builder::new().name("stdout".to_owned()).spawn(move || {
            let written = write_all(output_end).and_then(|()| close(socket.filter(|_| end.load(Ordering::Acquire))));
            confirm.send(written.as_ref().map(drop).map_err(io::Error::kind)).ok(); // nobody waits for it after a reset
            drop(done.send(written)); // nobody waits when the process was told to exit
        })?;
        let (output, is_written) = (PollSender::new(output), Written::NotYet(is_written));
        Ok((Self { input, pending: Bytes::new(), output, written: is_written, socket, is_shut_down }, OutputDone(written)))
    }
}

/// Whether the program at the other end of standard input has ended its direction, although not everything may have been read yet. A file and
/// /dev/null have nobody at the other end.
pub(crate) fn has_input_ended() -> bool {
    let (stdin, ended) = (io::stdin(), PollFlags::HUP | PollFlags::RDHUP);
    let mut input = [PollFd::new(&stdin, ended)];
    poll(&mut input, Some(&Timespec::default())).is_ok() && input[0].revents().intersects(ended)
}

fn read_all(input: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let chunk = match Blocking(io::stdin()).read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) => Err(error),
        };
        let is_last = chunk.is_err();
        if input.blocking_send(chunk).is_err() || is_last {
            return;
        }
    }
}

fn write_all(mut output: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(chunk) = output.blocking_recv() {
        Blocking(io::stdout()).write_all(&chunk)?; // after an error, writers find the queue closed
    }
    Ok(())
}

/// Closes standard output. If it is a socket that standard input keeps open, only a shutdown ends its direction.
fn close(ended: Option<OneSocket>) -> io::Result<()> {
    if ended.is_some() {
        shutdown(io::stdout(), Shutdown::Write)?;
    }
    // The reader waits for the descriptor to be closed: ssh exits when its ProxyCommand's output does.
    let null = File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

/// Standard input and output are the same socket: what inetd, systemd's `StandardInput=socket` and socat's EXEC give to a program. Closing one
/// of the two descriptors ends nothing then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OneSocket {
    Tcp,
    Other,
}

impl OneSocket {
    fn find() -> Option<Self> {
        let (input, output) = (fstat(io::stdin()).ok()?, fstat(io::stdout()).ok()?);
        if FileType::from_raw_mode(output.st_mode) != FileType::Socket || (input.st_dev, input.st_ino) != (output.st_dev, output.st_ino) {
            return None;
        }
        let family = sockopt::socket_domain(io::stdin()).ok()?;
        Some(if [AddressFamily::INET, AddressFamily::INET6].contains(&family) { Self::Tcp } else { Self::Other })
    }
}

/// How the socket of standard input is closed, if it is one: zero is a reset of a TCP connection.
fn set_linger(linger: Option<Duration>) {
    if let Err(error) = sockopt::set_socket_linger(io::stdin(), linger) {
        tracing::debug!(%error, "cannot set how standard input's socket is closed");
    }
}

impl AsyncRead for Stdio {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.pending.is_empty() {
            match ready!(self.input.poll_recv(cx)) {
                Some(chunk) => self.pending = chunk?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.pending.len().min(buffer.remaining());
        buffer.put_slice(&self.pending[..count]);
        self.pending.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(CHUNK_BYTES);
        let is_open = ready!(self.output.poll_reserve(cx)).is_ok();
        if is_open && self.output.send_item(Bytes::copy_from_slice(&bytes[..count])).is_ok() {
            return Poll::Ready(Ok(count));
        }
        // The thread has ended, and says why.
        let error = ready!(self.written.poll(cx)).err().unwrap_or(io::ErrorKind::BrokenPipe);
        Poll::Ready(Err(error.into()))
    }

    /// The thread writes as soon as it can.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ready once everything has reached standard output, so that the far side learns no sooner that it was delivered.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut_down.store(true, Ordering::Release);
        self.output.close();
        self.written.poll(cx).map_err(io::Error::from)
    }
}

/// A pipe cannot show that it was cut. The exit code does, and a TCP socket.
impl LocalSide for Stdio {
    fn reset_on_drop(&self) {
        if self.socket == Some(OneSocket::Tcp) {
            set_linger(Some(Duration::ZERO));
        }
    }

    fn end_on_drop(&self) {
        if self.socket == Some(OneSocket::Tcp) {
            set_linger(None);
        }
    }

    fn unacknowledged(&self) -> io::Result<usize> {
        match self.socket {
            Some(OneSocket::Tcp) => unacknowledged(io::stdin()),
            Some(OneSocket::Other) => Ok(sockopt::socket_error(io::stdin())?.map(|()| 0)?),
            None => Ok(0),
        }
    }

    fn is_socket(&self) -> bool {
        self.socket.is_some()
    }
}
