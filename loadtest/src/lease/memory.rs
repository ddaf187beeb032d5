//! What leases cost in memory, and what a restart makes of very many.
//!
//! 1. Leases are granted, all with a TTL that outlasts the run; resident memory of all members before, after, and after a
//!    pause.
//! 2. Clients keep them alive in turn, closed loop, each with a stream of its own: the rate with so many leases.
//! 3. All members are stopped and started again at once: the time until each answers a get, and until one keep-alive in a
//!    thousand leases has been answered. Every lease must be listed, and the ones looked at must have their whole TTL before
//!    them or nearly.
//! 4. Keep-alives again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::LeaseTimeToLiveRequest;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::grant::{Granted, connect, grant, leases, listed};
use super::keep_alive::KeepAlives;
use crate::client::is_transient;
use crate::cluster::{Binary, Cluster, Setup};
use crate::histogram::{Latencies, Summary};

/// Leases are granted for so long.
const TTL: u64 = 24 * 3_600;
const READY: Duration = Duration::from_secs(300);
const STOP: Duration = Duration::from_secs(120);
/// A restarted server is asked again after this.
const ASK: Duration = Duration::from_millis(20);
/// One lease in so many is looked at after the restart.
const SAMPLE: usize = 1_000;
/// A keep-alive may take so long.
const ANSWER: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Leases.
    pub leases: u64,
    /// Grants in flight.
    pub workers: usize,
    /// Clients that keep the leases alive.
    pub clients: usize,
    /// How long they do.
    pub duration: Duration,
    /// Pause before memory is read again.
    pub settle: Duration,
    /// How the cluster is set up.
    pub setup: Setup,
}

/// What one system used.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What ran.
    pub system: String,
    /// Leases.
    pub leases: u64,
    /// Grants per second.
    pub grants_per_second: f64,
    /// Resident memory of all members before.
    pub before_bytes: u64,
    /// When all leases were granted.
    pub granted_bytes: u64,
    /// After the pause.
    pub settled_bytes: u64,
    /// After keep-alives.
    pub kept_bytes: u64,
    /// What the pause left for each lease, of all members.
    pub bytes_per_lease: f64,
    /// Disk space of all members then.
    pub disk_bytes: u64,
    /// Keep-alives.
    pub kept: Kept,
    /// From the start of the members until each of them answered a get.
    pub restart_get_seconds: f64,
    /// Until the keep-alives of the sample were answered.
    pub restart_kept_seconds: f64,
    /// Resident memory of all members after the restart and a pause.
    pub restarted_bytes: u64,
    /// Keep-alives after the restart.
    pub kept_again: Kept,
}

/// Keep-alives of some seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Kept {
    /// Answered per second.
    pub per_second: f64,
    /// How long they took.
    pub latency: Summary,
}

/// Starts a cluster of `binary` in `folder` and measures it.
pub async fn run(binary: &Binary, plan: &Plan, folder: &Path, bar: &ProgressBar) -> anyhow::Result<Report> {
    ensure!(plan.leases > 0 && plan.workers > 0 && plan.clients > 0, "there must be a lease, a worker and a client");
    let mut cluster = Cluster::start(binary, &plan.setup, folder)?;
    cluster.ready(READY).await?;
    let channels = connect(&cluster.endpoints(), plan.workers).await?;
    // What servers allocate once is not counted: they have granted leases before.
    let warm =
        grant(&channels, plan.workers, plan.workers as u64, || Ok(TTL), |_| None, &ProgressBar::hidden()).await?;
    sleep(plan.settle).await;

    let before_bytes = cluster.resident_bytes()?;
    let start = Instant::now();
    let mut granted = grant(&channels, plan.workers, plan.leases, || Ok(TTL), |_| None, bar).await?;
    let grants_per_second = plan.leases as f64 / start.elapsed().as_secs_f64();
    let granted_bytes = cluster.resident_bytes()?;
    sleep(plan.settle).await;
    let (settled_bytes, disk_bytes) = (cluster.resident_bytes()?, cluster.disk_bytes()?);
    granted.extend(warm);
    let ids: Vec<i64> = granted.iter().map(|lease| lease.id).collect();
    all_listed(&channels, &ids).await?;
    let kept = keep(plan, &channels, &ids).await?;
    let kept_bytes = cluster.resident_bytes()?;

    for member in &mut cluster.members {
        member.process.terminate()?;
    }
    for member in &mut cluster.members {
        member.process.wait(STOP)?;
    }
    let start = Instant::now();
    for member in &mut cluster.members {
        member.process.restart()?;
    }
    cluster.ready(READY).await?;
    let restart_get_seconds = start.elapsed().as_secs_f64();
    let channels = connect(&cluster.endpoints(), plan.workers).await?;
    sample(&channels, &granted).await?;
    let restart_kept_seconds = start.elapsed().as_secs_f64();
    all_listed(&channels, &ids).await?;
    sleep(plan.settle).await;
    let restarted_bytes = cluster.resident_bytes()?;
    let kept_again = keep(plan, &channels, &ids).await?;
    Ok(Report {
        system: cluster.system.to_string(),
        leases: plan.leases,
        grants_per_second,
        before_bytes,
        granted_bytes,
        settled_bytes,
        kept_bytes,
        bytes_per_lease: settled_bytes.saturating_sub(before_bytes) as f64 / plan.leases as f64,
        disk_bytes,
        kept,
        restart_get_seconds,
        restart_kept_seconds,
        restarted_bytes,
        kept_again,
    })
}

