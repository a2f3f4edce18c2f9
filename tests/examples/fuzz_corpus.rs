//! Writes the seed corpus of a fuzzer: the vectors, once for each fuzz target. See `tests/fuzz/run.sh`.

use std::fs;
use std::path::Path;

use moorline_tests::decoders::DECODERS;
use moorline_tests::vectors::vectors;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let vectors = vectors();
    for (target, _) in DECODERS {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        for (number, text) in vectors.iter().enumerate() {
            fs::write(folder.join(format!("vector-{number}")), text)?;
        }
    }
    Ok(())
}
