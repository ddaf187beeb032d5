//! What idle regions cost a watch over everything: braid with many regions, of which one is busy.
//!
//! Phases of the same length on the same cluster, one after the other; in each, CPU time of all servers and packets on the
//! loopback interface per second, and latencies where something is written.
//! 1. *idle*: nothing is asked.
//! 2. *watched*: one watch over everything at each server; nothing is written.
//! 3. *busy*: puts at a fixed rate into the keys of one region, and one watch of these keys at each server.
//! 4. *busy, everything*: the same puts, and one watch over everything at each server.
//!
//! Packets are those of the whole machine: nothing else should talk on it meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use serde::Serialize;

use super::held::Held;
use super::stream::Target;
use super::{PARTS, PATIENCE, Scenario, Shape};
use crate::cluster::{Binary, Cluster, Setup};
use crate::histogram::Summary;
use crate::keys::KeySpace;
use crate::metrics::Page;
use crate::report::Report as RunReport;
use crate::resources;

/// Elections of ten thousand regions take their time.
const READY: Duration = Duration::from_secs(600);
const KEYS: u64 = 1_600;
const VALUE_BYTES: usize = 256;
const WRITERS: usize = 16;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Regions.
    pub regions: u32,
    /// Puts per second.
    pub rate: f64,
    /// Length of a phase.
    pub phase: Duration,
    /// Time before the first phase: elections and first reports.
    pub settle: Duration,
    /// How the cluster is set up, apart from its regions.
    pub setup: Setup,
}

/// What the cluster did in one phase.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// CPU milliseconds of all servers per second.
    pub server_cpu_ms_per_second: f64,
    /// Packets on the loopback interface per second.
    pub packets_per_second: f64,
    /// Raft proposals of all servers per second.
    pub proposals_per_second: f64,
    /// Put to event, where something was written.
    pub events: Option<Summary>,
    /// The puts.
    pub puts: Option<Summary>,
}

/// What was seen.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Regions.
    pub regions: u32,
    /// Time until all servers answered.
    pub ready_seconds: f64,
    /// Resident memory of all servers at the end.
    pub resident_bytes: u64,
    /// The phases.
    pub phases: Vec<Phase>,
}

/// Starts a cluster in `folder` and goes through the phases. Blocks; must not be called inside a runtime. `tell` hears of
/// each phase.
pub fn run(binary: &Binary, plan: &Plan, folder: &Path, mut tell: impl FnMut(&Phase)) -> anyhow::Result<Report> {
    ensure!(plan.regions > 0, "there must be at least one region");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut setup = plan.setup.clone();
    setup.flags.extend(["--initial-regions".to_owned(), plan.regions.to_string()]);
    let start = std::time::Instant::now();
    let mut cluster = Cluster::start(binary, &setup, folder)?;
    runtime.block_on(cluster.ready(READY))?;
    let ready_seconds = start.elapsed().as_secs_f64();
    std::thread::sleep(plan.settle);

    let servers = cluster.members.len();
    let one_each = Shape { watches: servers, streams: servers, connections: servers, writers: WRITERS, ahead: 1 };
    let mut phases = Vec::new();
    let mut push = |phase: Phase| {
        tell(&phase);
        phases.push(phase);
    };
    push(observe("idle", &runtime, &cluster, || {
        std::thread::sleep(plan.phase);
        Ok(None)
    })?);
    let held = Held::start(&cluster.endpoints(), one_each, |_| Target::everything())?;
    push(observe("watched", &runtime, &cluster, || {
        std::thread::sleep(plan.phase);
        Ok(None)
    })?);
    held.finish()?;
    for (name, scenario) in [("busy", Scenario::Latency), ("busy, everything", Scenario::LatencyEverything)] {
        // The latter writes all keys it is given: here the same that the former writes of sixteen times as many.
        let count = if scenario == Scenario::Latency { KEYS } else { KEYS / PARTS };
        let watch = super::Plan {
            scenario,
            endpoints: cluster.endpoints(),
            shape: one_each,
            put_connections: servers,
            threads: 1,
            warmup: Duration::ZERO,
            duration: plan.phase,
            rate: Some(plan.rate),
            patience: PATIENCE,
            keys: KeySpace { prefix: "busy/".into(), count, value_bytes: VALUE_BYTES },
            seed: 1,
            servers: cluster.pids(),
        };
        push(observe(name, &runtime, &cluster, || super::run(&watch, name, &ProgressBar::hidden()).map(Some))?);
    }
    Ok(Report { regions: plan.regions, ready_seconds, resident_bytes: cluster.resident_bytes()?, phases })
}

/// Counters at one moment.
struct Counters {
    at: std::time::Instant,
    cpu: Duration,
    packets: u64,
    proposals: u64,
}

impl Counters {
    fn read(runtime: &tokio::runtime::Runtime, cluster: &Cluster) -> anyhow::Result<Self> {
        let mut proposals = 0;
        for endpoint in &cluster.endpoints() {
            let page = runtime.block_on(Page::read(endpoint));
            proposals +=
                page.with_context(|| format!("{endpoint} has no metrics page"))?.sum("braid_raft_proposals_total");
        }
        let cpu = resources::cpu_time_of_all(&cluster.pids())?;
        Ok(Self { at: std::time::Instant::now(), cpu, packets: resources::loopback_packets()?, proposals })
    }
}

fn observe(
    name: &'static str,
    runtime: &tokio::runtime::Runtime,
    cluster: &Cluster,
    work: impl FnOnce() -> anyhow::Result<Option<RunReport>>,
) -> anyhow::Result<Phase> {
    let before = Counters::read(runtime, cluster)?;
    let report = work().with_context(|| format!("phase {name}"))?;
    let after = Counters::read(runtime, cluster)?;
    if let Some(report) = &report {
        ensure!(report.failed() + report.unfinished == 0, "puts failed: {:?}", report.errors);
    }
    let seconds = (after.at - before.at).as_secs_f64();
    let kind = |name| report.as_ref().and_then(|report| report.kinds.get(name).copied());
    Ok(Phase {
        name,
        server_cpu_ms_per_second: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e3 / seconds,
        packets_per_second: after.packets.saturating_sub(before.packets) as f64 / seconds,
        proposals_per_second: after.proposals.saturating_sub(before.proposals) as f64 / seconds,
        events: kind("event"),
        puts: kind("put"),
    })
}
