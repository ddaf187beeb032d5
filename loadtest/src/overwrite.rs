//! Steady overwrites of the same keys under automatic compaction: does the disk stay flat, and is it felt when history is
//! dropped?
//!
//! ```text
//!  clients ── a put each at its appointed time ──► three braid servers with --auto-compaction-retention
//!                   │ latency since that time                │ folders, /metrics
//!                   └────────────► windows ◄─────────────────┘      one line each, then two figures
//! ```
//!
//! Puts come at a fixed rate, and a latency counts from the moment a put should have begun: a server that stops for a
//! second is seen by every put that was due then, not only by those that were under way.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::PutRequest;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::Address;
use crate::cluster::{Binary, Cluster, Setup};
use crate::histogram::{Latencies, Summary};
use crate::metrics::Page;
use crate::random::Random;
use crate::resources;

/// Longest time for one put: beyond it the run has failed.
const PUT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the cluster may take to come up.
const READY: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Length of the run.
    pub time: Duration,
    /// Length of a window.
    pub window: Duration,
    /// Puts a second, of all clients.
    pub rate: u32,
    /// Clients, each with one put under way.
    pub clients: u32,
    /// Keys that are overwritten in random order.
    pub keys: u64,
    /// Bytes of a value; random, so that compression does not flatter the disk.
    pub value_bytes: usize,
    /// `--auto-compaction-retention`.
    pub retention: String,
    /// Further flags of each server.
    pub flags: Vec<String>,
}

/// What was seen in one window.
#[derive(Debug, Clone, Serialize)]
pub struct Window {
    /// When it ended, in seconds since the run began.
    pub end_seconds: f64,
    /// Latencies of the puts that were due in it.
    pub puts: Summary,
    /// Bytes of the servers' RocksDB folders at its end.
    pub kv_bytes: u64,
    /// Bytes of their data folders, raft logs included.
    pub disk_bytes: u64,
    /// Rows of history that were dropped in it, on all servers.
    pub rows_dropped: u64,
    /// Passes over a server's history that ended in it.
    pub passes: u64,
    /// Compacted revision at its end.
    pub compacted: u64,
}

/// What the run showed.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// All windows.
    pub windows: Vec<Window>,
    /// Latencies in windows in which history was dropped.
    pub while_dropping: Summary,
    /// Latencies in the others, from the first put on.
    pub otherwise: Summary,
    /// The median of the windows' 99th percentiles in microseconds, in windows in which history was dropped and in the
    /// others: what else the machine does for a few seconds does not move it.
    pub p99_medians_us: (f64, f64),
    /// Most bytes of the RocksDB folders in the second quarter of the run, and in the last one.
    pub kv_bytes_max: (u64, u64),
}

