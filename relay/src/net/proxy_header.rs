//! The PROXY protocol header, versions 1 and 2, with which a load balancer names the client: read to its last byte and not beyond.
//!
//! <https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>

use std::io;
use std::net::IpAddr;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::net::client_address::TrustedProxies;

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes behind the signature: version and command, family, and the length in two bytes.
const FIXED_BYTES: usize = 4;
/// The first byte behind the signature where the load balancer connects for itself, as in health checks. The rest is to be ignored then.
const LOCAL: u8 = 0x20;
/// Bytes behind the fixed part of version 2 that are accepted: addresses take 36, extensions (TLS, names, ids) rarely more than 200.
const LENGTH_MAX: usize = 536;
/// The first bytes of version 1.
const WORD: &[u8] = b"PROXY ";
/// The longest line of version 1, CRLF included.
const LINE_MAX: usize = 107;

/// Why there is no PROXY header to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The peer is not a trusted proxy.
    #[error("the peer is not in trusted_proxies")]
    Untrusted,
    /// The connection ended within the header.
    #[error("no PROXY header came: {0}")]
    Lost(#[from] io::Error),
    /// The connection begins with something else.
    #[error("it does not begin with a PROXY header")]
    Missing,
    /// The header is longer than any that load balancers send.
    #[error("its PROXY header is too long")]
    TooLong,
    /// The header breaks the rules of the PROXY protocol.
    #[error("its PROXY header is malformed")]
    Malformed,
}

/// Reads the header and returns the client's address; the load balancer's own where it connects for itself or does not know.
///
/// # Errors
/// [`ProxyHeaderError`]: drop the connection.
///
/// # Cancel safety
/// Not cancel safe: bytes may be lost. Drop the connection then.
pub async fn read_proxy_header<R>(connection: &mut R, peer: IpAddr, trusted: &TrustedProxies) -> Result<IpAddr, ProxyHeaderError>
where
    R: AsyncRead + Unpin,
{
    if !trusted.contains(peer) {
        return Err(ProxyHeaderError::Untrusted);
    }
    let header = read(connection).await?;
    if header.starts_with(SIGNATURE) && header.get(SIGNATURE.len()) == Some(&LOCAL) {
        return Ok(peer);
    }
    let (header, _) = ProxyHeader::parse(&header, ParseConfig::default()).map_err(|_| ProxyHeaderError::Malformed)?;
    match header.proxied_address() {
        None => Ok(peer),
        Some(addresses) if addresses.protocol == Protocol::Stream => Ok(addresses.source.ip().to_canonical()),
        Some(_) => Err(ProxyHeaderError::Malformed),
    }
}

