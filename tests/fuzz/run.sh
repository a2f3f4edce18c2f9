#!/usr/bin/env bash
# Fuzzes what decodes untrusted input: `tests/fuzz/run.sh [SECONDS [TARGET...]]`, each target for SECONDS (60), all targets if none is named.
# Needs cargo-fuzz and a C++ compiler. The stable compiler works: RUSTC_BOOTSTRAP allows the coverage flags, and no sanitizer is used
# because there is no unsafe code. Crashing inputs are kept in tests/fuzz/artifacts. The suite runs the decoders in scenarios/decoders.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${1:-60}"
shift || true
case "$seconds" in *[!0-9]* | "") echo "usage: tests/fuzz/run.sh [SECONDS [TARGET...]]" >&2; exit 2 ;; esac
if ! command -v cargo-fuzz >/dev/null; then
  echo "cargo-fuzz is not installed: cargo install cargo-fuzz --locked" >&2
  exit 2
fi

cache="${XDG_CACHE_HOME:-$HOME/.cache}/moorline"
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}" cargo run --quiet --locked --example fuzz_corpus
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$cache/target-fuzz"
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
for target in "${targets[@]}"; do
  echo "== $target for $seconds s"
  folders=("fuzz/corpus/$target")
  [ ! -d "fuzz/seeds/$target" ] || folders+=("fuzz/seeds/$target")
  cargo fuzz run --sanitizer none "$target" "${folders[@]}" -- -max_total_time="$seconds" -verbosity=0 -print_final_stats=1 2>&1 |
    sed '/^###### Recommended dictionary/,/^###### End of/d' # a page of it
done
