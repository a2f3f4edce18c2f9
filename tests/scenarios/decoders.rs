//! Decoders against random bytes, random JSON-like text and mutated test vectors. Bounded; `tests/fuzz` runs the same decoders under a
//! fuzzer.

use std::fs;
use std::path::Path;

use moorline_tests::decoders::DECODERS;
use moorline_tests::vectors::vectors;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn against(inputs: impl Strategy<Value = Vec<u8>>, cases: u32) {
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&inputs, |bytes| {
        DECODERS.iter().for_each(|(_, decode)| decode(&bytes));
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

#[test]
fn no_decoder_panics_on_a_vector() {
    for text in vectors() {
        DECODERS.iter().for_each(|(_, decode)| decode(text.as_bytes()));
    }
}

#[test]
fn no_decoder_panics_on_a_fuzz_seed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/frames");
    let seeds: Vec<_> = fs::read_dir(folder).expect("the seeds are there").map(|entry| entry.expect("an entry").path()).collect();
    assert!(seeds.len() >= 4, "{seeds:?}");
    for seed in seeds {
        let bytes = fs::read(seed).expect("a seed is read");
        DECODERS.iter().for_each(|(_, decode)| decode(&bytes));
    }
}

#[test]
fn no_decoder_panics_on_random_input() {
    against(vec(any::<u8>(), 0..300), 2_000);
    against(r#"[\[\]{}",:a-z_0-9\\ .=#/-]{0,200}"#.prop_map(String::into_bytes), 4_000);
}

#[test]
fn no_decoder_panics_on_a_mutated_vector() {
    let changed =
        (prop::sample::select(vectors()), vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6)).prop_map(|(text, changes)| {
            let mut bytes = text.into_bytes();
            for (at, byte, kind) in changes {
                if bytes.is_empty() {
                    break;
                }
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, byte),
                    _ => bytes.truncate(at),
                }
            }
            bytes
        });
    against(changed, 6_000);
}

#[test]
fn each_decoder_has_its_fuzz_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("tests/fuzz/Cargo.toml");
    for (name, _) in DECODERS {
        let target = fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).expect("a target");
        assert!(target.contains(&format!("decoders::{name}(")) && manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
