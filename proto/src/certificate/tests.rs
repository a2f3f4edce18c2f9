//! A real certificate is accepted. One with a missing or an additional part, or one that is not valid DER, is refused.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::{CertificateError, Der, EXTENSIONS, VERSION, check};

fn real(is_ca: bool) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["relay.example.com".to_owned()]).unwrap();
    params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    params.self_signed(&key).unwrap().der().to_vec()
}

/// One element of DER, parsed recursively where it is constructed.
#[derive(Clone)]
enum Node {
    Leaf(u8, Vec<u8>),
    Tree(u8, Vec<Node>),
}

impl Node {
    fn read(der: &mut Der<'_>) -> Self {
        let (tag, content) = der.any().unwrap();
        if tag & 0x20 == 0 {
            return Self::Leaf(tag, content.to_vec());
        }
        let (mut inside, mut nodes) = (Der(content), Vec::new());
        while !inside.0.is_empty() {
            nodes.push(Self::read(&mut inside));
        }
        Self::Tree(tag, nodes)
    }

    fn write(&self) -> Vec<u8> {
        let (tag, content) = match self {
            Self::Leaf(tag, content) => (*tag, content.clone()),
            Self::Tree(tag, nodes) => (*tag, nodes.iter().flat_map(Self::write).collect()),
        };
        let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
        let head = match (high, low) {
            (0, 0..=0x7f) => vec![tag, low],
            (0, _) => vec![tag, 0x81, low],
            _ => vec![tag, 0x82, high, low],
        };
        [head, content].concat()
    }

    fn nodes(&mut self) -> &mut Vec<Self> {
        match self {
            Self::Tree(_, nodes) => nodes,
            Self::Leaf(..) => panic!("an element that is not constructed"),
        }
    }

    fn tag(&self) -> u8 {
        match self {
            Self::Leaf(tag, _) | Self::Tree(tag, _) => *tag,
        }
    }
}

fn changed(der: &[u8], change: impl FnOnce(&mut Node)) -> Result<(), CertificateError> {
    let mut node = Node::read(&mut Der(der));
    change(&mut node);
    check(&node.write())
}

#[test]
fn real_certificates_are_accepted() {
    for der in [real(true), real(false)] {
        assert_eq!(check(&der), Ok(()));
        assert_eq!(Node::read(&mut Der(&der)).write(), der, "the test's own writer");
    }
}

#[test]
fn truncated_input_and_trailing_data_are_refused() {
    let der = real(true);
    for end in 0..der.len() {
        assert!(check(&der[..end]).is_err(), "{end} bytes");
    }
    assert_eq!(check(&[&der[..], &[0]].concat()), Err(CertificateError { part: "the end of the certificate" }));
    assert_eq!(check(&[&der[..], &der[..]].concat()), Err(CertificateError { part: "the end of the certificate" }));
}

#[test]
fn every_part_that_is_not_optional_is_required() {
    let der = real(true);
    for part in 0..3 {
        assert!(changed(&der, |whole| drop(whole.nodes().remove(part))).is_err(), "part {part} of the certificate");
    }
    let parts = Node::read(&mut Der(&der)).nodes()[0].nodes().len();
    assert_eq!(parts, 8);
    for part in 0..parts {
        let mut tag = 0;
        let checked = changed(&der, |whole| tag = whole.nodes()[0].nodes().remove(part).tag());
        assert_eq!(checked.is_ok(), [VERSION, EXTENSIONS].contains(&tag), "part {part} of tbsCertificate");
    }
}

#[test]
fn every_part_has_its_own_tag_and_content() {
    let der = real(true);
    for part in 0..8 {
        let other_tag = changed(&der, |whole| whole.nodes()[0].nodes()[part] = Node::Leaf(0x0c, b"text".to_vec()));
        assert!(other_tag.is_err(), "part {part} of tbsCertificate");
    }
    for (part, tag) in [(1, 0x02), (2, 0x30), (4, 0x30), (6, 0x30)] {
        let empty = changed(&der, |whole| whole.nodes()[0].nodes()[part] = Node::Leaf(tag, Vec::new()));
        assert!(empty.is_err(), "part {part} of tbsCertificate is empty");
    }
    let one_time = changed(&der, |whole| drop(whole.nodes()[0].nodes()[4].nodes().pop()));
    assert_eq!(one_time, Err(CertificateError { part: "the validity" }));
    let other_algorithm = changed(&der, |whole| whole.nodes()[1] = Node::Tree(0x30, vec![Node::Leaf(0x06, vec![0x2a])]));
    assert_eq!(other_algorithm, Err(CertificateError { part: "the signature algorithm" }));
    let half_a_byte = changed(&der, |whole| whole.nodes()[2] = Node::Leaf(0x03, vec![4, 0xf0]));
    assert_eq!(half_a_byte, Err(CertificateError { part: "the signature" }));
    let one_more = changed(&der, |whole| whole.nodes()[0].nodes().push(Node::Leaf(0x05, Vec::new())));
    assert_eq!(one_more, Err(CertificateError { part: "the end of tbsCertificate" }));
}

#[test]
fn lengths_are_encoded_in_their_shortest_form() {
    for wrong in
        [&[0x30, 0x80, 0, 0][..], &[0x30, 0x81, 0x01, 0], &[0x30, 0x82, 0, 0x80], &[0x30, 0x84, 0, 0, 0, 1, 0], &[0x30], &[0x30, 0x81]]
    {
        assert!(Der(wrong).any().is_none(), "{wrong:02x?}");
    }
    let long = [&[0x04, 0x83, 0x01, 0, 0][..], &[7; 0x1_0000]].concat();
    assert_eq!(Der(&long).any().map(|(tag, content)| (tag, content.len())), Some((4, 0x1_0000)));
}

#[test]
fn input_that_is_not_a_certificate_is_refused() {
    for junk in [&b""[..], b"0\0", b"-----BEGIN CERTIFICATE-----", &[0; 64], &[0xff; 64]] {
        assert!(check(junk).is_err(), "{junk:02x?}");
    }
}
