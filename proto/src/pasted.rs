//! What people paste into files and variables for the programs, recognised by its form: join strings, tokens, keys.
//!
//! Each program checks a text here where it is pasted, before it is kept or sent. Does not own: parsing and verifying it.

use std::fmt;

/// What a text is, by its form alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A relay's address, perhaps with its CA.
    JoinString,
    /// A caller's token.
    Token,
    /// A public key in PEM.
    PublicKey,
    /// A private key in PEM.
    PrivateKey,
    /// A certificate in PEM.
    Certificate,
}

/// A text of another form than the one that is wanted. Does not quote the text, which may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is {found}, not {wanted}")]
pub struct WrongForm {
    /// The form that is wanted.
    pub wanted: Form,
    /// The form that it has.
    pub found: Form,
}

impl WrongForm {
    /// How the text is used instead, and where to get what is wanted.
    pub fn advice(&self) -> String {
        format!("{}; {}", self.found.used(), self.wanted.source())
    }
}

impl Form {
    /// Recognises a text. `None` where it could be anything.
    pub fn of(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.starts_with("https://") || text.starts_with("wss://") {
            return Some(Self::JoinString);
        }
        if is_jws(text) {
            return Some(Self::Token);
        }
        let label = text.split_once("-----BEGIN ")?.1.split_once("-----")?.0;
        match label {
            "PUBLIC KEY" => Some(Self::PublicKey),
            "CERTIFICATE" => Some(Self::Certificate),
            label if label.ends_with("PRIVATE KEY") => Some(Self::PrivateKey),
            _ => None,
        }
    }

    /// Checks that a text is not of another form. A text that is not recognised passes: whoever parses it says what is wrong with it.
    ///
    /// # Errors
    /// [`WrongForm`].
    pub fn check(self, text: &str) -> Result<(), WrongForm> {
        match Self::of(text) {
            Some(found) if found != self => Err(WrongForm { wanted: self, found }),
            Some(_) | None => Ok(()),
        }
    }

    fn used(self) -> &'static str {
        match self {
            Self::JoinString => "give the join string to --join",
            Self::Token => "give a token to --token-file of `moorline`",
            Self::PublicKey => "give a device's public key to `moorline device add ID --key FILE`",
            Self::PrivateKey => "keep a private key in its file, and give it to nobody",
            Self::Certificate => "a CA certificate is not needed: the join string holds it",
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::JoinString => "`moorline-relay join` prints the join string, one line that begins with https://",
            Self::Token => "`moorline-relay token new` prints a token",
            Self::PublicKey => "`moorline-agent key --config FILE` prints the public key, on the device",
            Self::PrivateKey => "a private key is made where it is used",
            Self::Certificate => "the CA certificate is ca.pem in the relay's folder",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JoinString => "a join string (a relay's address and CA)",
            Self::Token => "a caller's token",
            Self::PublicKey => "a public key",
            Self::PrivateKey => "a private key",
            Self::Certificate => "a certificate",
        })
    }
}

/// Whether it has the form of a compact JWS (RFC 7515): a JSON object and two more parts in base64url.
fn is_jws(text: &str) -> bool {
    let is_base64url =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    text.starts_with("eyJ") && text.split('.').count() == 3 && text.split('.').all(is_base64url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [(&str, Form); 5] = [
        (" https://relay.example.com:8443#ca=MIIB\n", Form::JoinString),
        ("eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2ln_-\n", Form::Token),
        ("-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n", Form::PublicKey),
        ("# a comment\n-----BEGIN EC PRIVATE KEY-----\nMC4C\n-----END EC PRIVATE KEY-----\n", Form::PrivateKey),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", Form::Certificate),
    ];

    #[test]
    fn each_text_is_taken_where_it_belongs_and_explained_everywhere_else() {
        for (text, found) in TEXTS {
            for (_, wanted) in TEXTS {
                let checked = wanted.check(text);
                if wanted == found {
                    assert_eq!(checked, Ok(()));
                    continue;
                }
                let error = checked.unwrap_err();
                assert_eq!(error, WrongForm { wanted, found });
                assert_eq!(error.to_string(), format!("this is {found}, not {wanted}"));
                assert!(error.advice().starts_with(found.used()) && error.advice().ends_with(wanted.source()));
            }
        }
    }

    #[test]
    fn what_could_be_anything_is_left_to_its_parser() {
        for text in ["", "word", "relay.example.com", "eyJ", "eyJ.a", "eyJ.a.b.c", "eyJ.a b.c", "-----BEGIN", "-----BEGIN X-----"] {
            assert_eq!((Form::of(text), Form::Token.check(text)), (None, Ok(())), "{text:?}");
        }
    }
}