/// Reads the bytes of one header, and none behind it.
async fn read(connection: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ProxyHeaderError> {
    let mut header = vec![0; SIGNATURE.len()];
    connection.read_exact(&mut header).await?;
    if header == SIGNATURE {
        let mut fixed = [0; FIXED_BYTES];
        connection.read_exact(&mut fixed).await?;
        header.extend_from_slice(&fixed);
        let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if length > LENGTH_MAX {
            return Err(ProxyHeaderError::TooLong);
        }
        let start = header.len();
        header.resize(start + length, 0);
        connection.read_exact(&mut header[start..]).await?;
    } else if header.starts_with(WORD) {
        while !header.ends_with(b"\n") {
            if header.len() == LINE_MAX {
                return Err(ProxyHeaderError::TooLong);
            }
            header.push(connection.read_u8().await?);
        }
    } else {
        return Err(ProxyHeaderError::Missing);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::client_address::network;

    /// The client's address from a load balancer at 10.0.0.1 that sends this, and the bytes after the header.
    async fn client_of(sent: &[u8]) -> (Result<IpAddr, ProxyHeaderError>, Vec<u8>) {
        let trusted = TrustedProxies::new(vec![network("10.0.0.0/8").unwrap()]);
        let mut connection = sent;
        let client = read_proxy_header(&mut connection, "10.0.0.1".parse().unwrap(), &trusted).await;
        (client, connection.to_vec())
    }

    async fn client(sent: &[u8]) -> String {
        let (client, left) = client_of(&[sent, b"TLS"].concat()).await;
        assert_eq!(left, b"TLS", "the bytes after the header are not consumed");
        client.unwrap().to_string()
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    const TCP4: &[u8] = &[198, 51, 100, 7, 10, 0, 0, 9, 0x12, 0x34, 1, 187];

    #[tokio::test]
    async fn both_versions_name_the_client() {
        assert_eq!(client(&v2(0x21, 0x11, TCP4)).await, "198.51.100.7");
        let notes = [TCP4, &[0x02, 0, 3, b'a', b'b', b'c'], &[0xff; 40]].concat();
        assert_eq!(
            client(&v2(0x21, 0x11, &notes)).await,
            "198.51.100.7",
            "with additional fields after the addresses, even malformed ones"
        );
        let mut tcp6 = [0; 36];
        tcp6[..16].copy_from_slice(&"2a00::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(client(&v2(0x21, 0x21, &tcp6)).await, "2a00::7");
        tcp6[..16].copy_from_slice(&"::ffff:198.51.100.7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(client(&v2(0x21, 0x21, &tcp6)).await, "198.51.100.7", "in IPv4's own form");
        assert_eq!(client(b"PROXY TCP4 198.51.100.7 10.0.0.9 4660 443\r\n").await, "198.51.100.7");
        assert_eq!(client(b"PROXY TCP6 2a00::7 2a00::9 4660 443\r\n").await, "2a00::7");
    }

    #[tokio::test]
    async fn a_connection_of_the_load_balancer_itself_has_its_own_address() {
        assert_eq!(client(&v2(0x20, 0x00, &[])).await, "10.0.0.1");
        assert_eq!(client(&v2(0x20, 0x11, TCP4)).await, "10.0.0.1", "LOCAL: the addresses are ignored");
        assert_eq!(client(&v2(0x20, 0x11, &[])).await, "10.0.0.1", "the addresses may be missing");
        assert_eq!(client(&v2(0x21, 0x00, &[])).await, "10.0.0.1", "an unknown family");
        assert_eq!(client(b"PROXY UNKNOWN\r\n").await, "10.0.0.1");
        assert_eq!(client(b"PROXY UNKNOWN what ever\r\n").await, "10.0.0.1");
    }

    #[tokio::test]
    async fn everything_else_is_rejected() {
        let long = u16::try_from(LENGTH_MAX + 1).unwrap().to_be_bytes();
        for (input, error) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "it does not begin with a PROXY header"),
            (&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0], "it does not begin with a PROXY header"),
            (&[&SIGNATURE[..], &[0x21, 0x11], &long, &[0; 1000]].concat(), "its PROXY header is too long"),
            (&[WORD, &[b'x'; 200]].concat(), "its PROXY header is too long"),
            (&v2(0x31, 0x11, TCP4), "its PROXY header is malformed"),
            (&v2(0x22, 0x11, TCP4), "its PROXY header is malformed"),
            (&v2(0x21, 0x11, &TCP4[..11]), "its PROXY header is malformed"),
            (&v2(0x21, 0x12, TCP4), "its PROXY header is malformed"),
            (&v2(0x21, 0x41, TCP4), "its PROXY header is malformed"),
            (b"PROXY ABCDEFGH\n", "its PROXY header is malformed"),
            (b"PROXY ABCDE\n", "its PROXY header is malformed"),
            (b"PROXY TCP4 198.51.100.300 10.0.0.9 4660 443\r\n", "its PROXY header is malformed"),
            (b"PROXY TCP4 198.51.100.7 10.0.0.9 4660 443\n", "its PROXY header is malformed"),
            (b"", "no PROXY header came: early eof"),
            (&v2(0x21, 0x11, TCP4)[..20], "no PROXY header came: early eof"),
        ] {
            assert_eq!(client_of(input).await.0.unwrap_err().to_string(), error, "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[tokio::test]
    async fn other_peers_are_not_trusted() {
        let trusted = TrustedProxies::new(vec![network("10.0.0.0/8").unwrap()]);
        let header = v2(0x21, 0x11, TCP4);
        let mut connection = &header[..];
        let client = read_proxy_header(&mut connection, "11.0.0.1".parse().unwrap(), &trusted).await;
        assert!(matches!(client, Err(ProxyHeaderError::Untrusted)) && connection.len() == header.len(), "and the header is not read");
    }
}
