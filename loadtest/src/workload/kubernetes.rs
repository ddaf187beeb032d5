//! What the API servers of a Kubernetes cluster ask of etcd, each kind of request reported by itself.
//!
//! Of a hundred operations of a worker, in random order:
//!
//! | | Operation |
//! |--:|---|
//! | 40 | `heartbeat`: update the lease object of one of the worker's own nodes, by a transaction on its mod_revision |
//! | 25 | `update`: the same with any pod, which other workers update too; a `conflict` is tried again with what it showed |
//! | 20 | `event-create`: create an event object with an etcd lease, which is shared by the events of a minute |
//! | 10 | `page`: the next 500 pods of a list, all pages of it at the first one's revision |
//! | 5 | `get`: read one pod |
//!
//! 1. A pod that the worker has not seen yet is read first (`get`), and updated by the next operation: an API server
//!    knows the mod_revision from its cache.
//! 2. The first three workers watch all pods, leases and events, as three API servers do; how long news takes is
//!    `watch-event`, and no update of their own may be missing.
//! 3. The first worker compacts every few minutes at the revision it saw the time before, as API servers do: a
//!    transaction on `compact_rev_key` decides who may.
//! 4. At the end the leases of the events are revoked, and the events go with them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::request_op::Request;
use braid_proto::etcd::etcdserverpb::response_op::Response;
use braid_proto::etcd::etcdserverpb::{
    CompactionRequest, Compare, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    TxnResponse,
};
use bytes::{BufMut, Bytes, BytesMut};
use tonic::{Code, Status};

use super::client::{lost, wrong};
use super::{Client, Driver, Kind, Trouble};
use crate::client::{header_revision, prefix_end, range};
use crate::histogram::Latencies;
use crate::keys::Picker;
use crate::runner::Clock;

pub mod objects;
mod watcher;

use watcher::Watcher;

/// The workload's name.
pub const NAME: &str = "kubernetes";

/// What can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Seconds from one compaction to the next.
    pub compaction_seconds: u32,
    /// TTL of the events' etcd leases.
    pub event_ttl_seconds: u32,
}

impl Default for Settings {
    /// As API servers have it: five minutes, one hour.
    fn default() -> Self {
        Self { compaction_seconds: 300, event_ttl_seconds: 3_600 }
    }
}

/// Workers that watch.
const API_SERVERS: usize = 3;
/// Nodes of each worker.
const NODES: u64 = 16;
/// Keys of a page of a list.
const PAGE: i64 = 500;
/// An etcd lease is given to no event after this, as API servers have it.
const LEASE_REUSE: Duration = Duration::from_secs(60);
/// Nor to more events than these.
const LEASE_EVENTS: u64 = 1_000;
/// Pods whose mod_revision a worker remembers.
const CACHED_PODS: usize = 10_000;
/// Bytes at the beginning of a value that say when its update started.
pub(super) const STAMP_BYTES: usize = 8;

/// One worker.
pub struct Kubernetes {
    picker: Picker,
    settings: Settings,
    /// mod_revision of pods and of own nodes as last heard; 0: absent.
    pods: HashMap<u64, i64>,
    nodes: [i64; NODES as usize],
    /// The pod whose update comes next.
    next_pod: Option<u64>,
    /// Where the list goes on, and at which revision.
    list: Option<(Bytes, i64)>,
    events: EventLease,
    /// Leases to be revoked at the end.
    leases: Vec<i64>,
    compactor: Option<Compactor>,
    watcher: Option<Rc<RefCell<Watcher>>>,
}

/// The etcd lease that new events get.
#[derive(Default)]
struct EventLease {
    id: i64,
    granted: Option<Instant>,
    events: u64,
    /// Events created by this worker so far.
    created: u64,
}

/// Compacts now and then.
struct Compactor {
    due: Instant,
    /// Revision at the time before.
    revision: i64,
    /// Version of the key that decides.
    version: i64,
}

impl Kubernetes {
    /// For one worker.
    pub fn new(picker: Picker, settings: Settings) -> Self {
        Self {
            picker,
            settings,
            pods: HashMap::new(),
            nodes: [0; NODES as usize],
            next_pod: None,
            list: None,
            events: EventLease::default(),
            leases: Vec::new(),
            compactor: None,
            watcher: None,
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.settings.compaction_seconds.into())
    }

