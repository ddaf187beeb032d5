//! Two systems side by side on one machine, on the same work.
//!
//! 1. Both clusters run all the time and hold the same keys, so that each pays for the other's idle work alike.
//! 2. A row is one workload at one number of clients. It is measured on A, then on B; a round does so with every row. So
//!    whatever the machine does meanwhile hits both sides, and rows can be compared with each other too.
//! 3. A row's figures are medians over its rounds; its ratio is the median of the rounds' ratios, with the lowest and the
//!    highest. It is above 1 where the first side is better.
//! 4. Memory and disk are read after the load, at the end, and after restarts, which come last.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::cluster::{Binary, Cluster, Setup};
use crate::keys::{Distribution, KeySpace};
use crate::loader::Loader;
use crate::measure::FILLERS;
use crate::progress;
use crate::report::Report;
use crate::runner::Plan;
use crate::watch::ShapeChange;
use crate::workload::Workload;

pub mod chart;
mod restart;
pub mod roles;
mod row;
pub mod table;

pub use row::{ALL, ALL_KEYS, Row, Work, Yardstick};

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

impl Options {
    /// Fails before anything is started if a row could not be done.
    pub fn check(&self) -> anyhow::Result<()> {
        let members = self.setups.iter().map(|setup| setup.members).min().unwrap_or(0);
        self.rows.iter().try_for_each(|row| row.check(row.keys(self.keys.count), members))
    }
}

/// How long a cluster may take until it answers.
const READY: Duration = Duration::from_secs(60);

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
    /// Keys loaded per second, one cluster after the other.
    pub load_puts_per_second: f64,
    /// What it used after the keys were loaded.
    pub loaded: Footprint,
    /// What it used at the end.
    pub end: Footprint,
    /// What it used after its members were restarted, if they were.
    pub restarted: Option<Footprint>,
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
    /// What the ratio is made of.
    pub yardstick: Yardstick,
    /// Medians of both sides.
    pub medians: [Medians; 2],
    /// How many times better the first side is.
    pub ratio: Ratio,
    /// The first side's CPU time of servers for each operation over the second one's.
    pub server_cpu_ratio: Ratio,
    /// Every measurement: by round, then by side.
    pub rounds: Vec<[Report; 2]>,
}

/// Medians over the rounds of one row on one side.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// CPU time of all servers for each operation by role, as far as threads tell.
    pub server_cpu_us_by_role: BTreeMap<&'static str, f64>,
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
    options.check()?;
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
        loaded.push((filled, Footprint::of(cluster)?));
    }
    let (restarts, measures): (Vec<_>, Vec<_>) =
        (0..options.rows.len()).partition(|&number| options.rows[number].work == Work::Restart);
    for &number in &measures {
        for cluster in &clusters {
            if let Work::Measure(measure) = options.rows[number].work {
                runtime.block_on(measure.fill(&plan(options, options.rows[number], 0, cluster)))?;
            }
        }
    }
    let mut rounds = vec![Vec::new(); options.rows.len()];
    for round in 1..=options.rounds {
        for &number in &measures {
            rounds[number].push(measure(options, options.rows[number], round, &clusters, &mut tell)?);
        }
    }
    let end = [Footprint::of(&clusters[0])?, Footprint::of(&clusters[1])?];
    for round in 1..=options.rounds {
        for &number in &restarts {
            let row = options.rows[number];
            let mut side = |cluster: &mut Cluster| -> anyhow::Result<Report> {
                let report = runtime.block_on(restart::measure(cluster, row.number, options.keys.count))?;
                tell(&format!("{row} {round}/{} {}: {:.2} s", options.rounds, cluster.system, report.seconds));
                Ok(report)
            };
            let [a, b] = &mut clusters[..] else { unreachable!("two clusters were started") };
            rounds[number].push([side(a)?, side(b)?]);
        }
    }
    let rows = options.rows.iter().zip(rounds).map(|(&row, rounds)| summarize(row, rounds)).collect();
    let side = |number: usize| -> anyhow::Result<Side> {
        Ok(Side {
            name: clusters[number].system.to_string(),
            version: options.binaries[number].version()?,
            load_puts_per_second: loaded[number].0,
            loaded: loaded[number].1,
            end: end[number],
            restarted: if restarts.is_empty() { None } else { Some(Footprint::of(&clusters[number])?) },
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
    let loader = Loader::spread(&cluster.endpoints(), FILLERS);
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
    let Work::Measure(work) = row.work else { anyhow::bail!("{row} is not measured in a round") };
    let mut side = |cluster: &Cluster| -> anyhow::Result<Report> {
        let bar = progress::timing(&format!("{row} {}", cluster.system), options.duration);
        let report = work.run(&plan(options, row, round as u64, cluster), options.shape, &bar);
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
        keys: KeySpace { count: row.keys(options.keys.count), ..options.keys.clone() },
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
            server_cpu_us_by_role: roles_of(rounds.iter().map(|round| &round[side])),
        }
    };
    let ratios = |of: fn(&Report, &Report) -> f64| Ratio::of(rounds.iter().map(|[a, b]| of(a, b)).collect());
    let ratio = match row.yardstick() {
        Yardstick::Throughput => ratios(|a, b| a.operations_per_second / b.operations_per_second),
        Yardstick::Latency => ratios(|a, b| b.latency.p50_us / a.latency.p50_us),
    };
    let cpu = |report: &Report| report.server_cpu_us_per_operation.unwrap_or(f64::NAN);
    let cpu_ratios = rounds.iter().map(|[a, b]| cpu(a) / cpu(b));
    let server_cpu_ratio = Ratio::of(cpu_ratios.collect());
    let (row, yardstick, medians) = (row.to_string(), row.yardstick(), [medians(0), medians(1)]);
    RowOutcome { row, yardstick, medians, ratio, server_cpu_ratio, rounds }
}

/// Medians over rounds of what each role used; a role that did nothing in a round counts as nothing there.
fn roles_of<'a>(reports: impl Iterator<Item = &'a Report>) -> BTreeMap<&'static str, f64> {
    let rounds: Vec<_> = reports.map(|report| roles::by_role(&report.server_cpu_us_by_threads)).collect();
    let of = |role| median(rounds.iter().map(|round| round.get(role).copied().unwrap_or(0.0)).collect());
    let all = roles::ROLES.into_iter().map(|role| (role, of(role)));
    all.filter(|(_, time)| *time > 0.0).collect()
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
