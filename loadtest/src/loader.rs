//! Fills a cluster with numbered entries: concurrent puts, as many in flight as there are clients, each repeated until
//! it is acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use braid_proto::etcd::etcdserverpb::PutRequest;
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::Address;
use crate::histogram::{Latencies, Summary};
use crate::session::{Policy, Pool, Session};

/// How to load.
#[derive(Debug, Clone)]
pub struct Loader {
    /// Endpoints, used in turn.
    pub endpoints: Vec<Address>,
    /// Puts in flight.
    pub clients: usize,
    /// TCP connections that they share.
    pub connections: usize,
    /// How long a put may take.
    pub policy: Policy,
}

/// What was loaded.
#[derive(Debug, Clone, Serialize)]
pub struct Loaded {
    /// Acknowledged puts.
    pub puts: u64,
    /// Attempts that had to be repeated.
    pub retries: u64,
    /// Bytes of all keys and values.
    pub bytes: u64,
    /// Highest revision that was acknowledged.
    pub revision: i64,
    /// Wall time.
    pub seconds: f64,
    /// Acknowledged puts per second.
    pub puts_per_second: f64,
    /// Time from the first attempt of a put to its acknowledgement.
    pub latency: Summary,
}

/// One client's share of the outcome.
#[derive(Default)]
struct Tally {
    puts: u64,
    retries: u64,
    bytes: u64,
    revision: i64,
    latencies: Latencies,
}

impl Loader {
    /// With a connection for every 32 clients, and at least two for each endpoint.
    pub fn spread(endpoints: &[Address], clients: usize) -> Self {
        let connections = clients.div_ceil(32).max(2 * endpoints.len());
        Self { endpoints: endpoints.to_vec(), clients, connections, policy: Policy::default() }
    }

    /// Puts the entries 0 to `count` - 1 that `entry` makes. Fails at the first put that cannot be done; entries loaded
    /// by then stay.
    pub async fn load<F>(&self, count: u64, entry: F, bar: &ProgressBar) -> anyhow::Result<Loaded>
    where
        F: Fn(u64) -> (Bytes, Bytes) + Send + Sync + 'static,
    {
        let pool = Pool::new(&self.endpoints, self.connections, self.policy);
        let source = Arc::new(Source { next: AtomicU64::new(0), count, entry, bar: bar.clone() });
        let start = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            clients.spawn(client(pool.session(number), Arc::clone(&source)));
        }
        let mut sum = Tally::default();
        while let Some(tally) = clients.join_next().await {
            sum.add(&tally.context("a client panicked")??);
        }
        Ok(sum.finish(start.elapsed()))
    }
}

/// Where clients take their entries from.
struct Source<F> {
    next: AtomicU64,
    count: u64,
    entry: F,
    bar: ProgressBar,
}

async fn client<F>(mut session: Session, source: Arc<Source<F>>) -> anyhow::Result<Tally>
where
    F: Fn(u64) -> (Bytes, Bytes) + Send + Sync,
{
    let mut tally = Tally::default();
    loop {
        let index = source.next.fetch_add(1, Ordering::Relaxed);
        if index >= source.count {
            tally.retries = session.retries();
            return Ok(tally);
        }
        let (key, value) = (source.entry)(index);
        tally.bytes += (key.len() + value.len()) as u64;
        let start = Instant::now();
        let reply = session.call(PutRequest { key, value, ..PutRequest::default() }).await?;
        tally.latencies.record(start.elapsed());
        tally.puts += 1;
        tally.revision = tally.revision.max(reply.header.map_or(0, |header| header.revision));
        source.bar.inc(1);
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.puts += other.puts;
        self.retries += other.retries;
        self.bytes += other.bytes;
        self.revision = self.revision.max(other.revision);
        self.latencies.merge(&other.latencies);
    }

    fn finish(self, elapsed: Duration) -> Loaded {
        let seconds = elapsed.as_secs_f64();
        Loaded {
            puts: self.puts,
            retries: self.retries,
            bytes: self.bytes,
            revision: self.revision,
            seconds,
            puts_per_second: self.puts as f64 / seconds,
            latency: self.latencies.summary(),
        }
    }
}
