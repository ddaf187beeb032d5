//! `loadtest watch-regions`: a watch over everything on braid with many regions, of which one is busy.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Output, mebibytes};
use crate::cluster::{Binary, Setup, System, disk_folder};
use crate::watch::regions::{Phase, Plan, run};

/// Flags of `watch-regions`.
#[derive(Debug, Args)]
pub struct WatchRegions {
    /// The braid program
    #[arg(long, value_name = "FILE")]
    braid_bin: PathBuf,
    /// Numbers of regions, each on a cluster of its own
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,1000,10000")]
    regions: Vec<u32>,
    /// Puts per second, into one region
    #[arg(long, value_name = "N", default_value_t = 200.0)]
    rate: f64,
    /// Length of a phase
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Time before the first phase
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    settle_seconds: f64,
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

impl WatchRegions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let binary = Binary::new(System::Braid, &self.braid_bin)?;
        let mut reports = Vec::new();
        for &regions in &self.regions {
            let plan = Plan {
                regions,
                rate: self.rate,
                phase: Duration::try_from_secs_f64(self.seconds).context("--seconds")?,
                settle: Duration::try_from_secs_f64(self.settle_seconds).context("--settle-seconds")?,
                setup: Setup { flags: self.flags.clone(), ..Setup::default() },
            };
            let folder = disk_folder(self.work_dir.as_deref())?;
            let report = run(&binary, &plan, folder.path(), |phase| eprintln!("{regions} regions, {}", line(phase)));
            reports.push(report.with_context(|| format!("{regions} regions"))?);
        }
        self.output.print(&reports, |reports| {
            for report in reports {
                let memory = mebibytes(report.resident_bytes);
                println!(
                    "{} regions: ready after {:.1} s, {memory:.0} MiB in all members at the end",
                    report.regions, report.ready_seconds
                );
                report.phases.iter().for_each(|phase| println!("  {}", line(phase)));
            }
        })
    }
}

fn line(phase: &Phase) -> String {
    let Phase { name, server_cpu_ms_per_second: cpu, packets_per_second: packets, proposals_per_second, .. } = phase;
    let latency = phase.events.as_ref().zip(phase.puts.as_ref()).map(|(events, puts)| {
        let [e50, e99, p50, p99] = [events.p50_us, events.p99_us, puts.p50_us, puts.p99_us].map(|micros| micros / 1e3);
        format!(", event p50 {e50:.2} p99 {e99:.2} ms, put p50 {p50:.2} p99 {p99:.2} ms")
    });
    format!(
        "{name:<17} {cpu:>7.1} ms CPU/s of all servers, {packets:>8.0} packets/s, {proposals_per_second:>7.1} proposals/s{}",
        latency.unwrap_or_default()
    )
}
