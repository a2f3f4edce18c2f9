//! Checks that bytes have the structure of an X.509 certificate (RFC 5280, 4.1), so that a damaged join string is refused when it is pasted.
//!
//! The check is of strict DER and of the structure alone. Signatures, names and dates are verified by TLS when the relay is dialled.

/// The bytes are not a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an X.509 certificate in DER: {part} is missing or invalid")]
pub struct CertificateError {
    /// The first part that is missing or invalid.
    pub part: &'static str,
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const ISSUER_UNIQUE_ID: u8 = 0x81;
const SUBJECT_UNIQUE_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;

/// Checks that the bytes are one certificate and nothing else.
///
/// # Errors
/// [`CertificateError`].
pub fn check(der: &[u8]) -> Result<(), CertificateError> {
    let mut whole = Der(der);
    let mut certificate = whole.inside(SEQUENCE, "the certificate")?;
    whole.end("the end of the certificate")?;
    let tbs = certificate.inside(SEQUENCE, "tbsCertificate")?;
    let algorithm = certificate.inside(SEQUENCE, "signatureAlgorithm")?;
    bits(&mut certificate, "the signature")?;
    certificate.end("the end of the signature")?;
    check_tbs(tbs, &algorithm)
}

fn check_tbs(mut tbs: Der<'_>, outer_algorithm: &Der<'_>) -> Result<(), CertificateError> {
    if let Some(mut version) = tbs.optional(VERSION) {
        version.value(INTEGER, "the version")?;
        version.end("the version")?;
    }
    tbs.value(INTEGER, "the serial number")?;
    let algorithm = tbs.inside(SEQUENCE, "the signature algorithm")?;
    if algorithm.0 != outer_algorithm.0 {
        return Err(CertificateError { part: "the signature algorithm" });
    }
    check_algorithm(algorithm, "the signature algorithm")?;
    check_name(tbs.inside(SEQUENCE, "the issuer")?, "the issuer")?;
    check_validity(tbs.inside(SEQUENCE, "the validity")?)?;
    check_name(tbs.inside(SEQUENCE, "the subject")?, "the subject")?;
    let mut key = tbs.inside(SEQUENCE, "the public key")?;
    check_algorithm(key.inside(SEQUENCE, "the public key")?, "the public key")?;
    bits(&mut key, "the public key")?;
    key.end("the public key")?;
    tbs.skip(ISSUER_UNIQUE_ID);
    tbs.skip(SUBJECT_UNIQUE_ID);
    if let Some(mut extensions) = tbs.optional(EXTENSIONS) {
        check_extensions(extensions.inside(SEQUENCE, "the extensions")?)?;
        extensions.end("the extensions")?;
    }
    tbs.end("the end of tbsCertificate")
}

/// An object identifier and at most one parameter of any kind.
fn check_algorithm(mut algorithm: Der<'_>, part: &'static str) -> Result<(), CertificateError> {
    algorithm.value(OBJECT_ID, part)?;
    if !algorithm.0.is_empty() {
        algorithm.any().ok_or(CertificateError { part })?;
    }
    algorithm.end(part)
}

/// A sequence of sets of attributes. It may be empty.
fn check_name(mut name: Der<'_>, part: &'static str) -> Result<(), CertificateError> {
    while !name.0.is_empty() {
        let mut attributes = name.inside(SET, part)?;
        while !attributes.0.is_empty() {
            let mut attribute = attributes.inside(SEQUENCE, part)?;
            attribute.value(OBJECT_ID, part)?;
            attribute.any().ok_or(CertificateError { part })?;
            attribute.end(part)?;
        }
    }
    Ok(())
}

fn check_validity(mut validity: Der<'_>) -> Result<(), CertificateError> {
    let part = "the validity";
    for _ in ["not before", "not after"] {
        let is_time = |(tag, time): (u8, &[u8])| match tag {
            UTC_TIME => time.len() == 13,
            GENERALIZED_TIME => time.len() == 15,
            _ => false,
        };
        validity.any().filter(|&time| is_time(time)).ok_or(CertificateError { part })?;
    }
    validity.end(part)
}

fn check_extensions(mut extensions: Der<'_>) -> Result<(), CertificateError> {
    let part = "the extensions";
    while !extensions.0.is_empty() {
        let mut extension = extensions.inside(SEQUENCE, part)?;
        extension.value(OBJECT_ID, part)?;
        extension.skip(BOOLEAN);
        extension.value(OCTET_STRING, part)?;
        extension.end(part)?;
    }
    Ok(())
}

/// A bit string of whole bytes, as signatures and keys are.
fn bits(der: &mut Der<'_>, part: &'static str) -> Result<(), CertificateError> {
    match der.value(BIT_STRING, part)? {
        [0, _, ..] => Ok(()),
        _ => Err(CertificateError { part }),
    }
}

/// The rest of the DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Reads the next element: its tag and content. `None` if its length is wrong or not in the shortest form.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
                let is_shortest = bytes[0] != 0 && length >= 0x80;
                (Some(length).filter(|_| is_shortest)?, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// Reads the content of the next element, which must have this tag and not be empty.
    fn value(&mut self, tag: u8, part: &'static str) -> Result<&'a [u8], CertificateError> {
        let found = self.any().filter(|&(found, content)| found == tag && !content.is_empty());
        found.map(|(_, content)| content).ok_or(CertificateError { part })
    }

    /// Enters the next element, which must have this tag. It may be empty.
    fn inside(&mut self, tag: u8, part: &'static str) -> Result<Self, CertificateError> {
        self.any().filter(|&(found, _)| found == tag).map(|(_, content)| Self(content)).ok_or(CertificateError { part })
    }

    /// Enters the next element, if it has this tag.
    fn optional(&mut self, tag: u8) -> Option<Self> {
        (self.0.first() == Some(&tag)).then(|| self.any()).flatten().map(|(_, content)| Self(content))
    }

    /// Skips the next element, if it has this tag.
    fn skip(&mut self, tag: u8) {
        self.optional(tag);
    }

    fn end(&self, part: &'static str) -> Result<(), CertificateError> {
        if self.0.is_empty() { Ok(()) } else { Err(CertificateError { part }) }
    }
}

#[cfg(test)]
mod tests;
