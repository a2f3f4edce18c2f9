#!/usr/bin/env bash
# The whole test suite in one command: `tests/run.sh`. With `--long`, transfers are 1 GiB instead of 64 MiB, the flood of unauthenticated peers lasts
# 30 s instead of 6, and each fuzz target runs for half a minute where cargo-fuzz is installed.
# Installs what it needs from Debian; needs only Rust.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  "") ;;
  --long) export MOORLINE_LONG=1 ;;
  *) echo "usage: tests/run.sh [--long]" >&2; exit 2 ;;
esac

# Build artifacts stay outside the clone, so that the next clone builds fast.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/moorline/target}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

began=$SECONDS
step() {
  echo
  echo "== $* (after $((SECONDS - began)) s)"
}

needed=()
need() { # command-or-file package
  command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || needed+=("$2")
}
need cc gcc
need ssh openssh-client
need /usr/sbin/sshd openssh-server
need rsync rsync
need git git
need socat socat
need faketime faketime
need curl curl
need /bin/kill procps # the shell has a kill of its own; the scenarios use the program
need prlimit util-linux
need unshare util-linux
need /usr/sbin/ip iproute2
need openssl openssl
need /usr/sbin/haproxy haproxy
need /usr/sbin/nginx nginx-light
need /usr/bin/python3 python3
need /usr/lib/python3/dist-packages/websockets python3-websockets
need /usr/lib/python3/dist-packages/cryptography python3-cryptography
if [ ${#needed[@]} -gt 0 ]; then
  step "installing ${needed[*]}"
  as_root=""
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
fi

step "format"
cargo fmt --all --check
step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
step "build"
cargo build --workspace --bins --examples --locked
step "tests"
# Most scenarios wait for programs and timeouts, so twice as many run at once as there are cores.
# SIGHUP as it is by default: under nohup the programs would inherit that it is ignored, and scenarios end them by it.
env --default-signal=HUP cargo test --workspace --locked -- --test-threads="$(($(nproc) * 2))"
step "quickstart"
cargo quickstart -- --check

if [ -n "${MOORLINE_LONG:-}" ] && command -v cargo-fuzz >/dev/null; then
  step "fuzz targets"
  tests/fuzz/run.sh 30
fi

step "all passed"
