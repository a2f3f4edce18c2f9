//! Join strings that are printed again: what they hold, and what they leave out.

use std::fs;
use std::time::Duration;

use super::*;
use crate::config::TlsFiles;
use crate::init::{Init, init};

fn wanted(state: &Path) -> Init {
    Init {
        state: state.into(),
        names: vec!["relay.example.com".to_owned(), "127.0.0.1".to_owned()],
        listen: "0.0.0.0:8443".parse().unwrap(),
        node: "n1".parse().unwrap(),
        issuer: "relay".parse().unwrap(),
        own: None,
        operator_lifetime: Duration::from_secs(60),
    }
}

fn edit(state: &Path, from: &str, to: &str) {
    let file = state.join("relay.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(file, text.replace(from, to)).unwrap();
}

#[tokio::test]
async fn the_join_string_is_the_one_that_init_printed() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second, clock) = (folder.path().join("first"), folder.path().join("second"), Clock::system());
    let made = init(&wanted(&first), &clock).await.unwrap();
    assert_eq!(join(&first, &clock).unwrap(), made.join);
    for secret in ["ca.key", "tls.key", "signing.key", "moorline.db"] {
        fs::remove_file(first.join(secret)).unwrap();
    }
    assert_eq!(join(&first, &clock).unwrap(), made.join, "no secret is read");

    let own = TlsFiles { certificate: folder.path().join("own.pem"), key: folder.path().join("own.key") };
    let other = init(&wanted(&folder.path().join("other")), &clock).await.unwrap();
    fs::copy(folder.path().join("other/tls.pem"), &own.certificate).unwrap();
    moorline_files::create(&own.key, 0o600, &fs::read(folder.path().join("other/tls.key")).unwrap()).unwrap();
    let made = init(&Init { own: Some(own.clone()), ..wanted(&second) }, &clock).await.unwrap();
    assert_eq!((join(&second, &clock).unwrap(), &made.join.ca), (made.join.clone(), &None));

    // A certificate of another CA has come: who trusted the relay's own CA alone could not reach it.
    fs::copy(&own.certificate, first.join("tls.pem")).unwrap();
    assert_eq!(join(&first, &clock).unwrap(), Join { url: other.join.url, ca: None });
}

#[tokio::test]
async fn the_port_is_the_one_that_is_dialled() {
    let folder = tempfile::tempdir().unwrap();
    let (state, clock) = (folder.path().join("relay"), Clock::system());
    let made = init(&wanted(&state), &clock).await.unwrap();
    edit(&state, "#ports = []", "ports = [443, 8443]");
    assert_eq!(join(&state, &clock).unwrap().url.to_string(), "https://relay.example.com");
    edit(&state, "transport = \"tls\"", "transport = \"plain\"");
    assert_eq!(join(&state, &clock).unwrap().ca, made.join.ca, "a load balancer has the relay's certificate");
    edit(&state, "ports = [443, 8443]", "#ports = []");
    edit(&state, "0.0.0.0:8443", "0.0.0.0:0");
    let error = join(&state, &clock).unwrap_err();
    assert!(matches!(error, JoinError::Address(_)) && error.advice().contains("ports"), "{error:?}");
}

#[tokio::test]
async fn what_is_no_relay_and_what_is_no_ca_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let (state, clock) = (folder.path().join("relay"), Clock::system());
    assert!(matches!(join(&state, &clock), Err(JoinError::Config(ConfigError::Read { .. }))));
    init(&wanted(&state), &clock).await.unwrap();
    fs::write(state.join("ca.pem"), "no certificate").unwrap();
    let error = join(&state, &clock).unwrap_err();
    assert!(matches!(error, JoinError::Certificate { .. }) && error.advice().contains("ca.pem"), "{error:?}");
    fs::write(state.join("ca.pem"), "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").unwrap();
    assert!(matches!(join(&state, &clock), Err(JoinError::Ca { .. })));
}
