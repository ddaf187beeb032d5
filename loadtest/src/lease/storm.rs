//! A great many leases that expire in the same second.
//!
//! ```text
//!   grants, each with the TTL that is left until the storm, and a key      puts at a fixed rate
//!   ├──────────────────────────────────────────────┤ calm ├─────── storm ───────┤
//!                                                         ▲ first lease due     ▲ all gone, or the cap
//! ```
//!
//! 1. TTLs are whole seconds, so every lease is due within the second after the first.
//! 2. A watch follows the deletes: every key must go once, and not before its lease is due.
//! 3. When all keys are gone, every server is asked for its leases until it lists none.
//! 4. A cap ends it; then the report says how far it came. etcd hands at most 1,000 expired leases a second to revocation.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest};
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout_at};
use tonic::transport::Channel;

use super::ends::{Deletes, Ledger};
use super::grant::{Granted, connect, grant, listed};
use crate::client::{Kv, unlimited};
use crate::cluster::{Binary, Cluster, Setup};
use crate::histogram::{Latencies, Summary};
use crate::keys::{Distribution, KeySpace, Picker};
use crate::runner::Schedule;

const READY: Duration = Duration::from_secs(60);
/// How often servers are asked whether leases are left.
const ASK: Duration = Duration::from_millis(50);
/// Puts in flight at most.
const WRITERS: usize = 64;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Leases, with a key each.
    pub leases: u64,
    /// Grants in flight.
    pub workers: usize,
    /// Time in which all must be granted and have their keys.
    pub fill: Duration,
    /// Time before the storm in which puts run undisturbed.
    pub calm: Duration,
    /// Longest time that the storm is watched.
    pub cap: Duration,
    /// Puts per second.
    pub rate: f64,
    /// Keys that are put, and between which the keys of the leases lie.
    pub keys: KeySpace,
    /// How the cluster is set up.
    pub setup: Setup,
}

/// What one system did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What ran.
    pub system: String,
    /// Leases, with a key each.
    pub leases: u64,
    /// Grants with their puts per second.
    pub grants_per_second: f64,
    /// Keys that were gone at the end.
    pub gone: u64,
    /// From the first lease's time until half of the keys were gone, if they were.
    pub half_seconds: Option<f64>,
    /// Until all were.
    pub keys_seconds: Option<f64>,
    /// Until no server listed a lease.
    pub leases_seconds: Option<f64>,
    /// Puts before.
    pub calm: Summary,
    /// Puts scheduled between the first lease's time and the end.
    pub storm: Summary,
    /// Failed puts by code and text.
    pub errors: BTreeMap<String, u64>,
}

