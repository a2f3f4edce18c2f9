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
use std::task::{Context, Poll, ready};
use std::thread;

use bytes::{Buf, Bytes};
use moorline::LocalSide;
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
    /// Ready once everything is written, or with the error's kind.
    is_written: oneshot::Receiver<Result<(), io::ErrorKind>>,
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
        let (input_end, input) = mpsc::channel(QUEUED_CHUNKS);
        let (output, output_end) = mpsc::channel(QUEUED_CHUNKS);
        let (done, written) = oneshot::channel();
        let (confirm, is_written) = oneshot::channel();
        // The first ends with the process or when the receiver is dropped, the second when the sender is.
        thread::Builder::new().name("stdin".to_owned()).spawn(move || read_all(&input_end))?;
        thread::Builder::new().name("stdout".to_owned()).spawn(move || {
            let written = write_all(output_end);
            confirm.send(written.as_ref().map(drop).map_err(io::Error::kind)).ok(); // nobody waits for it after a reset
            drop(done.send(written)); // nobody waits when the process was told to exit
        })?;
        Ok((Self { input, pending: Bytes::new(), output: PollSender::new(output), is_written }, OutputDone(written)))
    }
}

fn read_all(input: &mpsc::Sender<io::Result<Bytes>>) {
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let chunk = match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let is_last = chunk.is_err();
        if input.blocking_send(chunk).is_err() || is_last {
            return;
        }
    }
}

fn write_all(mut output: mpsc::Receiver<Bytes>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    while let Some(chunk) = output.blocking_recv() {
        stdout.write_all(&chunk)?; // after an error, writers find the queue closed
        stdout.flush()?;
    }
    // The reader waits for the descriptor to be closed: ssh exits when its ProxyCommand's output does.
    let null = File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
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
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.output.poll_reserve(cx)).map_err(gone)?;
        let count = bytes.len().min(CHUNK_BYTES);
        self.output.send_item(Bytes::copy_from_slice(&bytes[..count])).map_err(gone)?;
        Poll::Ready(Ok(count))
    }

    /// The thread writes as soon as it can.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ready once everything has reached standard output, so that the far side learns no sooner that it was delivered.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.close();
        let written = ready!(Pin::new(&mut self.is_written).poll(cx));
        Poll::Ready(written.unwrap_or(Err(io::ErrorKind::BrokenPipe)).map_err(io::Error::from))
    }
}

/// A pipe cannot show that it was cut. The exit code does.
impl LocalSide for Stdio {}
