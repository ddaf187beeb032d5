//! Grants a great many leases, many at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use braid_proto::etcd::etcdserverpb::{LeaseGrantRequest, LeaseLeasesRequest, PutRequest};
use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::client::{Address, Leases, unlimited};

/// A client of the lease service for answers of any size: the list of a million leases is one answer.
pub fn leases(channel: Channel) -> Leases {
    LeaseClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// One connection for every 32 workers, and at least two for each endpoint.
pub async fn connect(endpoints: &[Address], workers: usize) -> anyhow::Result<Vec<Channel>> {
    ensure!(!endpoints.is_empty(), "no endpoints");
    let mut channels = Vec::new();
    for number in 0..workers.div_ceil(32).max(2 * endpoints.len()) {
        channels.push(endpoints[number % endpoints.len()].channel().await?);
    }
    Ok(channels)
}

/// A lease that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Its number, from 0.
    pub number: u64,
    /// Its id.
    pub id: i64,
    /// Its TTL in seconds.
    pub ttl: u64,
    /// When the request was sent.
    pub sent: Instant,
}

/// Grants leases with the numbers below `count`, with as many requests in flight as there are workers. `ttl` is asked for
/// the TTL of each when its turn comes; `key` may name a key that is put with it.
pub async fn grant(
    channels: &[Channel],
    workers: usize,
    count: u64,
    ttl: impl Fn() -> anyhow::Result<u64> + Clone + Send + 'static,
    key: impl Fn(u64) -> Option<Bytes> + Clone + Send + 'static,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Granted>> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let channel = channels[worker % channels.len()].clone();
        let (next, bar, ttl, key) = (Arc::clone(&next), bar.clone(), ttl.clone(), key.clone());
        tasks.spawn(async move {
            let (mut leases, mut kv) = (LeaseClient::new(channel.clone()), unlimited(channel));
            let mut granted = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(granted);
                }
                let (ttl, sent) = (ttl()?, Instant::now());
                let request = LeaseGrantRequest { ttl: ttl.cast_signed(), id: 0 };
                let reply = leases.lease_grant(request).await.context("a grant failed")?.into_inner();
                ensure!(reply.ttl == ttl.cast_signed(), "{ttl} s were asked for, and granted was {reply:?}");
                if let Some(key) = key(number) {
                    let put = PutRequest { key, lease: reply.id, ..PutRequest::default() };
                    kv.put(put).await.context("a put with a lease, just granted, failed")?;
                }
                granted.push(Granted { number, id: reply.id, ttl, sent });
                bar.inc(1);
            }
        });
    }
    let mut all = Vec::with_capacity(count as usize);
    while let Some(granted) = tasks.join_next().await {
        all.extend(granted.context("a worker panicked")??);
    }
    Ok(all)
}

/// The leases that a server lists.
pub async fn listed(channel: &Channel) -> anyhow::Result<Vec<i64>> {
    let reply = leases(channel.clone()).lease_leases(LeaseLeasesRequest {}).await.context("no list of leases")?;
    Ok(reply.into_inner().leases.into_iter().map(|lease| lease.id).collect())
}
