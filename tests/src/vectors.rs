//! The protocol's test vectors as input for decoders.

use std::fs;
use std::path::Path;

/// Every string and every object in the vectors: messages, keys, claims, join strings.
pub fn vectors() -> Vec<String> {
    fn strings(value: &serde_json::Value, all: &mut Vec<String>) {
        match value {
            serde_json::Value::String(text) => all.push(text.clone()),
            serde_json::Value::Array(items) => items.iter().for_each(|item| strings(item, all)),
            serde_json::Value::Object(members) => {
                all.push(value.to_string());
                members.values().for_each(|member| strings(member, all));
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/vectors");
    for entry in fs::read_dir(folder).expect("the vectors are there") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read(&path).expect("a vector is read");
            strings(&serde_json::from_slice(&text).expect("vectors are JSON"), &mut all);
        }
    }
    assert!(all.len() > 100, "there are many vectors");
    all
}
