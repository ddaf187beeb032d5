//! `loadtest run`: measures one workload on a running cluster.

use std::time::Duration;

use clap::Args;

use super::{Endpoints, Output, WatchShape, block_on, loader};
use crate::keys::{Distribution, KeySpace};
use crate::measure::Measure;
use crate::progress;
use crate::runner::Plan;
use crate::session::{Policy, Pool};
use crate::workload::Workload;

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    endpoints: Endpoints,
    /// put, get, get-serializable, txn (compare the worker's own key, put it), txn-spread, mixed, put-idle-watchers,
    /// watch-fanout (all watch one prefix), watch-keys (each its own key), watch-latency (a sixteenth of the keys) or
    /// watch-latency-everything; lease-keepalive, lease-churn (grant, put, revoke), lock (the clients' recipe),
    /// lock-service (the server's), lease-expiry (puts, with and without a lease of 1,000 keys expiring every second).
    /// watch-latency, watch-latency-everything and lease-expiry need --rate
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
    /// Operations per second of all workers together, latency counted from the scheduled start [default: as many as
    /// possible]
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Keys
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 256)]
    value_bytes: usize,
    /// Prefix of the keys
    #[arg(long, value_name = "PREFIX", default_value = "bench/")]
    prefix: String,
    /// Order of the keys: uniform (random) or sequential
    #[arg(long, value_name = "NAME", default_value = "uniform")]
    distribution: Distribution,
    /// Seed of keys and values
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Process ids of local servers, whose CPU time is to be measured along
    #[arg(long, value_name = "PID,..", value_delimiter = ',')]
    server_pids: Vec<u32>,
    #[command(flatten)]
    shape: WatchShape,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (output, measure, shape) = (self.output, self.workload, self.shape.change());
        let plan = self.plan()?;
        anyhow::ensure!(!measure.needs_rate() || plan.rate.is_some(), "{measure} needs --rate: puts per second");
        block_on(fill_if_absent(measure, &plan))?;
        let bar = progress::timing(&measure.to_string(), plan.duration);
        let report = measure.run(&plan, shape, &bar)?;
        bar.finish_and_clear();
        output.print(&report, |report| print!("{report}"))?;
        anyhow::ensure!(report.failed() == 0, "{} operations failed", report.failed());
        anyhow::ensure!(report.unfinished == 0, "{} clients never got an answer", report.unfinished);
        Ok(())
    }

    fn plan(self) -> anyhow::Result<Plan> {
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value).map_err(|error| anyhow::anyhow!("{name} {value}: {error}"))
        };
        Ok(Plan {
            workload: Workload::Put,
            endpoints: self.endpoints.endpoints,
            clients: self.clients,
            connections: self.connections,
            threads: self.threads.unwrap_or_else(threads),
            warmup: seconds("--warmup-seconds", self.warmup_seconds)?,
            duration: seconds("--seconds", self.seconds)?,
            rate: self.rate,
            keys: KeySpace { prefix: self.prefix, count: self.keys, value_bytes: self.value_bytes },
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

/// Puts all keys, unless the workload does not read or they are there.
async fn fill_if_absent(measure: Measure, plan: &Plan) -> anyhow::Result<()> {
    const FILLERS: usize = 128;
    plan.keys.check()?;
    let pool = Pool::new(&plan.endpoints, 1, Policy::default());
    if !measure.reads() || plan.keys.present(&pool).await? >= plan.keys.count {
        return Ok(());
    }
    let bar = progress::counting("filling", plan.keys.count);
    plan.keys.fill(&loader(&plan.endpoints, FILLERS), plan.seed, &bar).await?;
    bar.finish_and_clear();
    Ok(())
}
