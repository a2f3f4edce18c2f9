//! The table at the end: each figure with its baseline, and their ratio with its goal.

use std::time::Duration;

/// One line of the table.
#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    ours: f64,
    beside: Option<f64>,
    ratio: Option<f64>,
    reach: &'static str,
}

/// What was measured so far.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    /// A figure with its baseline, and the goal of their ratio.
    pub fn beside(&mut self, what: impl Into<String>, unit: &'static str, ours: f64, beside: f64, reach: &'static str) {
        let ratio = Some(ours / beside);
        self.add(Row { what: what.into(), unit, ours, beside: Some(beside), ratio, reach });
    }

    /// The same, with the median of the ratios of each round.
    pub fn paired(&mut self, what: impl Into<String>, unit: &'static str, ours: f64, beside: f64, ratio: f64, reach: &'static str) {
        self.add(Row { what: what.into(), unit, ours, beside: Some(beside), ratio: Some(ratio), reach });
    }

    /// A figure without a baseline.
    pub fn alone(&mut self, what: impl Into<String>, unit: &'static str, ours: f64, reach: &'static str) {
        self.add(Row { what: what.into(), unit, ours, beside: None, ratio: None, reach });
    }

    /// Adds a note below the table.
    pub fn note(&mut self, words: impl Into<String>) {
        self.notes.push(words.into());
    }

    fn add(&mut self, row: Row) {
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    /// Prints it as Markdown.
    pub fn print(&self, took: Duration) {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!("\n{cores} cores, {:.0} s, release build, loopback\n", took.as_secs_f64());
        println!("| {:<58} | {:<8} | {:>9} | {:>9} | {:>6} | {:<22} |", "what", "unit", "moorline", "beside", "ratio", "to reach");
        println!("| {:-<58} | {:-<8} | {:->8}: | {:->8}: | {:->5}: | {:-<22} |", "", "", "", "", "", "");
        self.rows.iter().for_each(|row| println!("{}", line(row)));
        println!();
        self.notes.iter().for_each(|note| println!("- {note}"));
    }
}

fn line(row: &Row) -> String {
    let beside = row.beside.map(figure).unwrap_or_default();
    let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
    format!("| {:<58} | {:<8} | {:>9} | {beside:>9} | {ratio:>6} | {:<22} |", row.what, row.unit, figure(row.ours), row.reach)
}

/// Rounds to three significant digits.
fn figure(value: f64) -> String {
    match value {
        0.0..1.0 => format!("{value:.3}"),
        1.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Repeated measurements of one value.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<f64>);

impl Spread {
    /// Adds a measurement.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// A percentile.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The mean.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}
