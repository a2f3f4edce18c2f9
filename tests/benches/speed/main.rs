//! Speed and size of the real programs. Each figure is compared with a baseline that is measured in the same run.
//!
//! `cargo bench -p moorline-tests` measures everything and prints one table at its end; `-- splice open` measures these parts alone.
//! No measurement fails the bench: the table lists each figure with its goal.
//!
//! ```text
//!   bench process: the load ══ TLS ══▶ moorline-relay, a process of its own      one at a time,
//!                  the same ══ TLS ══▶ `speed --plain`, a process of its own     in turns
//! ```

mod ends;
mod idle;
mod line;
mod load;
mod open;
mod plain;
mod process;
mod remembered;
mod splice;
mod table;
mod trip;

use std::path::PathBuf;

use table::Table;
use tokio::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let [flag, folder] = &args[..]
        && flag == plain::FLAG
    {
        return runtime.block_on(plain::serve(&PathBuf::from(folder)));
    }
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit of file descriptors is raised");
    runtime.block_on(measure(&args));
}

async fn measure(parts: &[String]) {
    let begun = Instant::now();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let mut table = Table::default();
    if wanted("splice") {
        splice::measure(&mut table).await;
    }
    if wanted("open") {
        open::measure(&mut table).await;
    }
    if wanted("line") {
        line::measure(&mut table).await;
    }
    if wanted("trip") {
        trip::measure(&mut table).await;
    }
    if wanted("idle") {
        idle::measure(&mut table).await;
    }
    if wanted("ends") {
        ends::measure(&mut table).await;
    }
    if wanted("remembered") {
        remembered::measure(&mut table).await;
    }
    table.print(begun.elapsed());
}
