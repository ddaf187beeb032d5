//! A source that is told what happens, and a cluster that is told where it stands.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use braid_proto::etcd::etcdserverpb::ResponseHeader;
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use braid_proto::key::user_key;
use braid_store_client::bound::Bound;
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::watch::batch::{Batch, Moment};
use crate::watch::service::Outside;
use crate::watch::{Receiver, Source, SubscriptionId, Wanted};

/// A log of events and those who hear it.
pub struct FakeSource {
    state: Arc<Mutex<State>>,
    /// Changes whenever somebody has come further, begun or ended.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    log: Vec<(i64, Arc<Vec<Event>>)>,
    /// Up to where the source knows everything.
    closed: i64,
    hearing: BTreeMap<SubscriptionId, Hearing>,
    /// Keys of which nobody tells.
    silent: Vec<Bytes>,
}

struct Hearing {
    wanted: Wanted,
    receiver: Arc<dyn Receiver>,
    /// The next revision to offer.
    next: i64,
    /// Its receiver had no room.
    waits: bool,
}

impl FakeSource {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Arc::default(), changed: watch::Sender::new(()) })
    }

    /// A put of `key` with `value_bytes` at `revision`, which closes it.
    pub fn put(&self, key: &str, revision: i64, value_bytes: usize) {
        self.put_all(&[key], revision, value_bytes);
    }

    /// From now on nobody tells of these keys.
    pub fn silence(&self, keys: &[&str]) {
        self.state.lock().silent = keys.iter().map(|key| user_key(key.as_bytes())).collect();
    }

    /// Puts of one revision.
    pub fn put_all(&self, keys: &[&str], revision: i64, value_bytes: usize) {
        let put = |key: &&str| {
            let value = vec![b'v'; value_bytes].into();
            let key = (*key).to_owned().into();
            let kv = KeyValue { key, mod_revision: revision, value, ..Default::default() };
            Event { kv: Some(kv), ..Default::default() }
        };
        let mut state = self.state.lock();
        state.log.push((revision, Arc::new(keys.iter().map(put).collect())));
        state.closed = revision;
        state.offer_all();
        drop(state);
        self.changed.send_replace(());
    }

    /// Nothing more comes at or below `revision`.
    pub fn close(&self, revision: i64) {
        self.state.lock().closed = revision;
        self.changed.send_replace(());
    }

    /// Waits until `is_so` of the number of subscriptions, and of those that wait for room.
    pub async fn until(&self, is_so: impl Fn(usize, usize) -> bool) {
        let counts = |state: &State| (state.hearing.len(), state.hearing.values().filter(|one| one.waits).count());
        let mut changed = self.changed.subscribe();
        let so = changed.wait_for(|()| {
            let (all, waiting) = counts(&self.state.lock());
            is_so(all, waiting)
        });
        so.await.expect("the source stands");
    }
}

impl State {
    fn frontier(&self, id: SubscriptionId) -> Option<i64> {
        let hearing = self.hearing.get(&id)?;
        Some(if hearing.waits { hearing.next - 1 } else { self.closed.max(hearing.next - 1) })
    }

    fn offer_all(&mut self) {
        let Self { log, hearing, .. } = self;
        hearing.iter_mut().for_each(|(id, hearing)| hearing.offer(*id, log));
    }
}

impl Hearing {
    fn offer(&mut self, id: SubscriptionId, log: &[(i64, Arc<Vec<Event>>)]) {
        for (revision, events) in log {
            if self.waits || *revision < self.next {
                continue;
            }
            let in_range = |event: &Event| {
                let kv = event.kv.as_ref().expect("a key");
                self.wanted.range.contains(&user_key(&kv.key))
            };
            if events.iter().all(in_range) {
                let batch = Batch::new(vec![Moment { revision: *revision, events: events.to_vec() }]);
                self.waits = self.receiver.take(id, &batch, 0) == 0;
            }
            if !self.waits {
                self.next = revision + 1;
            }
        }
    }
}

impl Source for FakeSource {
    fn subscribe(&self, id: SubscriptionId, wanted: Wanted, receiver: Arc<dyn Receiver>) {
        let mut state = self.state.lock();
        let next = wanted.start;
        let mut hearing = Hearing { wanted, receiver, next, waits: false };
        hearing.offer(id, &state.log);
        state.hearing.insert(id, hearing);
        drop(state);
        self.changed.send_replace(());
    }

    fn unsubscribe(&self, id: SubscriptionId) {
        self.state.lock().hearing.remove(&id);
        self.changed.send_replace(());
    }

    fn resume(&self, id: SubscriptionId) {
        let mut state = self.state.lock();
        let State { log, hearing, .. } = &mut *state;
        if let Some(hearing) = hearing.get_mut(&id) {
            hearing.waits = false;
            hearing.offer(id, log);
        }
        drop(state);
        self.changed.send_replace(());
    }

    fn frontier(&self, id: SubscriptionId) -> Option<i64> {
        self.state.lock().frontier(id)
    }

    fn reach(&self, id: SubscriptionId, revision: i64) -> BoxFuture<'static, ()> {
        let (state, mut changed) = (Arc::clone(&self.state), self.changed.subscribe());
        Box::pin(async move {
            let there = changed.wait_for(|()| state.lock().frontier(id).is_none_or(|frontier| frontier >= revision));
            _ = there.await;
        })
    }

    fn silent(&self, ids: &[SubscriptionId]) -> HashSet<Bytes> {
        let state = self.state.lock();
        let hears = |place: &Bytes| {
            ids.iter().any(|id| state.hearing.get(id).is_some_and(|hearing| hearing.wanted.range.contains(place)))
        };
        state.silent.iter().filter(|place| hears(place)).cloned().collect()
    }
}

/// A cluster at a revision.
pub struct FakeCluster {
    pub revision: AtomicI64,
    pub leader: AtomicBool,
}

impl FakeCluster {
    pub fn at(revision: i64) -> Arc<Self> {
        Arc::new(Self { revision: AtomicI64::new(revision), leader: AtomicBool::new(true) })
    }
}

impl Outside for FakeCluster {
    fn bound(&self) -> BoxFuture<'static, Bound> {
        let bound = Bound { revision: self.revision.load(Ordering::SeqCst), compacted: 0 };
        Box::pin(std::future::ready(bound))
    }

    fn heard(&self) -> i64 {
        self.revision.load(Ordering::SeqCst)
    }

    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: 77, member_id: 5, revision, raft_term: 3 })
    }

    fn has_leader(&self) -> bool {
        self.leader.load(Ordering::SeqCst)
    }

    fn find_leader(&self) -> BoxFuture<'static, bool> {
        Box::pin(std::future::ready(self.has_leader()))
    }
}
