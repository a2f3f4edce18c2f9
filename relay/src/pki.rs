//! A relay's own CA and the certificate that it issues to itself, for operators who have no other.
//!
//! The join string hands out this CA, for this one relay. So CA and certificate expire together: an earlier end of the certificate
//! would add no security, only an outage on a day that nobody remembers.

use std::time::SystemTime;

use data_encoding::HEXLOWER;
use moorline_proto::secret::Secret;
use moorline_proto::timestamp::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::random;

/// CA and certificate are valid for ten years.
const LIFETIME_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1_000;
/// They are valid from a day ago: devices without a battery-backed clock boot in the past.
const BACKDATE_MS: u64 = 24 * 60 * 60 * 1_000;

/// A CA and one certificate of it, with their keys, as PEM.
#[derive(Debug)]
pub(crate) struct Pki {
    /// The CA's certificate.
    pub(crate) ca: String,
    /// The CA's certificate in DER, for the join string.
    pub(crate) ca_der: Vec<u8>,
    /// The CA's private key, needed only to issue another certificate.
    pub(crate) ca_key: Secret,
    /// The relay's certificate, issued by the CA itself.
    pub(crate) certificate: String,
    /// The relay's private key.
    pub(crate) key: Secret,
}

/// Makes a CA that cannot issue further CAs, and a certificate for `names` (host names and IP addresses). The keys are ECDSA P-256:
/// a handshake costs a third of one with RSA-2048.
///
/// # Errors
/// A name that cannot stand in a certificate.
pub(crate) fn make(names: &[String], now: Timestamp) -> Result<Pki, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    // Trust stores look a CA up by its name, so the CAs of two relays need different ones.
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

/// Stays within the years that a certificate can have, whatever the clock returns.
fn set_times(params: &mut CertificateParams, now: Timestamp) {
    let at = |ms: u64| SystemTime::from(Timestamp::from_millis(ms)).into();
    params.not_before = at(now.as_millis().saturating_sub(BACKDATE_MS));
    params.not_after = at(now.as_millis().saturating_add(LIFETIME_MS));
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    const GENERALIZED_TIME: u8 = 0x18;
    const UTC_TIME: u8 = 0x17;

    /// The validity of a certificate, as encoded in its DER.
    fn validity(der: &[u8]) -> [(u8, String); 2] {
        // By its length too: the serial number before it is random.
        let starts = |four: &[u8]| matches!(four, [0x30, 0x1e | 0x20 | 0x22, UTC_TIME, 13] | [0x30, 0x20 | 0x22, GENERALIZED_TIME, 15]);
        let sequence = der.windows(4).position(starts).unwrap();
        let time = |at: usize| {
            let (tag, length) = (der[at], usize::from(der[at + 1]));
            ((tag, String::from_utf8(der[at + 2..at + 2 + length].to_vec()).unwrap()), at + 2 + length)
        };
        let (not_before, next) = time(sequence + 2);
        [not_before, time(next).0]
    }

    fn made(now: u64) -> [(u8, String); 2] {
        let pki = make(&["relay.example.com".to_owned()], Timestamp::from_millis(now)).unwrap();
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let leaf = validity(&der(&pki.certificate));
        assert_eq!((validity(&pki.ca_der), validity(&der(&pki.ca))), (leaf.clone(), leaf.clone()), "they expire together");
        leaf
    }

    #[test]
    fn certificates_are_valid_from_a_day_ago_for_ten_years() {
        let now = "2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap();
        assert_eq!(made(now.as_millis()), [(UTC_TIME, "260228120000Z".to_owned()), (UTC_TIME, "360227120000Z".to_owned())]);
    }

    #[test]
    fn a_clock_that_is_wrong_makes_a_certificate_whose_years_can_be_written() {
        assert_eq!(made(0), [(UTC_TIME, "700101000000Z".to_owned()), (UTC_TIME, "791230000000Z".to_owned())]);
        assert_eq!(made(u64::MAX), [(GENERALIZED_TIME, "99991230235959Z".to_owned()), (GENERALIZED_TIME, "99991231235959Z".to_owned())]);
    }
}
