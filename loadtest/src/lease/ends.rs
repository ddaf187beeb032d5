//! The ends of leases: what must happen to their keys, and what a watch was told.
//!
//! 1. A lease may not end before its time: the time at which its grant was *sent*, and the TTL that was granted. The
//!    server's clock for it starts later, and the news of the end arrives later still.
//! 2. Each of its keys is deleted once, all of them at one revision.
//! 3. Whoever waits for the ends says how long; what is missing then is a lease, or a key, that outlives its time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use braid_proto::etcd::etcdserverpb::watch_client::WatchClient;
use braid_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use bytes::Bytes;
use tokio_stream::StreamExt;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::client::prefix_end;

/// A lease that will expire.
#[derive(Debug, Clone, Copy)]
struct Doomed {
    id: i64,
    /// It may not end before.
    due: Instant,
    /// Keys that are still there.
    keys: usize,
    /// Revision at which the first of its keys went, and when that was heard.
    ended: Option<(i64, Instant)>,
}

/// Leases that will expire, their keys, and which of these are gone.
#[derive(Debug, Default)]
pub struct Ledger {
    leases: Vec<Doomed>,
    /// By key: the place of its lease, and whether the key is gone.
    keys: HashMap<Bytes, (usize, bool)>,
    /// Keys that are gone.
    gone: usize,
}

impl Ledger {
    /// Notes a lease that may not end before `due`, with its keys.
    pub fn lease(&mut self, id: i64, due: Instant, keys: impl IntoIterator<Item = Bytes>) {
        let (place, before) = (self.leases.len(), self.keys.len());
        self.keys.extend(keys.into_iter().map(|key| (key, (place, false))));
        self.leases.push(Doomed { id, due, keys: self.keys.len() - before, ended: None });
    }

    /// Takes note that a key was deleted, as heard at `now`. Keys of nobody's lease are passed over.
    pub fn deleted(&mut self, key: &[u8], revision: i64, now: Instant) -> anyhow::Result<()> {
        let Some((place, gone)) = self.keys.get_mut(key) else { return Ok(()) };
        let lease = &mut self.leases[*place];
        let name = format_args!("{} of lease {:x}", key.escape_ascii(), lease.id).to_string();
        ensure!(!*gone, "REPETITION: {name} was deleted twice");
        ensure!(now >= lease.due, "EARLY: {name} was deleted {:?} before its time", lease.due - now);
        let (first, _) = *lease.ended.get_or_insert((revision, now));
        ensure!(first == revision, "SCATTERED: {name} was deleted at {revision}, other keys of the lease at {first}");
        *gone = true;
        lease.keys -= 1;
        self.gone += 1;
        Ok(())
    }

    /// Keys that are gone.
    pub fn gone(&self) -> usize {
        self.gone
    }

    /// All keys.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Ids of all leases.
    pub fn ids(&self) -> impl Iterator<Item = i64> {
        self.leases.iter().map(|lease| lease.id)
    }

    /// How long after its time the news came that the last lease has ended; an error if keys are left.
    pub fn latest(&self) -> anyhow::Result<Duration> {
        let late = |lease: &Doomed| {
            ensure!(lease.keys == 0, "OUTLIVED: {} keys of lease {:x} are there after its time", lease.keys, lease.id);
            Ok(lease.ended.map_or(Duration::ZERO, |(_, heard)| heard - lease.due))
        };
        self.leases.iter().map(late).try_fold(Duration::ZERO, |most, late| Ok(most.max(late?)))
    }
}

/// A watch on the deletes under a prefix.
pub struct Deletes {
    responses: Streaming<WatchResponse>,
}

impl Deletes {
    /// Opens it. Returns when it stands.
    pub async fn watch(channel: Channel, prefix: Bytes) -> anyhow::Result<Self> {
        let create = WatchCreateRequest {
            range_end: prefix_end(&prefix),
            key: prefix,
            filters: vec![FilterType::Noput.into()],
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = tokio_stream::iter([create]).chain(tokio_stream::pending());
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut responses = client.watch(requests).await.context("no watch stream")?.into_inner();
        let first = responses.message().await?.context("the server ended a watch stream")?;
        ensure!(first.created && !first.canceled, "no watch: {:?}", first.cancel_reason);
        Ok(Self { responses })
    }

    /// Waits for the next deletes, and notes them.
    pub async fn next(&mut self, ledger: &mut Ledger) -> anyhow::Result<()> {
        let told = self.responses.message().await?.context("the server ended a watch stream")?;
        let now = Instant::now();
        if told.canceled {
            bail!("the server cancelled a watch: {:?}, compact revision {}", told.cancel_reason, told.compact_revision);
        }
        for kv in told.events.into_iter().filter_map(|event| event.kv) {
            ledger.deleted(&kv.key, kv.mod_revision, now)?;
        }
        Ok(())
    }

    /// Notes deletes until all keys are gone.
    pub async fn until_gone(&mut self, ledger: &mut Ledger) -> anyhow::Result<()> {
        while ledger.gone() < ledger.keys() {
            self.next(ledger).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two leases with two keys each, due a second after the returned instant.
    fn ledger() -> (Ledger, Instant) {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        for (id, keys) in [(1, ["a", "b"]), (2, ["c", "d"])] {
            ledger.lease(id, start + Duration::from_secs(1), keys.map(Bytes::from));
        }
        (ledger, start)
    }

    fn verdict(deletes: &[(&str, i64, u64)]) -> String {
        let (mut ledger, start) = ledger();
        let mut tell = |&(key, revision, millis): &(&str, i64, u64)| {
            ledger.deleted(key.as_bytes(), revision, start + Duration::from_millis(millis))
        };
        match deletes.iter().try_for_each(&mut tell).and_then(|()| ledger.latest()) {
            Ok(late) => format!("{} ms late", late.as_millis()),
            Err(error) => error.to_string().split(':').next().unwrap().to_owned(),
        }
    }

    #[test]
    fn every_key_goes_once_in_time_and_with_the_others_of_its_lease() {
        let all = [("a", 5, 1_000), ("b", 5, 1_000), ("c", 6, 1_200), ("other", 6, 0), ("d", 6, 1_300)];
        assert_eq!(verdict(&all), "200 ms late");
        assert_eq!(verdict(&all[..4]), "OUTLIVED");
        assert_eq!(verdict(&[("a", 5, 999)]), "EARLY");
        assert_eq!(verdict(&[("a", 5, 1_000), ("a", 5, 1_000)]), "REPETITION");
        assert_eq!(verdict(&[("a", 5, 1_000), ("b", 6, 1_000)]), "SCATTERED");
    }

    #[test]
    fn keys_are_counted() {
        let (mut ledger, start) = ledger();
        ledger.deleted(b"a", 5, start + Duration::from_secs(2)).unwrap();
        assert_eq!((ledger.gone(), ledger.keys()), (1, 4));
        assert_eq!(ledger.ids().collect::<Vec<_>>(), [1, 2]);
    }
}
