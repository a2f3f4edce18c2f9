//! New relays: what is in them, who trusts them, and that nothing is overwritten or left over.

use std::sync::Arc;

use moorline_files::PrivateFileError;
use moorline_proto::problem::ProblemCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::access::token::TokenVerifier;
use crate::token::mint;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn wanted(state: &Path) -> Init {
    Init {
        state: state.into(),
        names: vec!["Relay.Example.com".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned()],
        listen: "0.0.0.0:8443".parse().unwrap(),
        node: "n1".parse().unwrap(),
        issuer: "relay".parse().unwrap(),
        own: None,
        operator_lifetime: 30 * DAY,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// TLS over a pipe between a relay of `state` and a client that dials `name` and trusts only `ca`.
async fn handshake(state: &Path, ca: &[u8], name: &str) -> io::Result<()> {
    let tls = Config::load(state).unwrap().tls.unwrap();
    let server = server_config(&tls.certificate, &tls.key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (local, remote) = tokio::io::duplex(4_096);
    let connector = TlsConnector::from(Arc::new(client));
    let dialled = connector.connect(ServerName::try_from(name.to_owned()).unwrap(), local);
    let (accepted, dialled) = tokio::join!(TlsAcceptor::from(server).accept(remote), dialled);
    let dialled = dialled?;
    accepted?;
    assert_eq!(dialled.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    Ok(())
}

#[tokio::test]
async fn a_new_relay_is_whole_and_its_secrets_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("relay");
    let made = init(&wanted(&state), &Clock::system()).await.unwrap();

    assert_eq!(mode(&state), 0o700);
    for (file, expected) in [
        ("relay.toml", 0o644),
        ("ca.pem", 0o644),
        ("tls.pem", 0o644),
        ("ca.key", 0o600),
        ("tls.key", 0o600),
        ("signing.key", 0o600),
        ("moorline.db", 0o600),
    ] {
        assert_eq!(mode(&state.join(file)), expected, "{file}");
    }
    assert_eq!(fs::read_dir(&state).unwrap().count(), 7, "and nothing else");

    let config = Config::load(&state).unwrap();
    assert_eq!(config.names, ["relay.example.com", "127.0.0.1", "::1"]);
    assert_eq!(made.join.url.to_string(), "https://relay.example.com:8443");
    assert_eq!(made.ca_file.as_deref(), Some(state.join("ca.pem").as_path()));
    let ca = CertificateDer::from_pem_file(state.join("ca.pem")).unwrap();
    assert_eq!(made.join.ca.as_deref(), Some(&*ca));
    assert_eq!(made.join.to_string().parse::<Join>().unwrap(), made.join);
}

#[tokio::test]
async fn the_join_string_authenticates_the_relay_by_each_of_its_names_only() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("relay");
    let ca = init(&wanted(&state), &Clock::system()).await.unwrap().join.ca.unwrap();
    for name in ["relay.example.com", "127.0.0.1", "::1"] {
        handshake(&state, &ca, name).await.unwrap();
    }
    assert!(handshake(&state, &ca, "evil.example.com").await.is_err());

    let other = folder.path().join("other");
    let others_ca = init(&wanted(&other), &Clock::system()).await.unwrap().join.ca.unwrap();
    assert!(handshake(&state, &others_ca, "relay.example.com").await.is_err(), "another relay's CA");
}

#[tokio::test]
async fn the_relay_accepts_the_operators_token_and_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("relay");
    let clock = Clock::system();
    let made = init(&wanted(&state), &clock).await.unwrap();
    let config = Config::load(&state).unwrap();
    let keys = SqliteRegistry::open(&state.join(DATABASE_FILE)).await.unwrap().caller_keys().await.unwrap();

    let auth = TokenVerifier::new(keys.clone(), config.names.clone(), clock.clone());
    let operator = auth.authenticate(&made.token).unwrap();
    assert_eq!(operator.id.to_string(), "relay:operator");
    assert_eq!(operator.access[0].actions, moorline_proto::claims::Action::ALL);

    let narrow = TokenRequest {
        subject: "alice".parse().unwrap(),
        access: serde_json::from_str(r#"{"actions":["device.read"],"devices":["lamp-*"]}"#).unwrap(),
        lifetime: DAY,
    };
    let issued = mint(&state, &narrow, clock.now()).unwrap();
    assert_eq!(auth.authenticate(&issued.token).unwrap().access[..], *std::slice::from_ref(&narrow.access));
    let later = Clock::at(Timestamp::from_millis(issued.expires_at.as_millis() + 31_000));
    let late = TokenVerifier::new(keys, config.names, later).authenticate(&issued.token);
    assert_eq!(late.map_err(|error| error.problem()), Err(ProblemCode::TokenExpired));

    fs::set_permissions(state.join("signing.key"), Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(mint(&state, &narrow, clock.now()), Err(TokenError::KeyFile(PrivateFileError::Mode { mode: 0o644, .. }))));
}

#[tokio::test]
async fn a_relay_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("relay");
    init(&wanted(&state), &Clock::system()).await.unwrap();
    let key = fs::read(state.join("signing.key")).unwrap();
    let again = init(&wanted(&state), &Clock::system()).await;
    assert!(matches!(again, Err(InitError::AlreadyExists { found: "relay.toml", .. })), "{again:?}");
    assert_eq!(fs::read(state.join("signing.key")).unwrap(), key);
}

#[tokio::test]
async fn an_empty_folder_is_used_and_made_private_but_a_used_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    fs::set_permissions(state, Permissions::from_mode(0o755)).unwrap();
    fs::write(state.join("letters.txt"), "mine").unwrap();
    assert!(matches!(init(&wanted(state), &Clock::system()).await, Err(InitError::Exposed { mode: 0o755, .. })));
    assert_eq!(mode(state), 0o755);

    fs::remove_file(state.join("letters.txt")).unwrap();
    init(&wanted(state), &Clock::system()).await.unwrap();
    assert_eq!(mode(state), 0o700);
}

