//! `loadtest run`: measures one workload on a running cluster.

use std::time::Duration;

use clap::Args;

use super::{Endpoints, Output, WatchShape, block_on};
use crate::keys::{Distribution, KeySpace};
use crate::measure::Measure;
use crate::runner::Plan;
use crate::workload::Workload;

/// What each workload does, for `run --help`.
const WORKLOADS: &str = "\
Workloads (capital letters are numbers that you choose):
  put                     put a random value at the next key
  get, get-serializable   read one key
  range-N                 read all of exactly N keys
  range-limit-L-of-N      read the first L keys of a range of N, which also counts them
  keys-only-N             read N keys without their values
  count-only, count-only-N  count all keys, or N
  page-L-count            read the first L of all keys, with the exact count of all
  page-L                  walk over all keys in pages of L, at one revision
  txn                     compare the mod_revision of the worker's own key and put it
  txn-spread              the same with a second key half the key space away: over two regions where there are any
  mixed, mixed-READS      READS gets in 100 operations (70); of the rest two thirds puts, one third transactions
  delete                  put a key, delete it
  load                    put each key once: fills the cluster to --keys or to --gigabytes
  kubernetes              what API servers do: node heartbeats, optimistic updates of pods, lists in pages, events with
                          a TTL, watches on everything, compaction. --keys is the number of pods
  lease-keepalive         keep one lease for each client alive
  lease-churn             grant, put with the lease, revoke
  lease-expiry            puts beside leases of 1,000 keys of which one expires every second; needs --rate
  lock, lock-service      all clients want one lock, by the clients' recipe or by the server's
  put-idle-watchers       puts while 10,000 watches look elsewhere
  watch-fanout            --clients watches see every put
  watch-keys              --clients watches, each on a key of its own
  watch-latency           ten watches on a sixteenth of the keys; needs --rate
  watch-latency-everything  the same on all keys; needs --rate

Examples:
  loadtest run --workload put --clients 256 --seconds 30
  loadtest run --workload get --rate 5000 --distribution zipf --output json
  loadtest run --workload load --gigabytes 2 --value-bytes 1000
  loadtest run --workload kubernetes --keys 50000 --seconds 900 --compaction-seconds 180";

