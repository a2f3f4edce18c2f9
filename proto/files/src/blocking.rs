//! A descriptor that was inherited, such as standard output: read and written in full, whether or not whoever opened it made it non-blocking.
//!
//! `O_NONBLOCK` belongs to the open file, which the parent and its other children use too, so it is not cleared. Where a read or a write would
//! block, its readiness is waited for.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Reads and writes a descriptor without a buffer, and blocks for as long as it takes. Signals do not interrupt it.
#[derive(Debug)]
pub struct Blocking<F>(
    /// The descriptor.
    pub F,
);

impl<F: AsFd> Blocking<F> {
    /// Repeats a system call until it neither would block nor was interrupted.
    fn complete(&self, flags: PollFlags, mut call: impl FnMut(&F) -> rustix::io::Result<usize>) -> io::Result<usize> {
        loop {
            match call(&self.0) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&self.0, flags)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<F: AsFd> Read for Blocking<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.complete(PollFlags::IN, |descriptor| rustix::io::read(descriptor, &mut *buffer))
    }
}

impl<F: AsFd> Write for Blocking<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.complete(PollFlags::OUT, |descriptor| rustix::io::write(descriptor, bytes))
    }

    /// There is no buffer.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::io::ioctl_fionbio;
    use rustix::pipe::pipe;

    use super::*;

    const SIZE: usize = 1 << 20;

    #[test]
    fn a_pipe_that_does_not_block_takes_and_gives_everything() {
        for (reads_block, writes_block) in [(true, false), (false, true), (false, false)] {
            let (from, to) = pipe().unwrap();
            ioctl_fionbio(&from, !reads_block).unwrap();
            ioctl_fionbio(&to, !writes_block).unwrap();
            let sent: Vec<u8> = (0..=250_u8).cycle().take(SIZE).collect();
            let copy = sent.clone();
            let writer = thread::spawn(move || Blocking(to).write_all(&copy));
            let mut received = Vec::new();
            Blocking(from).read_to_end(&mut received).unwrap();
            writer.join().unwrap().unwrap();
            assert!(received == sent, "reads block: {reads_block}, writes block: {writes_block}");
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error() {
        let (from, to) = pipe().unwrap();
        ioctl_fionbio(&to, true).unwrap();
        let writer = thread::spawn(move || Blocking(to).write_all(&vec![0; SIZE]));
        let mut first = [0; 1];
        Blocking(&from).read_exact(&mut first).unwrap();
        drop(from); // while the writer waits, or before its next write
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
