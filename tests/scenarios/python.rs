//! A device and a caller in Python, written from docs/PROTOCOL.md alone: against the real programs and against each other.

use std::process::Stdio;
use std::time::Duration;

use moorline_tests::patterns::pattern;
use moorline_tests::programs::{Program, command, feed, run};
use moorline_tests::sshd::Sshd;
use moorline_tests::targets::file_hash;
use moorline_tests::world::World;
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(120);

fn example(name: &str) -> Command {
    let mut python = command("/usr/bin/python3");
    python.arg(format!("{}/../docs/examples/{name}", env!("CARGO_MANIFEST_DIR")));
    python
}

async fn device(world: &World, id: &str, sshd: &Sshd) -> Program {
    let key = world.path(&format!("{id}.key"));
    let public = run(example("device.py").arg("--make-key").arg(&key), WITHIN).await.success();
    world.add(id, &public.out).await;
    let mut python = example("device.py");
    python.arg("--join").arg(world.join_file()).args(["--device", id]).arg("--key").arg(&key).arg(format!("ssh={}", sshd.address));
    let before = world.relay.count("device online");
    let device = Program::start("device.py", &mut python);
    world.relay.events("device online", before + 1).await;
    device
}

fn proxy(world: &World, device: &str, more: &str) -> String {
    let caller = format!("{}/../docs/examples/caller.py", env!("CARGO_MANIFEST_DIR"));
    format!(
        "/usr/bin/python3 '{caller}' --join '{}' --token-file '{}' {more} {device} ssh",
        world.join_file().display(),
        world.token_file().display()
    )
}

/// Runs a remote command with an exit code, and copies a file in each direction to its end.
async fn ssh_works(world: &World, sshd: &Sshd, proxy: &str, device: &str) {
    let done = run(sshd.ssh(proxy, device).arg("echo over; exit 5"), WITHIN).await;
    assert_eq!((done.code, done.text().as_str()), (Some(5), "over\n"), "{}", done.err);
    let (here, there) = (world.path("here"), world.path(&format!("there-{device}")));
    std::fs::write(&here, pattern(11, 0, 8 << 20)).expect("a file is written");
    let input = std::fs::File::open(&here).expect("the file is there");
    feed(sshd.ssh(proxy, device).arg(format!("cat > {}", there.display())), Stdio::from(input), WITHIN).await.success();
    assert_eq!(file_hash(&there), file_hash(&here));
    let back = run(sshd.ssh(proxy, device).arg(format!("cat {}", there.display())), WITHIN).await.success();
    assert!(back.out == std::fs::read(&here).expect("the file is there"), "the same bytes come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_python_serves_the_real_client() {
    let (world, sshd) = (World::start().await, Sshd::start().await.expect("openssh-server is installed"));
    let device = device(&world, "snake-1", &sshd).await;
    ssh_works(&world, &sshd, &world.proxy_command("snake-1"), "snake-1").await;
    // The three of them, one after the other, needed no leg each.
    device.line("an offer on an idle leg", |line| line.contains("is offered on an idle leg").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_in_python_reaches_the_real_agent_in_one_request_and_in_two() {
    let (world, sshd) = (World::start().await, Sshd::start().await.expect("openssh-server is installed"));
    let _device = world.device("lamp-1", &[("ssh", sshd.address)]).await;
    for more in ["", "--direct"] {
        ssh_works(&world, &sshd, &proxy(&world, "lamp-1", more), "lamp-1").await;
    }
    let refused = run(&mut example_caller(&world, "lamp-2"), WITHIN).await;
    assert!(refused.code != Some(0) && refused.err.contains("device_unknown"), "{:?} {}", refused.code, refused.err);
}

fn example_caller(world: &World, device: &str) -> Command {
    let mut caller = example("caller.py");
    caller.arg("--join").arg(world.join_file()).arg("--token-file").arg(world.token_file()).args([device, "ssh"]);
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_in_python_reaches_a_device_in_python() {
    let (world, sshd) = (World::start().await, Sshd::start().await.expect("openssh-server is installed"));
    let _device = device(&world, "snake-1", &sshd).await;
    ssh_works(&world, &sshd, &proxy(&world, "snake-1", ""), "snake-1").await;
}