/// Fails unless the cluster lists exactly these leases.
async fn all_listed(channels: &[Channel], ids: &[i64]) -> anyhow::Result<()> {
    let mut all = listed(&channels[0]).await?;
    let mut wanted = ids.to_vec();
    all.sort_unstable();
    wanted.sort_unstable();
    ensure!(all == wanted, "LOST LEASE: {} leases were granted, and {} are listed", wanted.len(), all.len());
    Ok(())
}

/// Keeps all leases alive in turn, for a while.
async fn keep(plan: &Plan, channels: &[Channel], ids: &[i64]) -> anyhow::Result<Kept> {
    let clients = plan.clients.min(ids.len());
    let mut opening = JoinSet::new();
    for (number, own) in ids.chunks(ids.len().div_ceil(clients)).enumerate() {
        let (mut client, own) = (leases(channels[number % channels.len()].clone()), own.to_vec());
        opening.spawn(async move {
            let (stream, answer) = KeepAlives::open(&mut client, own[0]).await?;
            alive(own[0], answer.id, answer.ttl)?;
            anyhow::Ok((stream, own))
        });
    }
    let mut streams = Vec::new();
    while let Some(opened) = opening.join_next().await {
        streams.push(opened.context("a client panicked")??);
    }
    let (start, mut tasks) = (Instant::now(), JoinSet::new());
    for (mut stream, own) in streams {
        let end = start + plan.duration;
        tasks.spawn(async move {
            let mut latencies = Latencies::new();
            for &id in own.iter().cycle() {
                let asked = Instant::now();
                if asked >= end {
                    break;
                }
                let answer = timeout(ANSWER, stream.ask(id)).await.context("a keep-alive was not answered")??;
                alive(id, answer.id, answer.ttl)?;
                latencies.record(asked.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut all = Latencies::new();
    while let Some(kept) = tasks.join_next().await {
        all.merge(&kept.context("a client panicked")??);
    }
    Ok(Kept { per_second: all.count() as f64 / start.elapsed().as_secs_f64(), latency: all.summary() })
}

/// Checks an answer to a keep-alive.
fn alive(asked: i64, id: i64, ttl: i64) -> anyhow::Result<()> {
    ensure!(asked == id, "an answer about lease {id:x} to a question about {asked:x}");
    ensure!(ttl == TTL.cast_signed(), "LOST LEASE: {id:x}, granted for {TTL} s, was kept alive for {ttl} s");
    Ok(())
}

/// Keeps a sample alive, as soon as that is possible, and looks at the time left.
async fn sample(channels: &[Channel], granted: &[Granted]) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    let mut client = leases(channels[0].clone());
    for lease in granted.iter().step_by(SAMPLE) {
        let answer = loop {
            match KeepAlives::open(&mut client, lease.id).await {
                Ok((_, answer)) => break answer,
                Err(status) if is_transient(&status) && Instant::now() < deadline => sleep(ASK).await,
                Err(status) => return Err(status).context("a keep-alive after the restart"),
            }
        };
        alive(lease.id, answer.id, answer.ttl)?;
        let request = LeaseTimeToLiveRequest { id: lease.id, keys: false };
        let left = client.lease_time_to_live(request).await?.into_inner();
        ensure!(
            left.granted_ttl == TTL.cast_signed() && left.ttl > TTL.cast_signed() - 60,
            "LOST LEASE: one that was just kept alive is now {left:?}"
        );
    }
    Ok(())
}
