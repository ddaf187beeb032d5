//! Two systems side by side on one machine, on the same work.
//!
//! 1. Both clusters run all the time and hold the same keys, so that each pays for the other's idle work alike.
//! 2. A row is one workload at one number of clients. It is measured on A, then on B; a round does so with every row. So
//!    whatever the machine does meanwhile hits both sides, and rows can be compared with each other too.
//! 3. A row's figures are medians over its rounds; its ratio is the median of the rounds' ratios, with the lowest and the
//!    highest.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::cluster::{Binary, Cluster, Setup};
use crate::keys::{Distribution, KeySpace};
use crate::loader::Loader;
use crate::measure::Measure;
use crate::progress;
use crate::report::Report;
use crate::runner::Plan;
use crate::session::Policy;
use crate::watch::{Scenario, ShapeChange};
use crate::workload::Workload;

pub mod table;

/// One workload at one number, written `put:64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The workload.
    pub measure: Measure,
    /// Its clients, or its watches; of the watch latencies and of expiry the puts per second.
    pub number: usize,
}

/// Watches of the rows that measure latencies.
const LATENCY_WATCHES: usize = 10;

/// Clients that put beside leases that expire.
const EXPIRY_CLIENTS: usize = 64;

impl Row {
    /// Clients or watches, and the rate.
    fn load(self) -> (usize, Option<f64>) {
        match self.measure {
            Measure::Watch(Scenario::Latency | Scenario::LatencyEverything) => {
                (LATENCY_WATCHES, Some(self.number as f64))
            }
            Measure::LeaseExpiry => (EXPIRY_CLIENTS, Some(self.number as f64)),
            _ => (self.number, None),
        }
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: a row looks like put:64");
        let (measure, number) = text.split_once(':').ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|&number| number > 0).ok_or_else(wrong)?;
        Ok(Self { measure: measure.parse()?, number })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.measure, self.number)
    }
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Options {
    /// The two programs; the ratio is the first one's figure over the second one's.
    pub binaries: [Binary; 2],
    /// How the two clusters are set up.
    pub setups: [Setup; 2],
    /// The rows.
    pub rows: Vec<Row>,
    /// How often each row is measured on each side.
    pub rounds: usize,
    /// Length of a measurement.
    pub duration: Duration,
    /// Time before each measurement.
    pub warmup: Duration,
    /// Keys and value size, loaded on both sides before the first row.
    pub keys: KeySpace,
    /// TCP connections of the client.
    pub connections: usize,
    /// Threads of the client.
    pub threads: usize,
    /// Seed of keys and values.
    pub seed: u64,
    /// What differs from the usual shape of watches.
    pub shape: ShapeChange,
}

/// How long a cluster may take until it answers.
const READY: Duration = Duration::from_secs(60);

/// Puts in flight while the keys are loaded.
const FILLERS: usize = 128;

/// The outcome.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// CPUs that clients and servers shared.
    pub cpus: usize,
    /// Members of each cluster.
    pub members: usize,
    /// Keys loaded before.
    pub keys: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// The two systems.
    pub sides: [Side; 2],
    /// The rows in the order they were measured.
    pub rows: Vec<RowOutcome>,
}

impl Outcome {
    /// Operations that failed or never ended, in all runs.
    pub fn failed(&self) -> u64 {
        self.rows.iter().flat_map(|row| row.rounds.iter().flatten()).map(|run| run.failed() + run.unfinished).sum()
    }
}

/// One system.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// Its name.
    pub name: String,
    /// What it says about its version.
    pub version: String,
    /// What it used after the keys were loaded.
    pub loaded: Footprint,
    /// What it used at the end.
    pub end: Footprint,
}

/// What the members of a cluster use, all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Disk space of the data dirs.
    pub disk_bytes: u64,
}

impl Footprint {
    fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        Ok(Self { resident_bytes: cluster.resident_bytes()?, disk_bytes: cluster.disk_bytes()? })
    }
}

/// One row's measurements.
#[derive(Debug, Clone, Serialize)]
pub struct RowOutcome {
    /// The row, as it was asked for.
    pub row: String,
    /// Medians of both sides.
    pub medians: [Medians; 2],
    /// First side's throughput over the second side's.
    pub ratio: Ratio,
    /// Every measurement: by round, then by side.
    pub rounds: Vec<[Report; 2]>,
}

/// Medians over the rounds of one row on one side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Medians {
    /// Operations per second.
    pub operations_per_second: f64,
    /// Half of the operations took no longer, in microseconds.
    pub p50_us: f64,
    /// 99 in 100 operations took no longer, in microseconds.
    pub p99_us: f64,
    /// CPU time of all servers for each operation.
    pub server_cpu_us_per_operation: f64,
    /// CPU time of the client for each operation.
    pub client_cpu_us_per_operation: f64,
}

