//! Devices and callers that do not use legs again, as those of earlier versions: scenarios of this test binary are run a second time with them,
//! in a process of its own. The rest of the harness asks here which they are.

use std::process::Command;

use crate::programs::binaries;

/// Who does not use legs again, for the process of the scenarios that [`run`] starts.
const WITHOUT: &str = "MOORLINE_TESTS_WITHOUT_REUSE";

/// Who does not use legs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// The devices.
    Devices,
    /// The callers.
    Callers,
    /// Nobody does.
    Both,
}

impl Without {
    const ALL: [Self; 3] = [Self::Devices, Self::Callers, Self::Both];

    fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Callers => "callers",
            Self::Both => "both",
        }
    }

    fn here() -> Option<Self> {
        let written = std::env::var(WITHOUT).ok()?;
        Some(Self::ALL.into_iter().find(|without| without.name() == written).expect("one of the names"))
    }
}

/// Whether devices use legs again, here.
pub fn devices_reuse() -> bool {
    matches!(Without::here(), None | Some(Without::Callers))
}

/// Whether callers use legs again, here.
pub fn callers_reuse() -> bool {
    matches!(Without::here(), None | Some(Without::Devices))
}

/// Runs scenarios of this test binary, by their names.
///
/// # Panics
/// If one of them does not exist, or fails.
pub fn run(without: Without, scenarios: &[&str]) {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.arg("--exact").args(scenarios).arg("--test-threads=2").env(WITHOUT, without.name()).envs(binaries().environment());
    let output = command.output().expect("this binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all_passed = text.contains(&format!("test result: ok. {} passed", scenarios.len()));
    assert!(output.status.success() && all_passed, "without reuse by {without:?}:\n{text}");
}