    /// A value that says when it was made.
    fn value(&mut self, client: &Client) -> Bytes {
        let value = self.picker.value();
        let mut stamped = BytesMut::with_capacity(value.len().max(STAMP_BYTES));
        stamped.put_u64_le(u64::try_from(client.common.begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        stamped.put_slice(value.get(STAMP_BYTES..).unwrap_or_default());
        stamped.freeze()
    }

    /// Puts a key whose mod_revision must be `expected`. Gives whether it was, and the one it has now.
    async fn update(&mut self, client: &mut Client, put: PutRequest, expected: i64) -> Result<(bool, i64), Trouble> {
        let get = RangeRequest { key: put.key.clone(), ..RangeRequest::default() };
        let compare = equal(&put.key, CompareTarget::Mod, TargetUnion::ModRevision(expected));
        let reply = client.kv.txn(transaction(compare, put, get)).await?.into_inner();
        let revision = revision_after(&reply)?;
        if let (true, Some(watcher)) = (reply.succeeded, &self.watcher) {
            watcher.borrow_mut().acknowledged(revision);
        }
        Ok((reply.succeeded, revision))
    }

    async fn heartbeat(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let node = self.picker.below(NODES);
        let key = objects::node_key(client.number, node);
        let put = PutRequest { key, value: self.value(client), ..PutRequest::default() };
        let expected = self.nodes[node as usize];
        let (updated, revision) = self.update(client, put, expected).await?;
        self.nodes[node as usize] = revision;
        Ok(if updated { Kind::Heartbeat } else { Kind::UpdateConflict })
    }

    async fn update_pod(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let pod = self.next_pod.take().unwrap_or_else(|| self.picker.number());
        let Some(&expected) = self.pods.get(&pod) else {
            self.next_pod = Some(pod);
            return self.get_pod(client, pod).await;
        };
        let put = PutRequest { key: objects::pod_key(pod), value: self.value(client), ..PutRequest::default() };
        self.pods.remove(&pod);
        let (updated, revision) = self.update(client, put, expected).await?;
        self.pods.insert(pod, revision);
        if !updated {
            self.next_pod = Some(pod);
            return Ok(Kind::UpdateConflict);
        }
        Ok(Kind::Update)
    }

    async fn get_pod(&mut self, client: &mut Client, pod: u64) -> Result<Kind, Trouble> {
        let get = RangeRequest { key: objects::pod_key(pod), ..RangeRequest::default() };
        let reply = client.kv.range(get).await?.into_inner();
        let Some(kv) = reply.kvs.first() else {
            return Err(Status::not_found("a pod that was loaded is not there").into());
        };
        if self.pods.len() == CACHED_PODS {
            self.pods.clear();
        }
        self.pods.insert(pod, kv.mod_revision);
        Ok(Kind::Get)
    }

    async fn create_event(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let fresh = self.events.granted.is_some_and(|granted| granted.elapsed() < LEASE_REUSE);
        if !fresh || self.events.events >= LEASE_EVENTS {
            let ttl = i64::from(self.settings.event_ttl_seconds);
            let granted = client.leases.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.into_inner();
            let created = self.events.created;
            self.events = EventLease { id: granted.id, granted: Some(Instant::now()), events: 0, created };
            self.leases.push(granted.id);
        }
        let key = objects::event_key(self.events.id, client.number, self.events.created);
        self.events.created += 1;
        self.events.events += 1;
        let put = PutRequest { key, value: self.value(client), lease: self.events.id, ..PutRequest::default() };
        let created = self.update(client, put, 0).await;
        match created {
            Ok((true, _)) => Ok(Kind::EventCreate),
            Ok((false, revision)) => Err(wrong(format_args!("an event with a name of its own was there @{revision}"))),
            Err(Trouble::Failed(status)) => Err(lost(self.events.id, "when an event was created with it", status)),
            Err(trouble) => Err(trouble),
        }
    }

    async fn list_page(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let prefix = Bytes::from_static(objects::PODS.as_bytes());
        let (key, revision) = self.list.take().unwrap_or_else(|| (prefix.clone(), 0));
        let page = RangeRequest { limit: PAGE, revision, ..range(key, prefix_end(&prefix)) };
        let reply = match client.kv.range(page).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if revision > 0 && status.code() == Code::OutOfRange => return Ok(Kind::PageExpired),
            Err(status) => return Err(status.into()),
        };
        if let (true, Some(last)) = (reply.more, reply.kvs.last()) {
            let revision = if revision > 0 { revision } else { header_revision(&reply) };
            self.list = Some(([&last.key[..], b"\0"].concat().into(), revision));
        }
        match reply.kvs.is_empty() {
            true => Err(Status::not_found("a page of the pods that were loaded is empty").into()),
            false => Ok(Kind::Page),
        }
    }

    /// Compacts at the revision of the time before, if no other API server has done so meanwhile.
    async fn compact(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let Some(compactor) = &mut self.compactor else { return Err(wrong("this worker does not compact")) };
        compactor.due = Instant::now() + Duration::from_secs(self.settings.compaction_seconds.into());
        let key = Bytes::from_static(objects::COMPACT_KEY.as_bytes());
        let value = compactor.revision.to_string().into();
        let put = PutRequest { key: key.clone(), value, ..PutRequest::default() };
        let compare = equal(&key, CompareTarget::Version, TargetUnion::Version(compactor.version));
        let get = RangeRequest { key, ..RangeRequest::default() };
        let reply = client.kv.txn(transaction(compare, put, get)).await?.into_inner();
        let now = reply.header.as_ref().map_or(0, |header| header.revision);
        let before = std::mem::replace(&mut compactor.revision, now);
        if !reply.succeeded {
            compactor.version = found(&reply)?.map_or(0, |kv| kv.version);
            return Ok(Kind::UpdateConflict);
        }
        compactor.version += 1;
        client.kv.compact(CompactionRequest { revision: before, physical: false }).await?;
        Ok(Kind::Compaction)
    }
}

impl Driver for Kubernetes {
    async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
        for node in 0..NODES {
            let get = RangeRequest { key: objects::node_key(client.number, node), ..RangeRequest::default() };
            let reply = client.kv.range(get).await?;
            self.nodes[node as usize] = reply.get_ref().kvs.first().map_or(0, |kv| kv.mod_revision);
        }
        if client.number < API_SERVERS {
            self.watcher = Some(Watcher::start(client).await?);
        }
        if client.number == 0 {
            let key = Bytes::from_static(objects::COMPACT_KEY.as_bytes());
            let reply = client.kv.range(RangeRequest { key, ..RangeRequest::default() }).await?.into_inner();
            let version = reply.kvs.first().map_or(0, |kv| kv.version);
            let due = Instant::now() + self.interval();
            self.compactor = Some(Compactor { due, revision: header_revision(&reply), version });
        }
        Ok(())
    }

