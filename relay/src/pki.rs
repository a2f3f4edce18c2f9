//! A relay's own CA and the certificate that it issues to itself, for operators who have no other.
//!
//! Whoever trusts this CA was given it in the join string, for this one relay. So both live equally long: a certificate that ends
//! before its CA would bring nobody safety, and everybody an outage on a day that nobody remembers.

use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::random;

/// How long CA and certificate are good: ten years.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// They are good from a day ago: devices without a battery-backed clock boot in the past.
const BACKDATE: Duration = Duration::from_secs(24 * 60 * 60);

/// A CA and one certificate of it, with their keys, as PEM.
#[derive(Debug)]
pub(crate) struct Pki {
    /// The CA's certificate.
    pub(crate) ca: String,
    /// The CA's certificate in DER, for the join string.
    pub(crate) ca_der: Vec<u8>,
    /// The CA's key. Needed only to issue another certificate.
    pub(crate) ca_key: Secret,
    /// The relay's certificate, issued by the CA itself.
    pub(crate) certificate: String,
    /// The relay's key.
    pub(crate) key: Secret,
}

/// Makes a CA that may issue no further CAs, and a certificate for `names` (host names and IP addresses). Keys are ECDSA P-256:
/// a handshake costs a third of what RSA-2048 takes.
///
/// # Errors
/// The library's own: a name that no certificate can carry.
pub(crate) fn make(names: &[String], now: Timestamp) -> Result<Pki, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    // The number tells apart the CAs of two relays: trust stores find a CA by its name.
    ca.distinguished_name = distinguished_name(&format!("Moorline CA {}", HEXLOWER.encode(&random::bytes::<8>())));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_times(&mut ca, now);
    let ca_certificate = ca.self_signed(&ca_key)?;

    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(names)?;
    leaf.distinguished_name = distinguished_name("Moorline relay");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    set_times(&mut leaf, now);
    let ca_key_pem = Secret::new(ca_key.serialize_pem());
    let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;

    Ok(Pki {
        ca: ca_certificate.pem(),
        ca_der: ca_certificate.der().to_vec(),
        ca_key: ca_key_pem,
        certificate: certificate.pem(),
        key: Secret::new(key.serialize_pem()),
    })
}

fn distinguished_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_times(params: &mut CertificateParams, now: Timestamp) {
    let now = SystemTime::from(now);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFETIME).into();
}
