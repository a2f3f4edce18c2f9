//! The real binaries and other programs as child processes whose output lines can be awaited. Dropping one kills it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// A program must log an awaited line within this, or the scenario fails.
pub const LINE_WITHIN: Duration = Duration::from_secs(60);

/// How many lines of a program are shown when its scenario fails, and how much of each: the failure itself must stay visible.
const LAST_LINES: usize = 15;
const LAST_CHARS: usize = 400;

/// Where the three programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `moorline-relay`.
    pub relay: PathBuf,
    /// `moorline-agent`.
    pub agent: PathBuf,
    /// `moorline`.
    pub client: PathBuf,
}

/// Names of the programs for a process of the same test binary that need not build them again.
const BUILT: [&str; 3] = ["MOORLINE_BUILT_RELAY", "MOORLINE_BUILT_AGENT", "MOORLINE_BUILT_CLIENT"];

impl Binaries {
    /// Environment variables by which another process of the same test binary uses these programs and does not build them again.
    pub fn environment(&self) -> [(&'static str, &Path); 3] {
        let [relay, agent, client] = BUILT;
        [(relay, &self.relay), (agent, &self.agent), (client, &self.client)]
    }

    fn from_environment() -> Option<Self> {
        let [relay, agent, client] = BUILT.map(|name| std::env::var_os(name).map(PathBuf::from));
        Some(Self { relay: relay?, agent: agent?, client: client? })
    }
}

/// The programs, built from the current sources: once per process, never stale. In a release build, such as a
/// benchmark, they are release builds too.
pub fn binaries() -> &'static Binaries {
    static PROGRAMS: OnceLock<Binaries> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(built) = Binaries::from_environment() {
            return built;
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = std::process::Command::new(cargo)
            .args(["build", "--quiet", "--workspace", "--bins", "--message-format=json"])
            .args((!cfg!(debug_assertions)).then_some("--release"))
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(built.status.success(), "the programs are built");
        let messages: Vec<Value> = built.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let path = |name: &str| {
            let of = |message: &&Value| message["target"]["name"] == name && message["executable"].is_string();
            let found = messages.iter().find(of).and_then(|message| message["executable"].as_str());
            PathBuf::from(found.unwrap_or_else(|| panic!("cargo built no {name}")))
        };
        Binaries { relay: path("moorline-relay"), agent: path("moorline-agent"), client: path("moorline") }
    })
}

/// What a program has printed so far.
#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    more: watch::Sender<()>,
}

/// A running program. Killed when dropped; its last lines are shown if the scenario fails.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    output: Arc<Output>,
    reading: watch::Sender<bool>,
    readers: tokio::task::JoinSet<()>,
}

impl Program {
    /// Starts a program and reads its standard output and standard error line by line.
    pub fn start(name: &str, command: &mut Command) -> Self {
        Self::start_with_input(name, command, Stdio::null())
    }

    /// Starts a program as [`Program::start`], with this standard input. A listening socket there is a way to hand one over: nothing has to wait
    /// until the program listens.
    pub fn start_with_input(name: &str, command: &mut Command, input: impl Into<Stdio>) -> Self {
        let command = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} starts: {error}"));
        let output = Arc::new(Output::default());
        let mut readers = tokio::task::JoinSet::new();
        let reading = watch::Sender::new(true);
        readers.spawn(read(child.stdout.take().expect("it is piped"), Arc::clone(&output), reading.subscribe()));
        readers.spawn(read(child.stderr.take().expect("it is piped"), Arc::clone(&output), reading.subscribe()));
        Self { name: name.to_owned(), child, output, reading, readers }
    }

    /// Waits for the first line, printed already or later, for which `wanted` returns a value.
    pub async fn line<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let mut more = self.output.more.subscribe();
        let find = async {
            loop {
                more.mark_unchanged();
                if let Some(found) = self.lines().iter().find_map(|line| wanted(line)) {
                    return found;
                }
                more.changed().await.ok();
            }
        };
        timeout(LINE_WITHIN, find).await.unwrap_or_else(|_| panic!("{} never printed {what}:\n{}", self.name, self.lines().join("\n")))
    }

    /// The first JSON line with this message.
    pub async fn event(&self, message: &str) -> Value {
        self.line(message, |line| serde_json::from_str::<Value>(line).ok().filter(|line| line["message"] == message)).await
    }

    /// The number of JSON lines with this message so far.
    pub fn count(&self, message: &str) -> usize {
        self.lines().iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| line["message"] == message).count()
    }

    /// Waits until there are `count` JSON lines with this message.
    pub async fn events(&self, message: &str, count: usize) {
        let mut more = self.output.more.subscribe();
        let enough = async {
            while self.count(message) < count {
                more.changed().await.ok();
            }
        };
        timeout(LINE_WITHIN, enough)
            .await
            .unwrap_or_else(|_| panic!("{} did not print {message:?} often enough:\n{}", self.name, self.lines().join("\n")));
    }

    /// Stops reading its output. The pipes stay open and fill up.
    pub fn stop_reading(&self) {
        self.reading.send_replace(false);
    }

    /// Resumes reading its output, beginning with what the pipes hold.
    pub fn resume_reading(&self) {
        self.reading.send_replace(true);
    }

    /// All of its lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.output.lines.lock().expect("the lock is not poisoned").clone()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal by name: TERM, KILL, STOP, CONT, INT.
    pub fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "{} receives {name}", self.name);
    }

    /// Waits until it exits: the exit code, or `None` if a signal ended it.
    pub async fn ended(&mut self) -> Option<i32> {
        let status = timeout(LINE_WITHIN, self.child.wait()).await.unwrap_or_else(|_| panic!("{} does not exit", self.name));
        while self.readers.join_next().await.is_some() {}
        status.expect("a child is waited for").code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.lines();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].iter();
            let short: Vec<String> = last.map(|line| line.chars().take(LAST_CHARS).collect()).collect();
            println!("--- {} printed last:\n{}", self.name, short.join("\n"));
        }
    }
}

async fn read(pipe: impl AsyncRead + Unpin, output: Arc<Output>, mut reading: watch::Receiver<bool>) {
    let mut lines = BufReader::new(pipe).lines();
    loop {
        if reading.wait_for(|reading| *reading).await.is_err() {
            return; // the program's value is gone
        }
        let line = tokio::select! {
            line = lines.next_line() => line, // keeps a part of a line
            stopped = reading.wait_for(|reading| !reading) => match stopped {
                Ok(_) => continue,
                Err(_) => return,
            },
        };
        let Ok(Some(line)) = line else { return };
        output.lines.lock().expect("the lock is not poisoned").push(line);
        output.more.send_replace(());
    }
}

/// The outcome of a program that has exited.
#[derive(Debug)]
pub struct Done {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
}

impl Done {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Asserts exit code 0.
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "out: {}\nerr: {}", self.text(), self.err);
        self
    }
}

/// Runs a program to its end within `within`, with no standard input.
pub async fn run(command: &mut Command, within: Duration) -> Done {
    feed(command, Stdio::null(), within).await
}

/// Runs a program to its end within `within`, with this standard input.
pub async fn feed(command: &mut Command, input: impl Into<Stdio>, within: Duration) -> Done {
    let command = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let what = format!("{:?}", command.as_std());
    let child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
    let output = timeout(within, child.wait_with_output()).await.unwrap_or_else(|_| panic!("not done within {within:?}: {what}"));
    let output = output.expect("a child is waited for");
    Done { code: output.status.code(), out: output.stdout, err: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// A command by name.
pub fn command(name: impl AsRef<OsStr>) -> Command {
    Command::new(name)
}