/// Flags of `run`.
#[derive(Debug, Args)]
#[command(after_help = WORKLOADS)]
pub struct Run {
    #[command(flatten)]
    endpoints: Endpoints,
    /// What to measure: see below
    #[arg(long, value_name = "NAME")]
    workload: Measure,
    /// Workers, each with one operation in flight; watches, if these are measured
    #[arg(long, value_name = "N", default_value_t = 64)]
    clients: usize,
    /// TCP connections, spread over the endpoints
    #[arg(long, value_name = "N", default_value_t = 8)]
    connections: usize,
    /// Threads of the load generator [default: one for each CPU]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Length of the measurement
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// Time before the measurement
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup_seconds: f64,
    /// Open loop: so many operations per second of all workers together, latency counted from the intended start. At
    /// most --clients are in flight; the report says so if the server cannot keep up [default: closed loop, each worker
    /// starts its next operation when the last one is done]
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Keys; those that a workload reads are put first, unless they are there
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,
    /// load: as many keys as make so many GB (10^9 bytes of keys and values), instead of --keys
    #[arg(long, value_name = "N", conflicts_with = "keys")]
    gigabytes: Option<f64>,
    /// Bytes of a key: filled up between prefix and number [default: the prefix and ten digits]
    #[arg(long, value_name = "N")]
    key_bytes: Option<usize>,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 256)]
    value_bytes: usize,
    /// Prefix of the keys; kubernetes has its own
    #[arg(long, value_name = "PREFIX", default_value = "bench/")]
    prefix: String,
    /// Order of the keys: uniform (random), sequential, zipf or zipf:EXPONENT (0.99)
    #[arg(long, value_name = "NAME", default_value = "uniform")]
    distribution: Distribution,
    /// Seed of keys and values
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Process ids of local servers, whose CPU time is to be measured along
    #[arg(long, value_name = "PID,..", value_delimiter = ',')]
    server_pids: Vec<u32>,
    /// kubernetes: from one compaction to the next [default: 300]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    compaction_seconds: Option<u32>,
    /// kubernetes: TTL of events [default: 3600]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    event_ttl_seconds: Option<u32>,
    #[command(flatten)]
    shape: WatchShape,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (output, measure, shape) = (self.output, self.measure()?, self.shape.change());
        let plan = self.plan()?;
        anyhow::ensure!(!measure.needs_rate() || plan.rate.is_some(), "{measure} needs --rate: puts per second");
        block_on(measure.fill(&plan))?;
        let bar = measure.bar(&plan);
        let report = measure.run(&plan, shape, &bar)?;
        bar.finish_and_clear();
        output.print(&report, |report| print!("{report}"))?;
        anyhow::ensure!(report.failed() == 0, "{} operations failed", report.failed());
        anyhow::ensure!(report.unfinished == 0, "{} clients never got an answer", report.unfinished);
        Ok(())
    }

    /// The workload with the flags that are its own.
    fn measure(&self) -> anyhow::Result<Measure> {
        anyhow::ensure!(
            self.gigabytes.is_none() || self.workload == Measure::Load,
            "--gigabytes is for --workload load; {} takes --keys",
            self.workload
        );
        let Measure::Operations(Workload::Kubernetes(mut settings)) = self.workload else {
            anyhow::ensure!(
                self.compaction_seconds.is_none() && self.event_ttl_seconds.is_none(),
                "--compaction-seconds and --event-ttl-seconds are for --workload kubernetes"
            );
            return Ok(self.workload);
        };
        settings.compaction_seconds = self.compaction_seconds.unwrap_or(settings.compaction_seconds);
        settings.event_ttl_seconds = self.event_ttl_seconds.unwrap_or(settings.event_ttl_seconds);
        Ok(Measure::Operations(Workload::Kubernetes(settings)))
    }

    fn plan(self) -> anyhow::Result<Plan> {
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value).map_err(|error| anyhow::anyhow!("{name} {value}: {error}"))
        };
        let keys = KeySpace { prefix: self.prefix, count: self.keys, value_bytes: self.value_bytes };
        let mut keys = match self.key_bytes {
            Some(key_bytes) => keys.with_key_bytes(key_bytes)?,
            None => keys,
        };
        if let Some(gigabytes) = self.gigabytes {
            anyhow::ensure!(gigabytes > 0.0, "--gigabytes {gigabytes}: it must be above 0");
            keys.count = (gigabytes * 1e9 / keys.entry_bytes() as f64).ceil() as u64;
        }
        Ok(Plan {
            workload: Workload::Put,
            endpoints: self.endpoints.endpoints,
            clients: self.clients,
            connections: self.connections,
            threads: self.threads.unwrap_or_else(threads),
            warmup: seconds("--warmup-seconds", self.warmup_seconds)?,
            duration: seconds("--seconds", self.seconds)?,
            rate: self.rate,
            keys,
            distribution: self.distribution,
            seed: self.seed,
            servers: self.server_pids,
        })
    }
}

/// A thread for each CPU.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::{Cli, Command};

    fn parsed(flags: &[&str]) -> anyhow::Result<(Measure, Plan)> {
        let cli = Cli::try_parse_from(["loadtest", "run"].iter().chain(flags))?;
        let Command::Run(run) = cli.command else { panic!("another command") };
        Ok((run.measure()?, run.plan()?))
    }

    #[test]
    fn every_workload_is_in_the_help() {
        for name in Measure::names() {
            assert!(WORKLOADS.contains(name), "{name}");
        }
    }

    #[test]
    fn gigabytes_are_turned_into_keys() {
        let (_, plan) = parsed(&["--workload", "load", "--gigabytes", "1", "--value-bytes", "984"]).unwrap();
        assert_eq!((plan.keys.count, plan.keys.entry_bytes()), (1_000_000, 1_000));
    }

    #[test]
    fn settings_reach_the_workload_they_belong_to() {
        let (measure, _) = parsed(&["--workload", "kubernetes", "--compaction-seconds", "5"]).unwrap();
        let Measure::Operations(Workload::Kubernetes(settings)) = measure else { panic!("{measure}") };
        assert_eq!((settings.compaction_seconds, settings.event_ttl_seconds), (5, 3_600));
    }

    #[test]
    fn wrong_flags_are_told_what_would_be_right() {
        for (flags, want) in [
            (&["--workload", "puts"][..], "did you mean put?"),
            (&["--workload", "range-x"], "must be a number"),
            (&["--workload", "put", "--gigabytes", "1"], "takes --keys"),
            (&["--workload", "put", "--compaction-seconds", "9"], "are for --workload kubernetes"),
            (&["--workload", "put", "--key-bytes", "3"], "give at least 16"),
            (&["--workload", "put", "--distribution", "pareto"], "uniform, sequential, zipf"),
            (&["--workload", "put", "--seconds=-1"], "--seconds"),
            (&["--workload", "load", "--gigabytes=-1"], "above 0"),
        ] {
            let error = parsed(flags).unwrap_err().to_string();
            assert!(error.contains(want), "{flags:?}: {error}");
        }
    }
}