/// Ratios of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Their median.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// Starts both clusters in a folder and measures every row. Blocks; must not be called inside a runtime. `tell` hears of
/// each step.
pub fn run(options: &Options, folder: &Path, mut tell: impl FnMut(&str)) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut clusters = Vec::new();
    let mut loaded = Vec::new();
    for (binary, setup) in options.binaries.iter().zip(&options.setups) {
        let home = folder.join(binary.system.to_string());
        std::fs::create_dir(&home).with_context(|| format!("cannot create the folder {}", home.display()))?;
        let mut cluster = Cluster::start(binary, setup, &home)?;
        runtime.block_on(cluster.ready(READY))?;
        tell(&format!("{}: {} members are ready", cluster.system, cluster.members.len()));
        clusters.push(cluster);
    }
    for cluster in &clusters {
        let filled = runtime.block_on(fill(options, cluster))?;
        tell(&format!("{}: {} keys loaded, {filled:.0} puts/s", cluster.system, options.keys.count));
        loaded.push(Footprint::of(cluster)?);
    }
    let mut rounds = vec![Vec::new(); options.rows.len()];
    for round in 1..=options.rounds {
        for (&row, rounds) in options.rows.iter().zip(&mut rounds) {
            rounds.push(measure(options, row, round, &clusters, &mut tell)?);
        }
    }
    let rows = options.rows.iter().zip(rounds).map(|(&row, rounds)| summarize(row, rounds)).collect();
    let side = |number: usize| -> anyhow::Result<Side> {
        Ok(Side {
            name: clusters[number].system.to_string(),
            version: options.binaries[number].version()?,
            loaded: loaded[number],
            end: Footprint::of(&clusters[number])?,
        })
    };
    Ok(Outcome {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        members: clusters[0].members.len(),
        keys: options.keys.count,
        value_bytes: options.keys.value_bytes,
        sides: [side(0)?, side(1)?],
        rows,
    })
}

async fn fill(options: &Options, cluster: &Cluster) -> anyhow::Result<f64> {
    let endpoints = cluster.endpoints();
    let connections = 2 * endpoints.len();
    let loader = Loader { endpoints, clients: FILLERS, connections, policy: Policy::default() };
    let bar = progress::counting(&format!("filling {}", cluster.system), options.keys.count);
    let loaded = options.keys.fill(&loader, options.seed, &bar).await?;
    bar.finish_and_clear();
    Ok(loaded.puts_per_second)
}

/// Measures one row once on each side.
fn measure(
    options: &Options,
    row: Row,
    round: usize,
    clusters: &[Cluster],
    tell: &mut impl FnMut(&str),
) -> anyhow::Result<[Report; 2]> {
    let mut side = |cluster: &Cluster| -> anyhow::Result<Report> {
        let bar = progress::timing(&format!("{row} {}", cluster.system), options.duration);
        let report = row.measure.run(&plan(options, row, round as u64, cluster), options.shape, &bar);
        let report = report.with_context(|| format!("{row} on {}", cluster.system))?;
        bar.finish_and_clear();
        let (rate, p50) = (report.operations_per_second, report.latency.p50_us / 1e3);
        tell(&format!("{row} {round}/{} {}: {rate:.0}/s, p50 {p50:.2} ms", options.rounds, cluster.system));
        Ok(report)
    };
    Ok([side(&clusters[0])?, side(&clusters[1])?])
}

fn plan(options: &Options, row: Row, round: u64, cluster: &Cluster) -> Plan {
    let (clients, rate) = row.load();
    Plan {
        workload: Workload::Put,
        endpoints: cluster.endpoints(),
        clients,
        connections: options.connections,
        threads: options.threads,
        warmup: options.warmup,
        duration: options.duration,
        rate,
        keys: options.keys.clone(),
        distribution: Distribution::Uniform,
        // Both sides get the same keys in a round, and other ones in the next.
        seed: options.seed.wrapping_add(round),
        servers: cluster.pids(),
    }
}

fn summarize(row: Row, rounds: Vec<[Report; 2]>) -> RowOutcome {
    let medians = |side: usize| {
        let of = |figure: fn(&Report) -> f64| median(rounds.iter().map(|round| figure(&round[side])).collect());
        Medians {
            operations_per_second: of(|report| report.operations_per_second),
            p50_us: of(|report| report.latency.p50_us),
            p99_us: of(|report| report.latency.p99_us),
            server_cpu_us_per_operation: of(|report| report.server_cpu_us_per_operation.unwrap_or(f64::NAN)),
            client_cpu_us_per_operation: of(|report| report.client_cpu_us_per_operation),
        }
    };
    let ratios = rounds.iter().map(|[a, b]| a.operations_per_second / b.operations_per_second);
    let ratio = Ratio::of(ratios.collect());
    RowOutcome { row: row.to_string(), medians: [medians(0), medians(1)], ratio, rounds }
}

impl Ratio {
    fn of(ratios: Vec<f64>) -> Self {
        Self {
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            median: median(ratios),
        }
    }
}

/// The middle one, or the mean of the two middle ones.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

/// All errors of a row by side and text, for the table's notes.
fn errors(row: &RowOutcome, side: usize) -> BTreeMap<&str, u64> {
    let mut sum = BTreeMap::new();
    for (text, count) in row.rounds.iter().flat_map(|round| &round[side].errors) {
        *sum.entry(text.as_str()).or_default() += count;
    }
    sum
}

#[cfg(test)]
mod tests;
