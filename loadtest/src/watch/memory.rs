//! What watches cost in memory: a great many on one server of a cluster, and the server's resident memory before and after.
//!
//! 1. The server is warmed up by a few watches, so that what it allocates once is not counted.
//! 2. All watches are opened on one server, each on a key of its own or all on one range; resident memory is read when they
//!    stand and after a pause for garbage collectors.
//! 3. Keys all over the place are put, and each of these puts must reach its watches: watches that are cheap because they
//!    are not there would be found out.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::PutRequest;
use bytes::Bytes;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shape;
use super::held;
use super::stream::{Target, WatchStream};
use crate::client::prefix_end;
use crate::cluster::{Binary, Cluster, Setup};
use crate::resources;

const READY: Duration = Duration::from_secs(60);
/// How long events may take to arrive.
const DELIVERY: Duration = Duration::from_secs(60);
const PREFIX: &str = "watched/";

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Watches with their streams and connections.
    pub shape: Shape,
    /// All watches look at the same prefix, instead of a key each.
    pub one_range: bool,
    /// Keys that are put once all watches stand.
    pub puts: usize,
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
    /// Watches on its first member.
    pub watches: usize,
    /// Time until all of them stood.
    pub open_seconds: f64,
    /// Resident memory of the member before.
    pub before_bytes: u64,
    /// When the watches stood.
    pub open_bytes: u64,
    /// After the pause.
    pub settled_bytes: u64,
    /// After the puts.
    pub told_bytes: u64,
    /// What the pause left for each watch.
    pub bytes_per_watch: f64,
    /// Events that arrived.
    pub events: usize,
}

/// Starts a cluster of `binary` in `folder` and measures its first member.
pub async fn run(binary: &Binary, plan: &Plan, folder: &Path) -> anyhow::Result<Report> {
    ensure!(plan.shape.watches > 0, "there must be at least one watch");
    let mut cluster = Cluster::start(binary, &plan.setup, folder)?;
    cluster.ready(READY).await?;
    let member = &cluster.members[0];
    let (address, pid) = (member.client.clone(), member.process.pid());
    let resident = || resources::resident_bytes(pid);

    let few = Shape { watches: 2 * plan.shape.connections, ..plan.shape }.fit();
    drop(held::open(std::slice::from_ref(&address), few, |number| Target::key(key(number))).await?);
    tokio::time::sleep(plan.settle).await;

    let before_bytes = resident()?;
    let start = Instant::now();
    let one_range = plan.one_range;
    let prefix = Bytes::from_static(PREFIX.as_bytes());
    let target = |number| match one_range {
        true => Target { end: prefix_end(&prefix), key: prefix.clone(), start_revision: 0 },
        false => Target::key(key(number)),
    };
    let streams = held::open(std::slice::from_ref(&address), plan.shape, target).await?;
    let open_seconds = start.elapsed().as_secs_f64();
    let open_bytes = resident()?;
    tokio::time::sleep(plan.settle).await;
    let settled_bytes = resident()?;

    // Keys spread evenly over the watches; each stream must hear of those that are its own.
    let numbers: Vec<usize> = (0..plan.puts).map(|put| put * plan.shape.watches / plan.puts).collect();
    let mut wanted = vec![0; streams.len()];
    for (number, stream) in streams.iter().enumerate() {
        wanted[number] = match one_range {
            true => stream.watches() * plan.puts,
            false => numbers.iter().filter(|&&put| put % streams.len() == number).count(),
        };
    }
    let mut listeners = JoinSet::new();
    for (stream, wanted) in streams.into_iter().zip(wanted) {
        listeners.spawn(listen(stream, wanted));
    }
    let mut kv = cluster.members[cluster.members.len() - 1].client.connect().await?;
    for number in numbers {
        kv.put(PutRequest { key: key(number), value: "told".into(), ..PutRequest::default() }).await?;
    }
    let mut events = 0;
    let mut streams = Vec::new();
    while let Some(heard) = listeners.join_next().await {
        let (stream, heard) = heard.context("a listener panicked")??;
        events += heard;
        streams.push(stream);
    }
    let told_bytes = resident()?;
    drop(streams);
    Ok(Report {
        system: cluster.system.to_string(),
        watches: plan.shape.watches,
        open_seconds,
        before_bytes,
        open_bytes,
        settled_bytes,
        told_bytes,
        bytes_per_watch: settled_bytes.saturating_sub(before_bytes) as f64 / plan.shape.watches as f64,
        events,
    })
}

fn key(number: usize) -> Bytes {
    format!("{PREFIX}{number:010}").into()
}

/// Waits for so many events.
async fn listen(mut stream: WatchStream, wanted: usize) -> anyhow::Result<(WatchStream, usize)> {
    let mut heard = 0;
    while heard < wanted {
        let told = timeout(DELIVERY, stream.next()).await;
        let (_, message) = told.with_context(|| format!("LOSS: {heard} events of {wanted} within {DELIVERY:?}"))??;
        for event in message.events() {
            event.map_err(tonic::Status::from)?;
            heard += 1;
        }
    }
    ensure!(heard == wanted, "REPETITION: {heard} events, but {wanted} puts");
    Ok((stream, heard))
}
