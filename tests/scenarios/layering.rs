//! What a lint does not see: sizes, opening comments, sleeps in tests, and who may use whom inside the relay.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the relay by floor; a module uses its own floor's earlier ones, lower floors, and its own folder.
const FLOORS: &[&[&str]] = &[
    &["clock", "limits", "proxies", "random", "fading", "tls_stream"],
    &["tasks", "config", "slots", "socket"],
    &["store"],
    &["auth"],
    &["control", "rendezvous", "splice"],
    &["directory"],
    &["streams"],
    &["opening"],
    &["http"],
    &["api"],
    &["routes"],
    &["listen"],
    &["relay"],
    &["pki", "token"],
    &["init"],
    &["serve"],
    &["cli"],
    &["main", "lib"],
];

/// Uses upwards or within one floor, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[("token", "init", "the names of the state folder's files")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 50, "the sources were found");
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("a source"))).collect()
}

#[test]
fn every_file_has_module_documentation_and_at_most_400_lines() {
    for (path, text) in all_sources() {
        assert!(text.starts_with("//!"), "{} opens with what it owns", path.display());
        assert!(text.lines().count() <= 400, "{} has {} lines: it is two things", path.display(), text.lines().count());
    }
}

#[test]
fn tests_wait_for_events() {
    for (path, text) in all_sources() {
        let is_test = path.components().any(|part| part.as_os_str() == "scenarios") || path.to_string_lossy().ends_with("_tests.rs");
        // On a paused clock a sleep is a step of the scenario; in real time it is a guess.
        let real_time = !text.contains("start_paused = true");
        let sleeps = text.lines().filter(|line| line.contains("sleep(") && !line.contains("sleep_until")).count();
        assert!(!(is_test && real_time) || sleeps == 0 || path.ends_with("house.rs"), "{} sleeps", path.display());
    }
}

#[test]
fn nothing_is_left_unimplemented() {
    for (path, text) in all_sources() {
        for word in ["todo!(", "unimplemented!(", "#[ignore"] {
            assert!(!text.contains(word) || path.ends_with("house.rs"), "{} has {word}", path.display());
        }
    }
}

fn floor(module: &str) -> usize {
    FLOORS.iter().position(|floor| floor.contains(&module)).unwrap_or_else(|| panic!("{module} is on no floor"))
}

#[test]
fn the_relays_modules_use_lower_layers_only() {
    let base = root().join("relay/src");
    let mut found = Vec::new();
    sources(&base, &mut found);
    for path in found {
        let inside = path.strip_prefix(&base).expect("below").to_string_lossy().replace(".rs", "");
        let module = inside.split('/').next().unwrap_or_default().trim_end_matches("_tests").to_owned();
        let text = fs::read_to_string(&path).expect("a source");
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        for used in product.lines().filter_map(|line| line.trim().strip_prefix("use crate::")) {
            let used: String = used.chars().take_while(|&letter| letter.is_ascii_alphanumeric() || letter == '_').collect();
            if used == module || inside.ends_with("_tests") {
                continue;
            }
            let listed = EXCEPTIONS.iter().any(|&(from, to, _)| from == module && to == used);
            assert!(floor(&used) < floor(&module) || listed, "{} uses {used}, which is not below it", path.display());
        }
    }
}

#[test]
fn the_programs_do_not_depend_on_each_other() {
    for (package, foreign) in [
        ("relay", &["moorline-agent", "moorline-transport", "moorline"][..]),
        ("device-agent", &["moorline-relay", "moorline"]),
        ("service-client", &["moorline-relay", "moorline-agent"]),
        ("proto", &["tokio", "moorline-transport"]),
    ] {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).expect("a manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("dependencies");
        for name in foreign {
            let named = |line: &str| line.split(['.', ' ', '=']).next() == Some(name);
            assert!(!dependencies.lines().any(named), "{package} uses {name}");
        }
    }
}