/// Starts three servers in `folder`, overwrites, and reports. `progress` sees each window as it ends.
pub async fn run(
    binary: &Binary,
    plan: &Plan,
    folder: &Path,
    mut progress: impl FnMut(&Window),
) -> anyhow::Result<Report> {
    ensure!(plan.clients > 0 && plan.rate > 0 && plan.keys > 0, "clients, rate and keys must be above 0");
    ensure!(!plan.window.is_zero() && plan.time >= plan.window * 4, "the run must last for at least four windows");
    let mut flags = vec!["--auto-compaction-retention".to_owned(), plan.retention.clone()];
    flags.extend(plan.flags.iter().cloned());
    let mut cluster = Cluster::start(binary, &Setup { flags, ..Setup::default() }, folder)?;
    cluster.ready(READY).await?;
    let endpoints = cluster.endpoints();
    let begin = Instant::now();
    let end = begin + plan.time;
    let shared = Arc::new(Mutex::new(Latencies::new()));
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        let address = &endpoints[number as usize % endpoints.len()];
        clients.spawn(client(plan.clone(), number, address.clone(), begin, end, Arc::clone(&shared)));
    }
    let mut windows = Vec::new();
    let (mut dropping, mut otherwise) = (Latencies::new(), Latencies::new());
    let mut before = Counters::default();
    let mut next = begin + plan.window;
    while next <= end {
        sleep_until(next).await;
        if let Some(failed) = clients.try_join_next() {
            failed??;
        }
        let puts = std::mem::take(&mut *shared.lock().await);
        let counters = Counters::read(&endpoints).await?;
        let kv = cluster.members.iter().map(|member| resources::disk_bytes(&member.data_dir.join("store/kv")));
        let window = Window {
            end_seconds: (next - begin).as_secs_f64(),
            puts: puts.summary(),
            kv_bytes: kv.sum::<anyhow::Result<u64>>()?,
            disk_bytes: cluster.disk_bytes()?,
            rows_dropped: counters.rows.saturating_sub(before.rows),
            passes: counters.passes.saturating_sub(before.passes),
            compacted: counters.compacted,
        };
        let side = if window.rows_dropped > 0 { &mut dropping } else { &mut otherwise };
        side.merge(&puts);
        progress(&window);
        windows.push(window);
        before = counters;
        next += plan.window;
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let quarter = windows.len() / 4;
    let most = |windows: &[Window]| windows.iter().map(|window| window.kv_bytes).max().unwrap_or(0);
    let kv_bytes_max = (most(&windows[quarter..2 * quarter]), most(&windows[windows.len() - quarter..]));
    let p99_medians_us = (median_p99(&windows, true), median_p99(&windows, false));
    let (while_dropping, otherwise) = (dropping.summary(), otherwise.summary());
    Ok(Report { windows, while_dropping, otherwise, p99_medians_us, kv_bytes_max })
}

/// The median 99th percentile of the windows in which history was dropped, or of the others; 0 without any.
fn median_p99(windows: &[Window], dropping: bool) -> f64 {
    let side = windows.iter().filter(|window| (window.rows_dropped > 0) == dropping);
    let mut p99s: Vec<f64> = side.map(|window| window.puts.p99_us).collect();
    p99s.sort_unstable_by(f64::total_cmp);
    p99s.get(p99s.len() / 2).copied().unwrap_or(0.0)
}

/// One client: a put at each of its times until the end.
async fn client(
    plan: Plan,
    number: u32,
    address: Address,
    begin: Instant,
    end: Instant,
    latencies: Arc<Mutex<Latencies>>,
) -> anyhow::Result<()> {
    let mut kv = address.connect().await?;
    let mut random = Random::new(1, u64::from(number));
    let period = Duration::from_secs_f64(f64::from(plan.clients) / f64::from(plan.rate));
    // Clients take turns within a period.
    let mut due = begin + period.mul_f64(f64::from(number) / f64::from(plan.clients));
    while due < end {
        sleep_until(due).await;
        let key = format!("overwrite/{:08}", random.below(plan.keys));
        let value = random.bytes(plan.value_bytes);
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        let answer = timeout(PUT_TIMEOUT, kv.put(put)).await;
        answer
            .with_context(|| format!("{address}: no answer within {PUT_TIMEOUT:?}"))?
            .map_err(|status| anyhow::anyhow!("{address}: a put failed: {}", status.message()))?;
        latencies.lock().await.record(due.elapsed());
        due += period;
    }
    Ok(())
}

/// What the servers' pages say, added up; the compacted revision is the highest.
#[derive(Debug, Default, Clone, Copy)]
struct Counters {
    rows: u64,
    passes: u64,
    compacted: u64,
}

impl Counters {
    async fn read(endpoints: &[Address]) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for endpoint in endpoints {
            let page = Page::read(endpoint).await.with_context(|| format!("{endpoint} has no metrics page"))?;
            all.rows += page.sum("braid_history_rows_dropped_total");
            all.passes += page.sum("braid_history_passes_total");
            all.compacted = all.compacted.max(page.sum("braid_store_compaction_boundary"));
        }
        Ok(all)
    }
}
