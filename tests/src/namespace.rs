//! A network namespace for a scenario, with names and a network of its own: the scenario runs in it in another process of the same test binary.

use std::time::Duration;

use tokio::process::Command;

use crate::programs::{binaries, run};

/// Tells the other process that it is in the namespace.
const INSIDE: &str = "MOORLINE_INSIDE_NAMESPACE";
/// A scenario in a namespace must end within this time.
const WITHIN: Duration = Duration::from_secs(300);

/// An address with a route and a link-layer address that nobody has: what is sent there is never answered, neither by a host nor by the kernel.
pub const SILENT: &str = "2001:db8::dead";

/// Prepares the namespace and runs the rest of the arguments in it. The first is the file that becomes /etc/hosts, the second further commands.
/// `ip` is not on everybody's path.
const SETUP: &str = r#"
    PATH="$PATH:/usr/sbin:/sbin"
    ip link set lo up
    ip link add name near type veth peer name far
    ip link set near up
    ip link set far up
    ip -6 address add 2001:db8::1/64 dev near nodad
    ip neighbour add 2001:db8::dead lladdr 02:00:00:00:de:ad dev near nud permanent
    mount --bind "$1" /etc/hosts
    eval "$2"
    shift 2
    exec "$@"
"#;

/// Whether this process is in the namespace of `scenario`, the name of the test that calls. If it is not, runs the scenario in one.
///
/// In it, `hosts` is /etc/hosts, [`SILENT`] is an address that never answers, and the shell commands of `more` have been run.
///
/// # Panics
/// If the scenario fails in the namespace, or there can be none: it needs root, or user namespaces.
pub async fn is_inside(scenario: &str, hosts: &str, more: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("hosts");
    std::fs::write(&file, hosts).expect("it is written");
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("Linux")) == 0;
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).args((!is_root).then_some("--map-root-user"));
    command.args(["sh", "-euc", SETUP, "sh"]).arg(&file).arg(more);
    command.arg(std::env::current_exe().expect("this binary")).args(["--exact", scenario, "--nocapture"]);
    let done = run(command.env(INSIDE, "1").envs(binaries().environment()), WITHIN).await;
    let passed = done.code == Some(0) && done.text().contains("test result: ok. 1 passed");
    assert!(passed, "{scenario} in a namespace:\n{}\n{}", done.text(), done.err);
    false
}
