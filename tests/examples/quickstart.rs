//! `cargo quickstart`: a relay, a device and forwards as the real programs, in a folder of their own, to try by hand.
//! `cargo quickstart -- --check` runs the exchanges itself, prints one line for each with its result and how long opening took, and exits.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use moorline::Timeline;
use moorline::timeline::describe;
use moorline_tests::programs::run;
use moorline_tests::sshd::{SSHD, Sshd, user};
use moorline_tests::targets::Target;
use moorline_tests::world::{Device, Forward, World};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

const DEVICE: &str = "lamp-1";
const WITHIN: Duration = Duration::from_secs(60);
const PAGE: &str = "hello from lamp-1\n";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let check = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--check"] => true,
        _ => {
            eprintln!("usage: cargo quickstart [-- --check]\n\n{}", include_str!("quickstart.txt"));
            return ExitCode::from(2);
        }
    };
    eprintln!("building the three programs, then starting them…");
    let scene = Scene::set().await;
    if check {
        return scene.check().await;
    }
    scene.explain();
    let mut terminate = signal(SignalKind::terminate()).expect("signals are handed out");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("\nstopped; nothing is left behind");
    ExitCode::SUCCESS
}

/// The running programs. Dropping it ends the programs and removes their folder.
struct Scene {
    sshd: Option<Sshd>,
    forward: Forward,
    _device: Device,
    _page: Target,
    world: World,
}

impl Scene {
    async fn set() -> Self {
        let world = World::start().await;
        let page = page().await;
        let sshd = if Path::new(SSHD).exists() { Sshd::start().await.map_err(|why| eprintln!("no sshd: {why}")).ok() } else { None };
        let mut services: Vec<(&str, SocketAddr)> = vec![("http", page.address)];
        services.extend(sshd.as_ref().map(|sshd| ("ssh", sshd.address)));
        let device = world.device(DEVICE, &services).await;
        let names: Vec<&str> = services.iter().map(|(name, _)| *name).collect();
        let forward = world.forward(DEVICE, &names).await;
        Self { sshd, forward, _device: device, _page: page, world }
    }

    fn explain(&self) {
        let client = self.world.client();
        let moorline = std::iter::once(client.as_std().get_program()).chain(client.as_std().get_args());
        let moorline: Vec<String> = moorline.map(|word| format!("'{}'", word.display())).collect();
        let moorline = moorline.join(" ");
        println!("A relay, a device named {DEVICE} and forwards are running. Try, in another terminal:\n");
        println!("  the device's web page, through a forwarded port:\n    curl http://{}/\n", self.forward.local[0]);
        match &self.sshd {
            Some(sshd) => {
                let options = sshd.options().join(" ");
                println!("  a shell on the device, by its id:\n    {moorline} ssh {}@{DEVICE} -- {options}\n", user());
                println!(
                    "  the same through a forwarded port:\n    ssh {options} -p {} {}@127.0.0.1\n",
                    self.forward.local[1].port(),
                    user()
                );
            }
            None => println!("  (no sshd is installed here, so there is no ssh to try: apt install openssh-server)\n"),
        }
        println!("  what the relay knows of its devices:\n    {moorline} device list\n");
        println!("Ctrl-C stops everything and cleans up.");
    }

    async fn check(&self) -> ExitCode {
        let curl = run(Command::new("curl").arg("-sS").arg(format!("http://{}/", self.forward.local[0])), WITHIN).await;
        let http = if curl.text() == PAGE { Ok(()) } else { Err(format!("curl: {}{}", curl.text(), curl.err)) };
        let ssh = match &self.sshd {
            None => None,
            Some(sshd) => {
                let done = run(sshd.ssh(&self.world.proxy_command(DEVICE), DEVICE).arg("echo over; echo ssh; exit 7"), WITHIN).await;
                let good = done.code == Some(7) && done.text() == "over\nssh\n";
                Some(if good { Ok(()) } else { Err(format!("ssh ended with {:?}: {}{}", done.code, done.text(), done.err)) })
            }
        };
        let mut faults = Vec::new();
        for (service, exchange) in [("http", Some(http)), ("ssh", ssh)] {
            let outcome = match exchange {
                None => "not tried: no sshd is installed".to_owned(),
                Some(exchange) => match (exchange, self.open(service).await) {
                    (Ok(()), Ok(timeline)) => format!("ok, {}", describe(&timeline)),
                    (exchange, opened) => {
                        faults.extend([exchange.err(), opened.err()].into_iter().flatten());
                        "FAILED".to_owned()
                    }
                },
            };
            println!("{service} through the relay: {outcome}");
        }
        for fault in &faults {
            eprintln!("{fault}");
        }
        if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Opens one more stream to a service, and returns its timeline as the relay reports it.
    async fn open(&self, service: &str) -> Result<Timeline, String> {
        let (device, service) = (DEVICE.parse().expect("a device id"), service.parse().expect("a service name"));
        let stream = self.world.library().open(&device, &service).await.map_err(|error| error.to_string())?;
        let timeline = *stream.timeline();
        stream.reset().await;
        Ok(timeline)
    }
}

async fn page() -> Target {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    Target::start(|mut tcp| async move {
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{PAGE}", PAGE.len());
        let mut head = [0; 4096];
        if matches!(tcp.read(&mut head).await, Ok(1..)) {
            tcp.write_all(answer.as_bytes()).await.ok();
            tcp.shutdown().await.ok();
        }
    })
    .await
}
