//! How long a watch from the past takes to catch up, and whether that depends on how much else is stored.
//!
//! Three times the same: so many events under a prefix, then a watch of the prefix that starts at the first of them, and
//! the time until the last one has arrived.
//! 1. *empty*: nothing but these events.
//! 2. *loaded*: after many other keys were put, around the prefix.
//! 3. *restarted*: the same events, after all servers were killed and started again: nothing is in memory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::timeout;

use super::ledger::Seen;
use super::stream::{Target, WatchStream};
use crate::client::{Address, prefix_end};
use crate::cluster::{Binary, Cluster, Setup};
use crate::histogram::{Latencies, Summary};
use crate::keys::KeySpace;
use crate::loader::Loader;
use crate::random::Random;
use crate::session::Policy;

const READY: Duration = Duration::from_secs(300);
/// How long one catch-up may take.
const CATCH_UP: Duration = Duration::from_secs(120);
/// Sorts between the loaded keys, whose number is ten digits.
const PREFIX: &str = "bench/0000000000-watched/";
/// Keys under the prefix that the events are about.
const WATCHED_KEYS: u64 = 100;
const FILLERS: usize = 128;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Other keys.
    pub keys: u64,
    /// Bytes of a value, of all keys.
    pub value_bytes: usize,
    /// Events to catch up with.
    pub events: u64,
    /// Watches, one after the other.
    pub repeats: usize,
    /// How the cluster is set up.
    pub setup: Setup,
}

/// One system's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What ran.
    pub system: String,
    /// Other keys that were loaded.
    pub keys: u64,
    /// Puts per second while they were loaded.
    pub load_puts_per_second: f64,
    /// Resident memory of all members after loading.
    pub loaded_bytes: u64,
    /// The stages.
    pub stages: Vec<Stage>,
}

/// Catch-ups in one state of the cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// The very first catch-up, in microseconds.
    pub first_us: f64,
    /// All of them.
    pub times: Summary,
}

/// Starts a cluster of `binary` in `folder` and goes through the stages. `tell` hears of each step.
pub async fn run(
    binary: &Binary,
    plan: &Plan,
    folder: &Path,
    bar: &ProgressBar,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<Report> {
    ensure!(plan.events > 0 && plan.repeats > 0, "there must be at least one event and one watch");
    let mut cluster = Cluster::start(binary, &plan.setup, folder)?;
    cluster.ready(READY).await?;
    let endpoints = cluster.endpoints();
    let loader = Loader {
        connections: 2 * endpoints.len(),
        endpoints: endpoints.clone(),
        clients: FILLERS,
        policy: Policy::default(),
    };

    let first = write(&loader, plan, 1).await?;
    let mut stages = vec![stage("empty", plan, &endpoints, first).await?];
    tell(&format!("{}: {}", cluster.system, describe(&stages[0])));

    let space = KeySpace { prefix: "bench/".into(), count: plan.keys, value_bytes: plan.value_bytes };
    let loaded = space.fill(&loader, 1, bar).await?;
    let loaded_bytes = cluster.resident_bytes()?;
    tell(&format!("{}: {} keys loaded, {:.0} puts/s", cluster.system, plan.keys, loaded.puts_per_second));
    let first = write(&loader, plan, 2).await?;
    stages.push(stage("loaded", plan, &endpoints, first).await?);
    tell(&format!("{}: {}", cluster.system, describe(&stages[1])));

    for member in &mut cluster.members {
        member.process.kill()?;
    }
    for member in &mut cluster.members {
        member.process.restart()?;
    }
    cluster.ready(READY).await?;
    stages.push(stage("restarted", plan, &endpoints, first).await?);
    tell(&format!("{}: {}", cluster.system, describe(&stages[2])));
    Ok(Report {
        system: cluster.system.to_string(),
        keys: plan.keys,
        load_puts_per_second: loaded.puts_per_second,
        loaded_bytes,
        stages,
    })
}

/// A stage in a line.
pub fn describe(stage: &Stage) -> String {
    let Stage { name, first_us, times } = stage;
    let [first, p50, max] = [*first_us, times.p50_us, times.max_us].map(|micros| micros / 1e3);
    format!("{name:<10} first {first:>8.2} ms, median {p50:>8.2} ms, longest {max:>8.2} ms of {}", times.count)
}

/// Puts the events; gives the revision of the first one.
async fn write(loader: &Loader, plan: &Plan, seed: u64) -> anyhow::Result<i64> {
    let (events, value_bytes) = (plan.events, plan.value_bytes);
    let entry = move |number: u64| -> (Bytes, Bytes) {
        let key = format!("{PREFIX}{:06}", number % WATCHED_KEYS);
        (key.into(), Random::new(seed, number).bytes(value_bytes).into())
    };
    let hidden = ProgressBar::hidden();
    let loaded = loader.load(events, entry, &hidden).await?;
    ensure!(loaded.retries == 0, "a put had to be repeated: how many events there are is not known");
    // Revisions may have holes, so the first one is not far below what an exact count would say: it is looked for.
    let mut stream = open(&loader.endpoints[0], 1).await?;
    let mut revisions = Vec::new();
    while revisions.last() != Some(&loaded.revision) {
        let (_, message) = timeout(CATCH_UP, stream.next()).await.context("the events did not arrive")??;
        for event in message.events() {
            revisions.push(event.map_err(tonic::Status::from)?.revision);
        }
    }
    let first = revisions.len().checked_sub(events as usize).context("LOSS: fewer events than puts")?;
    Ok(revisions[first])
}

async fn stage(name: &'static str, plan: &Plan, endpoints: &[Address], first: i64) -> anyhow::Result<Stage> {
    let mut times = Latencies::new();
    let mut first_us = 0.0;
    for repeat in 0..plan.repeats {
        let time = catch_up(plan, &endpoints[repeat % endpoints.len()], first).await;
        let time = time.with_context(|| format!("{name}, watch {repeat}"))?;
        times.record(time);
        if repeat == 0 {
            first_us = time.as_secs_f64() * 1e6;
        }
    }
    Ok(Stage { name, first_us, times: times.summary() })
}

/// Time from the request until the last event is here.
async fn catch_up(plan: &Plan, address: &Address, first: i64) -> anyhow::Result<Duration> {
    let channel = address.channel().await?;
    let start = Instant::now();
    let mut stream = WatchStream::open(channel, vec![target(first)]).await?;
    let mut seen = Seen::default();
    while seen.tally.events < plan.events {
        let told = timeout(CATCH_UP, stream.next()).await;
        let (_, message) = told.with_context(|| format!("LOSS: {} events of {}", seen.tally.events, plan.events))??;
        for event in message.events() {
            seen.event(event.map_err(tonic::Status::from)?.revision)?;
        }
    }
    ensure!(seen.tally.events == plan.events, "REPETITION: {} events of {}", seen.tally.events, plan.events);
    Ok(start.elapsed())
}

async fn open(address: &Address, first: i64) -> anyhow::Result<WatchStream> {
    WatchStream::open(address.channel().await?, vec![target(first)]).await
}

fn target(first: i64) -> Target {
    let prefix = Bytes::from_static(PREFIX.as_bytes());
    Target { end: prefix_end(&prefix), key: prefix, start_revision: first }
}
