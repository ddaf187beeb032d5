//! `loadtest capacity`: latency, memory and disk as a data set grows.

use clap::Args;

use super::started::{Started, seconds};
use super::{Output, mebibytes};
use crate::scale::capacity::{Plan, Report, Step, run};
use crate::scale::cluster::Used;
use crate::scale::fill::DataSet;
use crate::scale::unless_interrupted;

/// Shown by `capacity --help`.
const AFTER: &str = "\
Every step is spread over the whole key space, and every measurement over all that has been loaded. Regions split by
themselves. With one store a data set takes a third of the disk.

Example:
  loadtest capacity --braid-bin target/release/braid --gigabytes 20 --stores 1 --keep-free 10";

/// Flags of `capacity`.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Capacity {
    #[command(flatten)]
    started: Started,
    /// GB of keys and values (10^9 bytes) at the end
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    gigabytes: f64,
    /// Steps in which they are loaded, each with a measurement
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: u64,
    /// Stores, each with a replica of everything: 1, 3 or 5
    #[arg(long, visible_alias = "replicas", value_name = "N", default_value_t = 3)]
    stores: usize,
    /// Regions that the keys are cut into at the beginning
    #[arg(long, value_name = "N", default_value_t = 1)]
    regions: u64,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    value_bytes: usize,
    /// Percent of each value that compress to nothing
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    compressible: u8,
    /// Operations per second while measuring, half of them puts, half linearizable gets
    #[arg(long, value_name = "N", default_value_t = 200.0)]
    rate: f64,
    /// Most operations in flight while measuring
    #[arg(long, value_name = "N", default_value_t = 128)]
    clients: usize,
    /// Clients while loading
    #[arg(long, value_name = "N", default_value_t = 32)]
    load_clients: u64,
    /// Puts of one transaction while loading
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=128))]
    load_batch: u64,
    /// Length of each measurement
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    seconds: f64,
    /// Time before each measurement, under the same load
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    warmup_seconds: f64,
    /// GB of the disk that must stay free: loading ends before
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    keep_free: f64,
}

impl Capacity {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (binary, folder, plan) = (self.started.binary()?, self.started.folder()?, self.plan()?);
        let output = self.started.output;
        if output == Output::Human {
            println!(
                "    GB    keys/s  put p50  put p99  get p50  get p99  failed  regions  memory of stores  others, MiB  \
                 data folders"
            );
        }
        let tell = |step: &Step| {
            if output == Output::Human {
                line(step);
            }
        };
        let report = unless_interrupted(run(&binary, &plan, folder.path(), tell)).await?;
        output.print(&report, summary)
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        anyhow::ensure!(
            self.keep_free.is_finite() && self.keep_free >= 0.0,
            "--keep-free {}: it must not be below 0",
            self.keep_free
        );
        let data = DataSet::of_gigabytes(self.gigabytes, "bench/", self.value_bytes, self.compressible)?;
        Ok(Plan {
            data: DataSet { steps: self.steps, ..data },
            stores: self.stores,
            placements: self.started.placements(),
            proxies: self.started.proxies(),
            regions: self.regions,
            fillers: self.load_clients,
            batch: self.load_batch,
            clients: self.clients,
            rate: self.rate,
            warmup: seconds("--warmup-seconds", self.warmup_seconds)?,
            duration: seconds("--seconds", self.seconds)?,
            keep_free: (self.keep_free * 1e9) as u64,
            store_flags: self.started.store_flags.clone(),
            seed: self.started.seed,
        })
    }
}

fn line(step: &Step) {
    let (puts, gets) = (&step.window.puts, &step.window.gets);
    let [a, b, c, d] = [puts.p50_us, puts.p99_us, gets.p50_us, gets.p99_us].map(|micros| micros / 1e3);
    let of = |stores: bool, what: fn(&Used) -> u64| {
        let chosen = step.processes.iter().filter(|(name, _)| name.starts_with("store-") == stores);
        chosen.map(|(_, used)| format!("{:.0}", mebibytes(what(used)))).collect::<Vec<_>>().join("/")
    };
    println!(
        "{:>6.2}{:>10.0}{a:>9.2}{b:>9.2}{c:>9.2}{d:>9.2}{:>8}{:>9}{:>18}{:>13}  {}",
        step.user_bytes as f64 / 1e9,
        step.load_keys_per_second,
        step.window.failed,
        step.regions,
        of(true, |used| used.resident_bytes),
        of(false, |used| used.resident_bytes),
        of(true, |used| used.disk_bytes),
    );
}

fn summary(report: &Report) {
    if let (Some(first), Some(last)) = (report.steps.first(), report.steps.last()) {
        let grown = |what: fn(&Step) -> f64| what(last) / what(first);
        println!(
            "from {:.2} to {:.2} GB: p99 of puts x {:.2}, of gets x {:.2}",
            first.user_bytes as f64 / 1e9,
            last.user_bytes as f64 / 1e9,
            grown(|step| step.window.puts.p99_us),
            grown(|step| step.window.gets.p99_us)
        );
    }
    if let Some(why) = &report.ended_early {
        println!("ENDED EARLY     {why}");
    }
    report.errors.iter().for_each(|(error, count)| println!("FAILED          {count} x {error}"));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::{Cli, Command};

    fn plan(flags: &[&str]) -> anyhow::Result<Plan> {
        let cli = Cli::try_parse_from(["loadtest", "capacity"].iter().chain(flags))?;
        let Command::Capacity(capacity) = cli.command else { panic!("another command") };
        capacity.plan()
    }

    #[test]
    fn replicas_is_another_word_for_stores() {
        let plan = plan(&["--replicas", "1", "--gigabytes", "1", "--steps", "4"]).unwrap();
        assert_eq!((plan.stores, plan.data.steps, plan.keep_free), (1, 4, 10_000_000_000));
        assert_eq!((0..4).map(|step| plan.data.step_keys(step)).sum::<u64>(), plan.data.space.count);
    }

    #[test]
    fn wrong_flags_are_told_what_would_be_right() {
        for (flags, want) in [(&["--keep-free=-1"][..], "--keep-free"), (&["--gigabytes", "nan"], "--gigabytes")] {
            let error = format!("{:#}", plan(flags).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }
}
