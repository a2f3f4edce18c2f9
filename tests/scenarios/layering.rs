//! Which modules may use which others. A module of a crate uses only itself and modules of lower layers; a package uses no other program.
//!
//! A layer names modules at the crate's root, each with all files of its folder; a file that belongs to another layer than its folder is named
//! with it: `net/accept`. The check reads all code that is not test code, and sees every path: `use crate::a`, `use crate::{a, b}`,
//! `crate::a::f()`, `super::a`. A module that is in no layer fails, and so does a name in a layer that is no module.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use moorline_tests::sources::{Source, sources, used_paths};

/// Modules by layer, from the lowest to the highest.
type Layers = &'static [&'static [&'static str]];

/// A crate whose layers are checked.
struct Crate {
    folder: &'static str,
    /// Another name of the crate's root: the library's, in a program of the same package.
    library: Option<&'static str>,
    layers: Layers,
    /// Uses that the layers forbid, each with its reason: user, used, and why.
    exceptions: &'static [(&'static str, &'static str, &'static str)],
}

const RELAY: Layers = &[
    &["clock", "digest", "limits", "random", "sync", "net/client_address"],
    &["lifecycle", "logging", "ping_limiter", "state_lock", "tasks", "ttl_map"],
    &["config", "pki"],
    &["store"],
    &["access"],
    &["net"],
    &["splice"],
    &["control"],
    &["directory"],
    &["stream/recent", "stream/status", "stream/steps"],
    &["stream/join", "stream/record", "stream/slots"],
    &["stream/handle", "stream/refusal", "stream/request"],
    &["stream/idempotency"],
    &["stream/registry"],
    &["core"],
    &["stream/idle_device", "stream/leg_close"],
    &["stream/actor"],
    &["stream/carry", "stream/step"],
    &["stream/leg_offer", "stream/setup"],
    &["stream/idle_caller"],
    &["stream/open"],
    &["stream"],
    &["device_changes"],
    &["http"],
    &["relay"],
    &["join_string", "token"],
    &["init"],
    &["serve"],
    &["cli"],
    &["lib", "main"],
];

const AGENT: Layers = &[
    &["limits", "reconnect"],
    &["control_sender", "identity", "idle_legs", "logging", "streams", "target"],
    &["init", "policy", "settings"],
    &["admission", "config", "handler", "session"],
    &["context", "request"],
    &["leg_offer"],
    &["offer", "warm_legs"],
    &["agent"],
    &["handle"],
    &["cli"],
    &["lib", "main"],
];

const CLIENT: Layers = &[
    &["caller_token", "early", "pool", "profile", "retry", "stream_options", "timeline"],
    &["client", "refusal", "stream"],
    &["open_error"],
    &["leg_request"],
    &["open", "ready", "token_expiry"],
    &["devices"],
    &["lib"],
];

const CLIENT_PROGRAM: Layers = &[
    &["environment", "pair", "signals", "ssh_words", "stdio"],
    &["exit", "ssh_disconnect"],
    &["cli", "listen", "output"],
    &["credentials", "log", "open_stream", "ssh"],
    &["connect", "device", "forward", "login"],
    &["main"],
];

const TRANSPORT: Layers = &[
    &["backoff", "descriptors", "lock", "socket", "tls_fault", "unacknowledged"],
    &["error"],
    &["connection", "local_side", "race", "resolver", "tls_sessions"],
    &["tcp"],
    &["exchange", "leg", "trust"],
    &["bridge", "dial"],
    &["lib"],
];

const PROTO: Layers = &[
    &["bounds", "causes", "certificate", "close", "pasted", "secret", "timestamp", "whole"],
    &["frame", "id", "millis", "text"],
    &["code", "failure", "join", "message", "names"],
    &["claims", "problem"],
    &["control"],
    &["ed25519", "leg"],
    &["proof"],
    &["api"],
    &["reuse"],
    &["lib"],
];

const FILES: Layers = &[&["blocking", "create", "error", "replace"], &["read"], &["lib"]];

const TLS: Layers = &[&["side"], &["session"], &["stream"], &["lib"]];

const CRATES: &[Crate] = &[
    Crate { folder: "relay/src", library: Some("moorline_relay"), layers: RELAY, exceptions: &[] },
    Crate {
        folder: "device-agent/src",
        library: Some("moorline_agent"),
        layers: AGENT,
        exceptions: &[("agent", "handle", "the agent gives out the handle that controls it")],
    },
    Crate { folder: "service-client/src", library: None, layers: CLIENT, exceptions: &[] },
    Crate { folder: "service-client/src/bin/moorline", library: None, layers: CLIENT_PROGRAM, exceptions: &[] },
    Crate { folder: "proto/transport/src", library: None, layers: TRANSPORT, exceptions: &[] },
    Crate { folder: "proto/files/src", library: None, layers: FILES, exceptions: &[] },
    Crate { folder: "proto/tls/src", library: None, layers: TLS, exceptions: &[] },
    Crate { folder: "proto/src", library: None, layers: PROTO, exceptions: &[] },
];

