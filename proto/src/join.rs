//! A relay's address, and the join string that carries the address together with the CA to trust.
//!
//! ```text
//! relay-url   = ( "https://" / "wss://" ) host [ ":" port ] [ "/" ]       port 443 where none is given
//! join-string = relay-url [ "#ca=" base64url-without-padding(DER of the CA certificate) ]
//! ```
//!
//! A join string is not a secret. It must come from a trusted source, because it decides which CA is trusted.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::certificate::{self, CertificateError};
use crate::text::{QUOTED_CHARS, printable};

/// A relay's address: scheme, host and port, always with TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelayUrl {
    host: String,
    port: u16,
}

/// Why text is not a relay's address, or not a join string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayUrlError {
    /// It does not begin with `https://` or `wss://`.
    #[error("a relay's address begins with https:// (or wss://)")]
    Scheme,
    /// It has more than a host and a port.
    #[error("a relay's address is https://host:port, without user, path or query")]
    Extra,
    /// Neither a host name nor an IP address.
    #[error("\"{0}\" is neither a host name nor an IP address")]
    Host(String),
    /// Not a port number.
    #[error("\"{0}\" is not a port from 1 to 65535")]
    Port(String),
    /// The fragment is not `ca=` and base64url.
    #[error("'#' must be followed by ca= and the CA certificate in base64url without padding")]
    Ca,
    /// The fragment is base64url, but not a certificate: the line was truncated, or something else was pasted.
    #[error("what follows '#ca=' is not a CA certificate; copy the whole line")]
    Certificate(#[source] CertificateError),
}

impl RelayUrl {
    /// The host, as used in a proof's `aud` and in TLS: lower case, without port, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as in a `Host` header: IPv6 in brackets, no port where it is 443.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }

    /// Resolves a URL that the relay sent: a path, or an absolute URL on this host or below the domain `suffix`.
    ///
    /// # Errors
    /// [`ForeignUrl`]: another host, no TLS, or not a URL.
    pub fn resolve(&self, handed_out: &str, suffix: Option<&str>) -> Result<(Self, String), ForeignUrl> {
        let foreign = || ForeignUrl(printable(handed_out, QUOTED_CHARS));
        if !handed_out.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(foreign());
        }
        if handed_out.starts_with('/') && !handed_out.starts_with("//") {
            return Ok((self.clone(), handed_out.to_owned()));
        }
        let rest = handed_out.strip_prefix("https://").or_else(|| handed_out.strip_prefix("wss://")).ok_or_else(foreign)?;
        let at = rest.find('/').ok_or_else(foreign)?;
        let url: Self = format!("https://{}", &rest[..at]).parse().map_err(|_| foreign())?;
        let below = |suffix: &str| {
            let suffix = suffix.trim_start_matches('.').to_ascii_lowercase();
            !suffix.is_empty() && (url.host == suffix || url.host.strip_suffix(&suffix).is_some_and(|front| front.ends_with('.')))
        };
        if url.host == self.host || suffix.is_some_and(below) { Ok((url, rest[at..].to_owned())) } else { Err(foreign()) }
    }
}

/// The relay sent a URL that must not be dialled. A compromised relay must not be able to send devices into their own networks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay sent the URL \"{0}\", which is neither a path nor on the host that was dialled")]
pub struct ForeignUrl(pub String);

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        label.len() <= 63 && edge(label.bytes().next()) && edge(label.bytes().next_back()) && label.bytes().all(inside)
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Digits alone: `u16::from_str` accepts a sign, too.
fn port_number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port > 0)
}

impl FromStr for RelayUrl {
    type Err = RelayUrlError;

    fn from_str(text: &str) -> Result<Self, RelayUrlError> {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("wss://")).ok_or(RelayUrlError::Scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(RelayUrlError::Extra);
        }
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| RelayUrlError::Port(printable(port, QUOTED_CHARS)))?)),
            None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None => 443,
            Some(text) => port_number(text).ok_or_else(|| RelayUrlError::Port(printable(text, QUOTED_CHARS)))?,
        };
        let is_v6 = rest.starts_with('[');
        let host = match host.parse::<IpAddr>() {
            Ok(address) if address.is_ipv6() == is_v6 => address.to_string(),
            Err(_) if !is_v6 && is_host_name(host) => host.to_ascii_lowercase(),
            Ok(_) | Err(_) => return Err(RelayUrlError::Host(printable(host, QUOTED_CHARS))),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl TryFrom<String> for RelayUrl {
    type Error = RelayUrlError;

    fn try_from(text: String) -> Result<Self, RelayUrlError> {
        text.parse()
    }
}

impl From<RelayUrl> for String {
    fn from(url: RelayUrl) -> Self {
        url.to_string()
    }
}

/// What agents and callers need to reach a relay and to authenticate it, as one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The relay's address.
    pub url: RelayUrl,
    /// The only CA certificate to trust, in DER; without it the system's trust store is used. Checked with [`certificate::check`] when it
    /// is parsed.
    pub ca: Option<Vec<u8>>,
}

impl FromStr for Join {
    type Err = RelayUrlError;

    fn from_str(text: &str) -> Result<Self, RelayUrlError> {
        let (url, fragment) = text.trim().split_once('#').map_or((text.trim(), None), |(url, fragment)| (url, Some(fragment)));
        let ca = fragment.map(|fragment| {
            let packed = fragment.strip_prefix("ca=").filter(|packed| !packed.is_empty()).ok_or(RelayUrlError::Ca)?;
            let der = BASE64URL_NOPAD.decode(packed.as_bytes()).map_err(|_| RelayUrlError::Ca)?;
            certificate::check(&der).map_err(RelayUrlError::Certificate)?;
            Ok(der)
        });
        Ok(Self { url: url.parse()?, ca: ca.transpose()? })
    }
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)?;
        self.ca.as_ref().map_or(Ok(()), |ca| write!(f, "#ca={}", BASE64URL_NOPAD.encode(ca)))
    }
}
