//! The protocol's codes that crossed the wire in a scenario: problems, and codes of Close, `reject` and `cancel`.
//!
//! Whatever of the harness decodes a code from the relay, or sends a `reject` to it, reports the code here. A Close that answers a scripted
//! peer's own Close is an echo, and is not reported. [`by`] runs a scenario in a process of its own and returns what it reported; that is how
//! the completeness check proves that a scenario reaches a code.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use moorline_proto::close::CloseReason;
use moorline_proto::control::{CancelCode, RejectCode};
use moorline_proto::problem::Problem;

use crate::programs::binaries;

/// The file to which the codes are written, one in each line; set for the process of a scenario that [`by`] runs.
const REPORT: &str = "MOORLINE_OBSERVED";

/// A problem was decoded, from a response or from `refused`.
pub fn problem(problem: &Problem) {
    if let Some(code) = problem.known_code() {
        report(&format!("ProblemCode::{code:?}"));
    }
}

/// A problem was decoded, if `body` is one.
pub fn body(body: &serde_json::Value) {
    if body.get("code").is_some()
        && let Ok(decoded) = serde_json::from_value::<Problem>(body.clone())
    {
        problem(&decoded);
    }
}

/// The relay closed a leg or a control channel with this code, of its own accord.
pub fn close(code: u16) {
    if let Some(reason) = CloseReason::from_code(code) {
        report(&format!("CloseReason::{reason:?}"));
    }
}

/// A device was sent this `cancel`.
pub fn cancel(code: CancelCode) {
    report(&format!("CancelCode::{code:?}"));
}

/// A device sent this `reject`.
pub fn reject(code: RejectCode) {
    report(&format!("RejectCode::{code:?}"));
}

fn report(code: &str) {
    static FILE: OnceLock<Option<Mutex<File>>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = std::env::var_os(REPORT)?;
        Some(Mutex::new(OpenOptions::new().append(true).create(true).open(path).expect("the report is opened")))
    });
    if let Some(file) = file {
        writeln!(file.lock().expect("the lock is not poisoned"), "{code}").expect("the report is written");
    }
}

/// Runs a scenario of this test binary by its name, in a process of its own, and returns the codes that it reported, such as `CancelCode::Killed`.
///
/// # Panics
/// If there is no such scenario, or it fails.
pub fn by(scenario: &str) -> BTreeSet<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("observed");
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", scenario, "--test-threads=1"]).env(REPORT, &report).envs(binaries().environment());
    let output = command.output().expect("this binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("test result: ok. 1 passed"), "{scenario}:\n{text}");
    std::fs::read_to_string(&report).unwrap_or_default().lines().map(str::to_owned).collect()
}