    fn begin(&mut self, clock: Clock) {
        if let Some(watcher) = &self.watcher {
            watcher.borrow_mut().begin(clock);
        }
        if let Some(compactor) = &mut self.compactor {
            compactor.due = clock.start + Duration::from_secs(self.settings.compaction_seconds.into());
        }
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        if self.compactor.as_ref().is_some_and(|compactor| compactor.due <= Instant::now()) {
            return self.compact(client).await;
        }
        if self.next_pod.is_some() {
            return self.update_pod(client).await;
        }
        match self.picker.below(100) {
            0..40 => self.heartbeat(client).await,
            40..65 => self.update_pod(client).await,
            65..85 => self.create_event(client).await,
            85..95 => self.list_page(client).await,
            _ => {
                let pod = self.picker.number();
                self.get_pod(client, pod).await
            }
        }
    }

    async fn finish(&mut self, client: &mut Client) -> Result<(), Trouble> {
        if let Some(watcher) = &self.watcher {
            watcher::complete(watcher).await?;
        }
        for id in std::mem::take(&mut self.leases) {
            match client.leases.lease_revoke(LeaseRevokeRequest { id }).await {
                // Its time may have come during the run.
                Err(status) if status.code() != Code::NotFound => return Err(status.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn aside(&mut self) -> Option<(Kind, Latencies)> {
        let watcher = self.watcher.take()?;
        let latencies = watcher.borrow_mut().take_latencies();
        Some((Kind::WatchEvent, latencies))
    }
}

fn equal(key: &Bytes, target: CompareTarget, with: TargetUnion) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.clone(),
        target_union: Some(with),
        ..Compare::default()
    }
}

/// Puts if the comparison holds, otherwise reads.
fn transaction(compare: Compare, put: PutRequest, get: RangeRequest) -> TxnRequest {
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
    }
}

/// The mod_revision of the key after such a transaction.
fn revision_after(reply: &TxnResponse) -> Result<i64, Status> {
    match reply.succeeded {
        true => Ok(reply.header.as_ref().map_or(0, |header| header.revision)),
        false => Ok(found(reply)?.map_or(0, |kv| kv.mod_revision)),
    }
}

/// What the read of a transaction found whose comparison did not hold.
fn found(reply: &TxnResponse) -> Result<Option<&braid_proto::etcd::mvccpb::KeyValue>, Status> {
    match reply.responses.first().and_then(|op| op.response.as_ref()) {
        Some(Response::ResponseRange(range)) => Ok(range.kvs.first()),
        _ => Err(Status::internal("a failed comparison that was not followed by the read")),
    }
}