/// What the non-test code of each file of a crate uses, by the file's module: paths of at most two names.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn uses(sources: &[Source], of: &Crate) -> Uses {
    let mut uses = Uses::new();
    for source in sources.iter().filter(|source| !source.is_test) {
        let Some(module) = module(&source.path, of.folder) else { continue };
        let own: Vec<&str> = module.iter().map(String::as_str).filter(|name| !matches!(*name, "lib" | "main")).collect();
        let name = module[..module.len().min(2)].join("/");
        uses.entry(name).or_default().extend(used_paths(&source.product(), &own, of.library));
    }
    uses
}

/// The path of a file's module in its crate; `lib` or `main` for the root.
fn module(path: &Path, folder: &str) -> Option<Vec<String>> {
    let inside = path.strip_prefix(folder).ok()?.with_extension("");
    let mut names: Vec<_> = inside.components().map(Component::as_os_str).map(|name| name.to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    (names[0] != "bin").then_some(names) // programs are other crates
}

/// Descriptions of every use that a crate's layers forbid.
fn violations(uses: &Uses, of: &Crate) -> Vec<String> {
    let listed = || of.layers.iter().flat_map(|layer| layer.iter().copied());
    // The module as the layers name it: the file, or else its folder.
    let named = |path: &str| {
        let folder = path.split('/').next().unwrap_or_default();
        listed().find(|listed| *listed == path).or_else(|| listed().find(|listed| *listed == folder))
    };
    let layer = |module: &str| of.layers.iter().position(|layer| layer.contains(&module)).unwrap_or(usize::MAX);
    let mut wrong = BTreeSet::new();
    for listed in listed() {
        let below = format!("{listed}/");
        if !uses.keys().any(|module| module == listed || module.starts_with(&below)) {
            wrong.insert(format!("{listed} is in a layer and is no module"));
        }
    }
    let mut excepted = BTreeSet::new();
    for (path, used) in uses {
        let Some(own) = named(path) else {
            wrong.insert(format!("{path} is in no layer"));
            continue;
        };
        for path in used {
            match named(path) {
                None => drop(wrong.insert(format!("{own} uses {path}, which is no module of a layer"))),
                Some(used) if used == own || layer(used) < layer(own) => {}
                Some(used) if of.exceptions.iter().any(|exception| (exception.0, exception.1) == (own, used)) => {
                    excepted.insert((own, used));
                }
                Some(used) => drop(wrong.insert(format!("{own} uses {used}, which is not below it ({path})"))),
            }
        }
    }
    let needless = of.exceptions.iter().filter(|(user, used, reason)| !excepted.contains(&(*user, *used)) || reason.is_empty());
    wrong.extend(needless.map(|(user, used, _)| format!("the exception for {user} to use {used} is not needed, or has no reason")));
    wrong.into_iter().collect()
}

#[test]
fn modules_use_lower_layers_only() {
    let sources = sources();
    let wrong =
        CRATES.iter().flat_map(|of| violations(&uses(&sources, of), of).into_iter().map(move |wrong| format!("{}: {wrong}", of.folder)));
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_source_file_of_the_product_is_checked() {
    let unchecked = sources().into_iter().filter(|source| !source.is_test);
    let unchecked = unchecked.filter(|source| CRATES.iter().all(|of| module(&source.path, of.folder).is_none()));
    assert_eq!(unchecked.map(|source| source.path).collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new(), "files of no crate with layers");
}

#[test]
fn a_violation_is_found() {
    const LAYERS: Layers = &[&["low", "lower"], &["high"], &["low/top", "gone"]];
    let of = Crate { folder: "x", library: None, layers: LAYERS, exceptions: &[("low", "lower", "a reason"), ("high", "low", "needless")] };
    let uses = [
        ("low", &["high", "lower/Item", "low/other"][..]),
        ("low/other", &["low/top"]),
        ("low/top", &["high", "low/other", "lower"]),
        ("lower", &["low/top/Item"]),
        ("high", &["low", "Item"]),
        ("new", &[]),
    ];
    let uses = uses.map(|(module, used)| (module.to_owned(), used.iter().map(|&name| name.to_owned()).collect()));
    let expected = [
        "gone is in a layer and is no module",
        "high uses Item, which is no module of a layer",
        "low uses high, which is not below it (high)",
        "low uses low/top, which is not below it (low/top)",
        "lower uses low, which is not below it (low/top/Item)",
        "new is in no layer",
        "the exception for high to use low is not needed, or has no reason",
    ];
    assert_eq!(violations(&BTreeMap::from(uses), &of), expected);
}

#[test]
fn the_programs_do_not_depend_on_each_other() {
    for (package, foreign) in [
        ("relay", &["moorline-agent", "moorline-transport", "moorline"][..]),
        ("device-agent", &["moorline-relay", "moorline"]),
        ("service-client", &["moorline-relay", "moorline-agent"]),
        ("proto/transport", &["moorline-relay", "moorline-agent", "moorline"]),
        ("proto/tls", &["moorline-proto", "moorline-transport", "moorline-relay", "moorline-agent", "moorline"]),
        ("proto", &["tokio", "moorline-transport", "moorline-relay", "moorline-agent", "moorline"]),
    ] {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(package).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("dependencies");
        for name in foreign {
            let is_named = |line: &str| line.split(['.', ' ', '=']).next() == Some(name);
            assert!(!dependencies.lines().any(is_named), "{package} uses {name}");
        }
    }
}
