//! Reads `vectors/` (texts written in full, or composed of repetitions if they are long) and the tables of docs/PROTOCOL.md.

#![allow(dead_code, clippy::panic, reason = "shared by test programs, each of which uses a part of it; a test may panic")]

use std::collections::BTreeMap;
use std::fmt;

use moorline_proto::message::decode_body;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Text of a vector: a string, or a list of strings and repetitions.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Written {
    Plain(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Part {
    Plain(String),
    Again { repeat: String, times: usize },
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => f.write_str(text),
            Self::Parts(parts) => parts.iter().try_for_each(|part| match part {
                Part::Plain(text) => f.write_str(text),
                Part::Again { repeat, times } => f.write_str(&repeat.repeat(*times)),
            }),
        }
    }
}

/// A valid text, and its canonical encoding.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Valid {
    pub(crate) name: String,
    /// In `bodies.json`: the name of the body.
    #[serde(default)]
    pub(crate) body: String,
    pub(crate) text: Written,
    /// If it differs from `text`.
    canonical: Option<Written>,
}

impl Valid {
    pub(crate) fn canonical(&self) -> String {
        self.canonical.as_ref().unwrap_or(&self.text).to_string()
    }
}

/// An invalid text, and the error that it must produce.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invalid {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) body: String,
    pub(crate) text: Written,
    pub(crate) error: String,
}

/// A message of a type that this version does not know.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unknown {
    pub(crate) name: String,
    pub(crate) text: Written,
    pub(crate) r#type: String,
}

/// One of the three files of messages.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Messages {
    /// Who sends them, for readers.
    pub(crate) messages: String,
    pub(crate) most_bytes: usize,
    pub(crate) valid: Vec<Valid>,
    pub(crate) unknown: Vec<Unknown>,
    pub(crate) invalid: Vec<Invalid>,
}

/// `bodies.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bodies {
    pub(crate) valid: Vec<Valid>,
    pub(crate) invalid: Vec<Invalid>,
}

/// The text of a file of this package.
pub(crate) fn file(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One file of `vectors/`.
pub(crate) fn vectors<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&file(&format!("vectors/{name}"))).unwrap_or_else(|error| panic!("vectors/{name}: {error}"))
}

/// Reads JSON.
///
/// # Errors
/// `field` and the path of the field that is wrong or missing, as `MessageError::kind` has it.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    decode_body(text.as_bytes()).map_err(|error| format!("field {}", error.field))
}

/// The rows below the first table under `heading` whose first column is called `first`. Cells are plain text without code marks.
pub(crate) fn table(heading: &str, first: &str) -> Vec<Vec<String>> {
    let document = file("../docs/PROTOCOL.md");
    let from = document.lines().position(|line| line == heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let level = heading.chars().take_while(|&mark| mark == '#').count();
    let inside = |line: &&str| {
        let marks = line.chars().take_while(|&mark| mark == '#').count();
        marks == 0 || marks > level
    };
    let head = format!("| {first} |");
    let rows = document.lines().skip(from + 1).take_while(inside).skip_while(|line| !line.starts_with(&head)).skip(2);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>();
    let rows: Vec<_> = rows.take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "no table {first:?} under {heading:?}");
    rows
}

/// Rows as a map from the first column to the second; a duplicate row is a failure.
pub(crate) fn pairs(rows: &[Vec<String>]) -> BTreeMap<String, String> {
    let map: BTreeMap<_, _> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(map.len(), rows.len(), "a row is a duplicate: {:?}", rows.iter().map(|row| &row[0]).collect::<Vec<_>>());
    map
}
