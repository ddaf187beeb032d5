//! `loadtest growth`: throughput at growing numbers of stores with an equal share of a CPU each.

use std::path::Path;

use clap::Args;

use super::run::threads;
use super::started::{Started, seconds};
use super::{Output, mebibytes};
use crate::keys::KeySpace;
use crate::scale::cgroup::{Limiter, ROOT};
use crate::scale::growth::{Measured, Plan, Row, run};
use crate::scale::unless_interrupted;
use crate::workload::Workload;

/// Shown by `growth --help`.
const AFTER: &str = "\
Each store is a process in a control group of its own (version 1 or 2, which takes root); placement, proxies and this
program have as much CPU as they want. Stores limit if they are throttled most of the time, and the rest of the machine
is not: look at `throttled` and at the CPU of proxies.

Example:
  loadtest growth --braid-bin target/release/braid --stores 3,6,9 --store-cpu-percent 8 --seconds 30";

/// Flags of `growth`.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Growth {
    #[command(flatten)]
    started: Started,
    /// Numbers of stores, one measured after the other
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "3,6,9")]
    stores: Vec<usize>,
    /// Share of one CPU that each store has; 0: as much as it wants
    #[arg(long, value_name = "PERCENT", default_value_t = 8.0)]
    store_cpu_percent: f64,
    /// Regions that the keys are cut into
    #[arg(long, value_name = "N", default_value_t = 48)]
    regions: u64,
    /// Keys
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 256)]
    value_bytes: usize,
    /// What is measured
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "put,get")]
    workloads: Vec<Measure>,
    /// Clients for each store, each with one operation in flight: enough that the stores are what limits
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    clients_per_store: u16,
    /// Threads of the load generator [default: one for each CPU]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Length of each measurement
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    seconds: f64,
    /// Time before each measurement, under the same load
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    warmup_seconds: f64,
    /// How long a rebalance may take
    #[arg(long, value_name = "S", default_value_t = 600.0)]
    balance_seconds: f64,
}

/// A workload that grows with the stores.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Measure {
    /// Uniform puts
    Put,
    /// Uniform linearizable gets
    Get,
}

impl Measure {
    fn workload(self) -> Workload {
        match self {
            Self::Put => Workload::Put,
            Self::Get => Workload::Get,
        }
    }
}

impl Growth {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (binary, folder, plan) = (self.started.binary()?, self.started.folder()?, self.plan()?);
        let output = self.started.output;
        if output == Output::Human {
            println!(
                "stores  workload      ops/s  ratio   p50 ms   p99 ms  CPU of stores  throttled  proxies  placement"
            );
        }
        let tell = |row: &Row, first: &Row| {
            if output == Output::Human {
                print(row, first);
            }
        };
        let rows = unless_interrupted(run(&binary, &plan, folder.path(), tell)).await?;
        output.print(&rows, |_| ())
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        Ok(Plan {
            stores: self.stores.clone(),
            limiter: match self.store_cpu_percent == 0.0 {
                true => None,
                false => Some(Limiter::new(Path::new(ROOT), self.store_cpu_percent)?),
            },
            placements: self.started.placements(),
            proxies: self.started.proxies(),
            regions: self.regions,
            keys: KeySpace { prefix: "bench/".to_owned(), count: self.keys, value_bytes: self.value_bytes },
            workloads: self.workloads.iter().map(|measure| measure.workload()).collect(),
            clients_per_store: usize::from(self.clients_per_store),
            threads: self.threads.unwrap_or_else(threads),
            warmup: seconds("--warmup-seconds", self.warmup_seconds)?,
            duration: seconds("--seconds", self.seconds)?,
            patience: seconds("--balance-seconds", self.balance_seconds)?,
            store_flags: self.started.store_flags.clone(),
            seed: self.started.seed,
        })
    }
}

fn print(row: &Row, first: &Row) {
    let moved = &row.rebalanced;
    println!(
        "{:>6}  balanced after {:.1} s: {} replicas moved, {:.1} MiB; replicas {:?}, leaders {:?}",
        row.stores,
        moved.seconds,
        moved.replicas_moved,
        mebibytes(moved.bytes_moved),
        moved.replicas.values().collect::<Vec<_>>(),
        moved.leaders.values().collect::<Vec<_>>()
    );
    for (now, first) in row.measured.iter().zip(&first.measured) {
        let Measured { report, .. } = now;
        let throttled: Vec<f64> = now.throttled_percent.values().copied().collect();
        println!(
            "{:>6}  {:<9} {:>9.0} {:>6.2} {:>8.2} {:>8.2}  {:>13} {:>10} {:>7.0}% {:>9.0}%",
            row.stores,
            report.workload,
            report.operations_per_second,
            report.operations_per_second / first.report.operations_per_second,
            report.latency.p50_us / 1e3,
            report.latency.p99_us / 1e3,
            span(&of_role(now, "store-")),
            span(&throttled),
            of_role(now, "proxy-").iter().sum::<f64>(),
            of_role(now, "placement-").iter().sum::<f64>(),
        );
    }
}

/// CPU of the processes of a role.
fn of_role(measured: &Measured, role: &str) -> Vec<f64> {
    measured.cpu_percent.iter().filter(|(name, _)| name.starts_with(role)).map(|(_, percent)| *percent).collect()
}

/// The lowest and the highest of some percentages.
fn span(percents: &[f64]) -> String {
    match percents.iter().copied().reduce(f64::min).zip(percents.iter().copied().reduce(f64::max)) {
        Some((low, high)) => format!("{low:.1}..{high:.1}%"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::{Cli, Command};

    #[test]
    fn percentages_are_shown_by_their_span() {
        assert_eq!(span(&[7.95, 8.0, 3.01]), "3.0..8.0%");
        assert_eq!(span(&[]), "-");
    }

    fn plan(flags: &[&str]) -> anyhow::Result<Plan> {
        let cli = Cli::try_parse_from(["loadtest", "growth"].iter().chain(flags))?;
        let Command::Growth(growth) = cli.command else { panic!("another command") };
        growth.plan()
    }

    #[test]
    fn flags_make_a_plan() {
        let plan = plan(&["--store-cpu-percent", "0", "--stores", "3,5", "--placements", "3"]).unwrap();
        assert_eq!((plan.limiter, plan.stores, plan.placements, plan.clients_per_store), (None, vec![3, 5], 3, 128));
    }

    #[test]
    fn wrong_flags_are_told_what_would_be_right() {
        for (flags, want) in [
            (&["--store-cpu-percent", "0.05"][..], "at least 0.1 %"),
            (&["--store-cpu-percent", "0", "--seconds=-1"], "--seconds"),
        ] {
            let error = format!("{:#}", plan(flags).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }
}
