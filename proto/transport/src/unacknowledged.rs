//! What the peer of a TCP connection has not acknowledged yet.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ`, which Linux defines as `TIOCOUTQ` in `asm-generic/ioctls.h`.
const SIOCOUTQ: Opcode = 0x5411;

/// Bytes that were written to a connection and that the peer's kernel has not acknowledged; its FIN counts as one (`man 7 tcp`). What was
/// acknowledged is in the peer's receive buffer, where only its program can lose it.
///
/// # Errors
/// The connection failed, for example because the peer reset it.
pub fn unacknowledged(tcp: impl AsFd) -> io::Result<usize> {
    // A reset empties the send queue, so the error counts first and last.
    let tcp = tcp.as_fd();
    let failed = || socket2::SockRef::from(&tcp).take_error()?.map_or(Ok(()), Err);
    failed()?;
    #[expect(unsafe_code, reason = "neither std nor rustix has a safe function for this question to the kernel")]
    // SAFETY: SIOCOUTQ writes one int to its argument (`net/ipv4/tcp.c`, `tcp_ioctl`), which is what `Getter` passes.
    let queued = unsafe { ioctl(tcp, Getter::<SIOCOUTQ, c_int>::new())? };
    failed()?;
    Ok(usize::try_from(queued).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_the_peer_has_is_acknowledged_and_what_does_not_fit_is_not() {
        let (mut near, mut far) = pair().await;
        let mut written = 0;
        while let Ok(count) = near.try_write(&[0; 64 * 1024]) {
            written += count;
        }
        assert!(unacknowledged(&near).unwrap() > 0, "nobody reads the {written} bytes");
        near.shutdown().await.unwrap();
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!((all.len(), unacknowledged(&near).unwrap()), (written, 0));
    }

    #[tokio::test]
    async fn a_reset_is_an_error_and_not_an_empty_queue() {
        let (mut near, far) = pair().await;
        near.write_all(b"never read").await.unwrap();
        far.readable().await.unwrap();
        drop(far);
        assert_eq!(unacknowledged(&near).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