#[tokio::test]
async fn with_the_operators_own_certificate_there_is_no_ca() {
    let folder = tempfile::tempdir().unwrap();
    let (first, state) = (folder.path().join("first"), folder.path().join("second"));
    let ca = init(&wanted(&first), &Clock::system()).await.unwrap().join.ca.unwrap();
    let own = TlsFiles { certificate: first.join("tls.pem"), key: first.join("tls.key") };
    let made = init(&Init { own: Some(own.clone()), ..wanted(&state) }, &Clock::system()).await.unwrap();

    assert_eq!((made.join.to_string().as_str(), made.ca_file), ("https://relay.example.com:8443", None));
    assert_eq!(Config::load(&state).unwrap().tls, Some(own));
    assert_eq!(fs::read_dir(&state).unwrap().count(), 3, "configuration, signing key, database");
    handshake(&state, &ca, "127.0.0.1").await.unwrap();
}

#[tokio::test]
async fn a_relay_that_cannot_be_made_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (first, state) = (folder.path().join("first"), folder.path().join("second"));
    init(&wanted(&first), &Clock::system()).await.unwrap();
    let mixed = TlsFiles { certificate: first.join("tls.pem"), key: first.join("ca.key") };
    let missing = TlsFiles { certificate: first.join("tls.pem"), key: first.join("no.key") };
    for (wanted, variant) in [
        (Init { own: Some(mixed), ..wanted(&state) }, "Tls(Unusable"),
        (Init { own: Some(missing), ..wanted(&state) }, "Tls(PrivateKey"),
        (Init { names: vec!["https://relay".to_owned()], ..wanted(&state) }, "Name("),
        (Init { listen: "0.0.0.0:0".parse().unwrap(), ..wanted(&state) }, "Address("),
    ] {
        let error = init(&wanted, &Clock::system()).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(variant), "{error:?}");
        assert!(!state.exists(), "after {error}");
    }
}

#[tokio::test]
async fn a_certificate_managers_links_are_kept_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (first, state) = (folder.path().join("first"), folder.path().join("second"));
    let ca = init(&wanted(&first), &Clock::system()).await.unwrap().join.ca.unwrap();
    let links = TlsFiles { certificate: folder.path().join("fullchain.pem"), key: folder.path().join("privkey.pem") };
    std::os::unix::fs::symlink(first.join("tls.pem"), &links.certificate).unwrap();
    std::os::unix::fs::symlink(first.join("tls.key"), &links.key).unwrap();
    init(&Init { own: Some(links.clone()), ..wanted(&state) }, &Clock::system()).await.unwrap();
    assert_eq!(Config::load(&state).unwrap().tls, Some(links), "a renewed certificate is a different file");
    handshake(&state, &ca, "127.0.0.1").await.unwrap();

    fs::set_permissions(first.join("tls.key"), Permissions::from_mode(0o644)).unwrap();
    let tls = Config::load(&state).unwrap().tls.unwrap();
    let refused = server_config(&tls.certificate, &tls.key);
    assert!(matches!(refused, Err(TlsFileError::PrivateKey(PrivateFileError::Mode { mode: 0o644, .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_symbolic_link_in_an_apparently_empty_folder_is_not_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("relay");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, state.join("moorline.db-wal")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, state.join("moorline.db")).unwrap();
    assert!(matches!(init(&wanted(&state), &Clock::system()).await, Err(InitError::AlreadyExists { found: "moorline.db", .. })));
    assert!(!elsewhere.exists());
}