impl Report {
    /// Failed puts.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Starts a cluster of `binary` in `folder` and measures it.
pub async fn run(binary: &Binary, plan: &Plan, folder: &Path, bar: &ProgressBar) -> anyhow::Result<Report> {
    plan.check()?;
    let mut cluster = Cluster::start(binary, &plan.setup, folder)?;
    cluster.ready(READY).await?;
    let channels = connect(&cluster.endpoints(), plan.workers).await?;

    let start = Instant::now();
    let due = start + plan.fill + plan.calm;
    let keys = plan.keys.clone();
    let leases = plan.leases;
    let key = move |number| Some(place(&keys, leases, number));
    let granted = grant(&channels, plan.workers, plan.leases, move || left(due), key, bar).await?;
    let filled = start.elapsed();
    ensure!(filled < plan.fill, "all leases were there only after {filled:?}: give more --fill-seconds");

    let mut ledger = Ledger::default();
    for Granted { number, id, ttl, sent } in granted {
        ledger.lease(id, sent + Duration::from_secs(ttl), [place(&plan.keys, leases, number)]);
    }
    let prefix = Bytes::copy_from_slice(plan.keys.prefix.as_bytes());
    let mut deletes = Deletes::watch(channels[0].clone(), prefix).await?;
    sleep_until((due - plan.calm).into()).await;
    let (stop, stopped) = watch::channel(false);
    let writers = start_writers(plan, &channels, due - plan.calm, &stopped);

    let end = due + plan.cap;
    let storm = follow(&mut deletes, &mut ledger, &channels, due, end).await;
    let over = Instant::now();
    stop.send_replace(true);
    let (puts, errors) = join(writers).await?;
    let storm = storm?;
    if storm.leases_seconds.is_some() {
        none_left(plan, &channels[0]).await?;
    }
    let between = |from: Instant, to: Instant| {
        let mut latencies = Latencies::new();
        let inside = puts.iter().filter(|(at, _)| (from..to).contains(at));
        inside.for_each(|&(_, latency)| latencies.record(latency));
        latencies.summary()
    };
    Ok(Report {
        system: cluster.system.to_string(),
        leases: plan.leases,
        grants_per_second: plan.leases as f64 / filled.as_secs_f64(),
        gone: ledger.gone() as u64,
        half_seconds: storm.half_seconds,
        keys_seconds: storm.keys_seconds,
        leases_seconds: storm.leases_seconds,
        calm: between(due - plan.calm, due),
        storm: between(due, over),
        errors,
    })
}

impl Plan {
    fn check(&self) -> anyhow::Result<()> {
        self.keys.check()?;
        ensure!(self.leases > 0, "there must be at least one lease");
        ensure!(self.workers > 0, "there must be at least one worker");
        ensure!(self.rate.is_finite() && self.rate > 0.0, "the rate must be a number above 0");
        Ok(())
    }
}

/// Whole seconds until `due`, rounded up.
fn left(due: Instant) -> anyhow::Result<u64> {
    let left = due.saturating_duration_since(Instant::now());
    // etcd raises a shorter TTL.
    ensure!(
        left > Duration::from_secs(3),
        "grants were still missing when the leases were due: give more --fill-seconds"
    );
    Ok(left.as_secs() + 1)
}

/// The key of a lease, beside the numbered keys and evenly spread over them.
fn place(keys: &KeySpace, leases: u64, number: u64) -> Bytes {
    let near = (u128::from(keys.count) * u128::from(number) / u128::from(leases)) as u64;
    [&keys.key(near)[..], format!("/expires-{number}").as_bytes()].concat().into()
}

/// How far a storm came; times since the first lease was due.
#[derive(Debug, Default)]
struct Storm {
    half_seconds: Option<f64>,
    keys_seconds: Option<f64>,
    leases_seconds: Option<f64>,
}

/// Follows the storm until all is gone or it ends.
async fn follow(
    deletes: &mut Deletes,
    ledger: &mut Ledger,
    channels: &[Channel],
    due: Instant,
    end: Instant,
) -> anyhow::Result<Storm> {
    let mut storm = Storm::default();
    let since = || due.elapsed().as_secs_f64();
    while ledger.gone() < ledger.keys() {
        let Ok(told) = timeout_at(end.into(), deletes.next(ledger)).await else { return Ok(storm) };
        told?;
        if storm.half_seconds.is_none() && 2 * ledger.gone() >= ledger.keys() {
            storm.half_seconds = Some(since());
        }
    }
    storm.keys_seconds = Some(since());
    for channel in channels {
        while !listed(channel).await?.is_empty() {
            if Instant::now() >= end {
                return Ok(storm);
            }
            sleep(ASK).await;
        }
    }
    storm.leases_seconds = Some(since());
    Ok(storm)
}

/// Fails if a key of a lease can be read, of a thousand all over the place.
async fn none_left(plan: &Plan, channel: &Channel) -> anyhow::Result<()> {
    let mut kv = unlimited(channel.clone());
    for number in (0..plan.leases).step_by(plan.leases.div_ceil(1_000) as usize) {
        let key = place(&plan.keys, plan.leases, number);
        let reply = kv.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        ensure!(reply.get_ref().kvs.is_empty(), "OUTLIVED: no lease is left, but {:?}", reply.get_ref().kvs);
    }
    Ok(())
}

/// Puts by the time for which they were scheduled, and errors.
type Puts = (Vec<(Instant, Duration)>, BTreeMap<String, u64>);

/// Starts puts at the plan's rate, until they are stopped.
fn start_writers(plan: &Plan, channels: &[Channel], start: Instant, stopped: &watch::Receiver<bool>) -> JoinSet<Puts> {
    let mut tasks = JoinSet::new();
    for number in 0..WRITERS {
        let kv = unlimited(channels[number % channels.len()].clone());
        let picker = Picker::new(&plan.keys, Distribution::Uniform, 1, number, WRITERS);
        let schedule = Schedule::new(plan.rate, number, WRITERS);
        tasks.spawn(write(kv, picker, start + schedule.offset, schedule.interval, stopped.clone()));
    }
    tasks
}

async fn write(
    mut kv: Kv,
    mut picker: Picker,
    mut scheduled: Instant,
    interval: Duration,
    stopped: watch::Receiver<bool>,
) -> Puts {
    let (mut puts, mut errors) = Puts::default();
    while !*stopped.borrow() {
        let mut start = scheduled;
        if Instant::now() < scheduled {
            sleep_until(scheduled.into()).await;
            // The writer was free: what it is late now is the timer's slop, not the server's.
            start = Instant::now();
        }
        let put = PutRequest { key: picker.key(), value: picker.value(), ..PutRequest::default() };
        match kv.put(put).await {
            Ok(_) => puts.push((scheduled, start.elapsed())),
            Err(status) => {
                *errors.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1;
            }
        }
        scheduled += interval;
    }
    (puts, errors)
}

async fn join(mut writers: JoinSet<Puts>) -> anyhow::Result<Puts> {
    let (mut puts, mut errors) = Puts::default();
    while let Some(written) = writers.join_next().await {
        let (some, failed) = written.context("a writer panicked")?;
        puts.extend(some);
        for (text, count) in failed {
            *errors.entry(text).or_default() += count;
        }
    }
    Ok((puts, errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_due_in_the_second_after_the_storm_begins() {
        let now = Instant::now();
        let due = now + Duration::from_millis(5_500);
        assert_eq!(left(due).unwrap(), 6);
        assert!(left(now + Duration::from_secs(2)).is_err());
    }

    #[test]
    fn keys_of_leases_are_spread_and_differ() {
        let keys = KeySpace { prefix: "bench/".into(), count: 10, value_bytes: 1 };
        let all: std::collections::HashSet<_> = (0..100).map(|number| place(&keys, 100, number)).collect();
        assert_eq!(all.len(), 100);
        assert!(all.contains(&b"bench/0000000009/expires-99"[..]));
    }
}
