//! An honest little cluster in memory: one history of keys, regions cut out of it, stores that check epoch and leader
//! as the real ones do. Tests tell single stores to refuse, hang or lose answers.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use braid_proto::error::{self, EtcdStatus};
use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use braid_proto::id::StoreId;
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{
    DecideResponse, EpochMismatch, FrontierResponse, HashRequest, HoldResponse, NotLeader, Peer, ReadRequest, Refusal,
    Region, RegionEpoch, RegionNotFound, RegionRequest, RegionResponse, ReleaseResponse, refusal::Reason,
    region_request, region_response,
};
use braid_proto::range::{Fetch, fetch, finish};
use braid_proto::service::{BoxFuture, RegionService};
use braid_store_core::hash::RangeHash;
use braid_store_core::record::Head;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

/// What a store does with its next request.
pub enum Script {
    /// Refuses it.
    Refuse(Reason),
    /// Answers so.
    Answer(region_response::Result),
    /// Does it, but loses the answer.
    DoAndRefuse(Reason),
    /// All locks were given up meanwhile: a decision finds nothing.
    Over,
    /// Never answers.
    Hang,
    /// Does it when this says so.
    Hold(oneshot::Receiver<()>),
}

/// The whole cluster.
#[derive(Default)]
pub struct World {
    state: Mutex<State>,
    /// Requests that have reached stores, ever.
    reached: watch::Sender<usize>,
    /// The newest revision.
    happened: watch::Sender<i64>,
    /// The highest revision that somebody has waited for the disks at.
    drop_asked: watch::Sender<i64>,
    /// The disks hold nothing below it.
    dropped: watch::Sender<i64>,
}

#[derive(Default)]
struct State {
    revision: i64,
    compacted: i64,
    /// Every state of every key, oldest first; `version` 0 is a deletion.
    keys: BTreeMap<Bytes, Vec<KeyValue>>,
    regions: Vec<(Region, StoreId)>,
    scripts: HashMap<StoreId, VecDeque<Script>>,
    /// Stores that refuse everything, as a store does that cannot be reached.
    dead: Vec<StoreId>,
    /// Locks that stand, and how many were ever taken.
    locks: Vec<locks::Held>,
    tokens: u64,
    /// By id.
    leases: BTreeMap<i64, leases::Held>,
    /// What each region's leader remembers: it may put keys with this lease.
    attached: HashSet<(u64, i64)>,
    /// Scripts that begin after so many requests of their store.
    later: HashMap<StoreId, (usize, Script)>,
    /// Every request that reached a store, as "s1 r2 put".
    calls: Vec<String>,
    /// What placement believes of regions, if it lags.
    stale_routes: Option<Vec<(Region, StoreId)>>,
    not_ready: String,
}

impl World {
    /// A cluster with a region for each gap between `cuts`, on stores 1 to 3, led by them in turn.
    pub fn new(cuts: &[&str]) -> Arc<Self> {
        Self::cut(cuts.iter().map(|cut| user_key(cut.as_bytes())))
    }

    /// The same, cut at internal keys.
    pub fn cut(cuts: impl IntoIterator<Item = Bytes>) -> Arc<Self> {
        let world = Self::default();
        let mut state = world.state.lock();
        state.revision = 1;
        let mut bounds = vec![Bytes::new()];
        bounds.extend(cuts);
        bounds.push(Bytes::new());
        for (index, pair) in bounds.windows(2).enumerate() {
            let id = index as u64 + 1;
            let region = Region {
                id,
                start: pair[0].clone(),
                end: pair[1].clone(),
                epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
                peers: (1..=3).map(|store_id| Peer::voter(id * 10 + store_id, store_id)).collect(),
            };
            state.regions.push((region, StoreId(index as u64 % 3 + 1)));
        }
        drop(state);
        Arc::new(world)
    }

    pub fn store(self: &Arc<Self>, id: u64) -> Arc<dyn RegionService> {
        Arc::new(FakeStore { world: Arc::clone(self), id: StoreId(id) })
    }

    pub fn script(&self, store: u64, script: Script) {
        self.state.lock().scripts.entry(StoreId(store)).or_default().push_back(script);
    }

    /// What `store` does with a request after the next `count`.
    pub fn script_after(&self, store: u64, count: usize, script: Script) {
        self.state.lock().later.insert(StoreId(store), (count, script));
    }

    pub fn kill(&self, store: u64) {
        self.state.lock().dead.push(StoreId(store));
    }

    pub fn lead(&self, region: u64, store: u64) {
        let mut state = self.state.lock();
        let found = state.regions.iter_mut().find(|(candidate, _)| candidate.id == region);
        found.expect("a region").1 = StoreId(store);
    }

    /// Splits the region that holds `key`; the right half gets the next free id.
    pub fn split(&self, key: &str) {
        let mut state = self.state.lock();
        let key = user_key(key.as_bytes());
        let new_id = state.regions.iter().map(|(region, _)| region.id).max().unwrap_or(0) + 1;
        let index = state.regions.iter().position(|(region, _)| region.range().contains(&key)).expect("a region");
        let (left, leader) = &mut state.regions[index];
        let mut epoch = left.region_epoch();
        epoch.version += 1;
        let right = Region { id: new_id, start: key.clone(), epoch: Some(epoch), ..left.clone() };
        left.end = key;
        left.epoch = Some(epoch);
        let leader = *leader;
        state.regions.insert(index + 1, (right, leader));
    }

    /// Moves a region to other stores.
    pub fn move_region(&self, region: u64, stores: &[u64]) {
        let mut state = self.state.lock();
        let (region, leader) =
            state.regions.iter_mut().find(|(candidate, _)| candidate.id == region).expect("a region");
        let peer = |store_id: &u64| Peer::voter(region.id * 10 + store_id, *store_id);
        region.peers = stores.iter().map(peer).collect();
        region.epoch.as_mut().expect("an epoch").conf_ver += 1;
        *leader = StoreId(stores[0]);
    }

    /// From now on placement answers with the routes of this moment.
    pub fn freeze_routes(&self) {
        let mut state = self.state.lock();
        state.stale_routes = Some(state.regions.clone());
    }

    pub fn set_not_ready(&self, text: &str) {
        text.clone_into(&mut self.state.lock().not_ready);
    }

    pub fn not_ready(&self) -> String {
        self.state.lock().not_ready.clone()
    }

    pub fn routes(&self) -> Vec<(Region, StoreId)> {
        let state = self.state.lock();
        state.stale_routes.clone().unwrap_or_else(|| state.regions.clone())
    }

    pub fn set_compacted(&self, revision: i64) {
        self.state.lock().compacted = revision;
    }

    /// Compacts as placement would.
    pub fn compact(&self, revision: i64) -> Result<(), EtcdStatus> {
        let mut state = self.state.lock();
        match revision {
            _ if revision <= state.compacted => Err(error::COMPACTED),
            _ if revision > state.revision => Err(error::FUTURE_REVISION),
            _ => {
                state.compacted = revision;
                Ok(())
            }
        }
    }

    /// Waits until the disks hold nothing below `revision`.
    pub async fn dropped(&self, revision: i64) {
        self.drop_asked.send_modify(|asked| *asked = revision.max(*asked));
        _ = self.dropped.subscribe().wait_for(|dropped| *dropped >= revision).await;
    }

    /// Waits until somebody waits for [`World::dropped`].
    pub async fn drop_asked(&self, revision: i64) {
        _ = self.drop_asked.subscribe().wait_for(|asked| *asked >= revision).await;
    }

    /// Now they hold nothing below `revision`.
    pub fn drop_below(&self, revision: i64) {
        self.dropped.send_replace(revision);
    }

    /// The newest revision and the compaction boundary.
    pub fn bound(&self) -> (i64, i64) {
        let state = self.state.lock();
        (state.revision, state.compacted)
    }

    /// Requests that reached stores since the last call of this.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// Waits until `count` more requests have reached stores than at `since`.
    pub async fn reached(&self, since: usize, count: usize) {
        let mut reached = self.reached.subscribe();
        let enough = reached.wait_for(|reached| *reached >= since + count);
        tokio::time::timeout(Duration::from_secs(20), enough).await.expect("in time").expect("the world stands");
    }

    /// Requests that have reached stores, ever.
    pub fn reached_so_far(&self) -> usize {
        *self.reached.borrow()
    }

    pub fn put(&self, key: &str, value: &str) -> i64 {
        let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let mut state = self.state.lock();
        state.revision += 1;
        let revision = state.revision;
        state.put(&request, revision);
        self.happened.send_replace(revision);
        revision
    }

    /// Hears of every new revision.
    pub fn happened(&self) -> watch::Receiver<i64> {
        self.happened.subscribe()
    }

    /// What has happened in `range` after revision `after`, as watches see it.
    pub fn events(&self, range: &KeyRange, after: i64) -> BTreeMap<i64, Vec<Event>> {
        let state = self.state.lock();
        let mut events: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        let inside = state.keys.iter().filter(|(key, _)| range.contains(&user_key(key)));
        for kv in inside.flat_map(|(_, states)| states).filter(|kv| kv.mod_revision > after) {
            let kind = if kv.version > 0 { EventType::Put } else { EventType::Delete };
            let event = Event { r#type: kind as i32, kv: Some(kv.clone()), prev_kv: None };
            events.entry(kv.mod_revision).or_default().push(event);
        }
        events
    }

    /// The hash of one region that held everything.
    pub fn hash_of_all(&self, revision: i64) -> RangeHash {
        self.state.lock().hash_of(&KeyRange::user(b"", &[0]), revision)
    }

    /// What one region that held everything would answer.
    pub fn oracle(&self, request: &RangeRequest) -> RangeResponse {
        let state = self.state.lock();
        let at = if request.revision > 0 { request.revision } else { state.revision };
        let span = KeyRange::user(&request.key, &request.range_end);
        state.range(request, &span, at)
    }
}

#[path = "world_leases.rs"]
mod leases;
#[path = "locks.rs"]
mod locks;

struct FakeStore {
    world: Arc<World>,
    id: StoreId,
}

impl RegionService for FakeStore {
    fn call(&self, request: RegionRequest) -> BoxFuture<RegionResponse> {
        let mut state = self.world.state.lock();
        let name = op_name(request.op.as_ref());
        state.calls.push(format!("{} r{} {name}", self.id, request.region_id));
        self.world.reached.send_modify(|reached| *reached += 1);
        if let Some((left, script)) = state.later.remove(&self.id) {
            match left {
                0 => state.scripts.entry(self.id).or_default().push_back(script),
                _ => _ = state.later.insert(self.id, (left - 1, script)),
            }
        }
        let result = match state.scripts.get_mut(&self.id).and_then(VecDeque::pop_front) {
            _ if state.dead.contains(&self.id) => refuse(Reason::NotLeader(NotLeader { leader: None })),
            Some(Script::Hang) => return Box::pin(std::future::pending()),
            Some(Script::Hold(until)) => {
                let (world, id) = (Arc::clone(&self.world), self.id);
                return Box::pin(async move {
                    until.await.expect("the test says when");
                    RegionResponse { result: Some(world.state.lock().serve(id, request)) }
                });
            }
            Some(Script::Refuse(reason)) => refuse(reason),
            Some(Script::Over) => {
                state.locks.clear();
                region_response::Result::Decide(DecideResponse { over: true, revision: 0 })
            }
            Some(Script::Answer(answer)) => answer,
            Some(Script::DoAndRefuse(reason)) => {
                state.serve(self.id, request);
                refuse(reason)
            }
            None => state.serve(self.id, request),
        };
        self.world.happened.send_replace(state.revision);
        Box::pin(std::future::ready(RegionResponse { result: Some(result) }))
    }
}

fn op_name(op: Option<&region_request::Op>) -> &'static str {
    match op {
        Some(region_request::Op::Read(read)) if read.range.as_ref().is_some_and(|range| range.count_only) => "count",
        Some(region_request::Op::Read(_)) => "read",
        Some(region_request::Op::Put(_)) => "put",
        Some(region_request::Op::DeleteRange(_)) => "delete",
        Some(region_request::Op::Txn(_)) => "txn",
        Some(region_request::Op::Lock(_)) => "lock",
        Some(region_request::Op::Decide(_)) => "decide",
        Some(region_request::Op::Release(_)) => "release",
        Some(region_request::Op::Commit(_)) => "commit",
        Some(region_request::Op::Outcome(_)) => "outcome",
        Some(region_request::Op::Hold(_)) => "hold",
        Some(region_request::Op::Frontier(_)) => "frontier",
        Some(region_request::Op::Hash(_)) => "hash",
        Some(region_request::Op::GrantLease(_)) => "grant",
        Some(region_request::Op::KeepLease(_)) => "keep",
        Some(region_request::Op::RevokeLease(_)) => "revoke",
        Some(region_request::Op::LeaseState(_)) => "state",
        Some(region_request::Op::RegisterLease(_)) => "register",
        Some(region_request::Op::ListLeases(_)) => "list",
        Some(region_request::Op::AttachLease(_)) => "attach",
        Some(region_request::Op::AttachedKeys(_)) => "keys",
        Some(region_request::Op::DetachLease(_)) => "detach",
        Some(region_request::Op::Absorb(_)) => "absorb",
        Some(region_request::Op::Frozen(_)) => "frozen",
        None => "nothing",
    }
}

fn refuse(reason: Reason) -> region_response::Result {
    region_response::Result::Refusal(Refusal { reason: Some(reason) })
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

impl State {
    fn serve(&mut self, store: StoreId, request: RegionRequest) -> region_response::Result {
        let found = self.regions.iter().find(|(region, _)| region.id == request.region_id).cloned();
        let Some((region, leader)) = found.filter(|(region, _)| region.peer_on(store).is_some()) else {
            return refuse(Reason::RegionNotFound(RegionNotFound {}));
        };
        if region.epoch != request.epoch {
            // The real store names the region and those that were split off it.
            let current = self.regions.iter().map(|(region, _)| region.clone()).collect();
            return refuse(Reason::EpochMismatch(EpochMismatch { current }));
        }
        let stale = match &request.op {
            Some(region_request::Op::Read(ReadRequest { range: Some(range), .. })) => range.serializable,
            Some(region_request::Op::Frontier(frontier)) => !frontier.leader,
            Some(region_request::Op::Hash(_)) => true,
            _ => false,
        };
        if leader != store && !stale {
            let leader = leader.is_valid().then(|| region.peer_on(leader).copied()).flatten();
            return refuse(Reason::NotLeader(NotLeader { leader }));
        }
        match request.op {
            Some(region_request::Op::Read(ReadRequest { range: Some(range), read_at })) => {
                self.read(&region, &range, read_at)
            }
            Some(region_request::Op::Put(put)) => {
                if !self.attach_own(region.id, [put.lease]) {
                    return region_response::Result::Error(error::LEASE_NOT_FOUND.into());
                }
                self.revision += 1;
                region_response::Result::Put(self.put(&put, self.revision))
            }
            Some(region_request::Op::DeleteRange(delete)) => {
                let (next, answer) = (self.revision + 1, self.revision);
                let mut response = self.delete(&delete, next);
                self.revision = if response.deleted > 0 { next } else { answer };
                response.header = header(self.revision);
                region_response::Result::DeleteRange(response)
            }
            Some(region_request::Op::Txn(txn)) => self.txn(region.id, &txn),
            Some(region_request::Op::Lock(lock)) => self.lock(region.id, &lock),
            Some(region_request::Op::Decide(decide)) => self.decide(&decide),
            Some(region_request::Op::Release(release)) => {
                self.release(region.id, release.txn);
                region_response::Result::Release(ReleaseResponse {})
            }
            Some(region_request::Op::Frontier(_)) => {
                region_response::Result::Frontier(FrontierResponse { revision: self.revision, index: 0 })
            }
            Some(region_request::Op::Hash(hash)) => self.hash(&region, &hash),
            Some(region_request::Op::Hold(_)) => region_response::Result::Hold(HoldResponse { over: false }),
            Some(op) => self.lease_op(&region, op),
            None => panic!("a request without an operation"),
        }
    }

    fn read(&self, region: &Region, range: &RangeRequest, read_at: i64) -> region_response::Result {
        let span = KeyRange::user(&range.key, &range.range_end);
        assert!(region.range().contains_range(&span), "{span:?} is not in {region:?}");
        let bound = if read_at == 0 { self.revision } else { read_at };
        let at = if range.revision > 0 { range.revision } else { bound };
        if at > bound {
            return region_response::Result::Error(error::FUTURE_REVISION.into());
        }
        if at < self.compacted {
            return region_response::Result::Error(error::COMPACTED.into());
        }
        let mut answer = self.range(range, &span, at);
        answer.header = header(bound);
        region_response::Result::Range(answer)
    }

    fn range(&self, request: &RangeRequest, span: &KeyRange, at: i64) -> RangeResponse {
        let alive = self.keys.iter().filter(|(key, _)| span.contains(&user_key(key))).filter_map(|(_, states)| {
            let state = states.iter().rev().find(|state| state.mod_revision <= at)?;
            (state.version > 0).then(|| state.clone())
        });
        let alive: Vec<KeyValue> = alive.collect();
        let count = alive.len() as i64;
        let kvs = match fetch(request) {
            Fetch::Nothing => Vec::new(),
            Fetch::First(first) => alive.into_iter().take(first).collect(),
            Fetch::All => alive,
        };
        finish(request, kvs, count)
    }

    /// A hash of all puts up to the revision: compaction drops nothing here.
    fn hash(&self, region: &Region, request: &HashRequest) -> region_response::Result {
        if request.boundary < self.compacted {
            return region_response::Result::Error(error::COMPACTED.into());
        }
        let span = match request.start.is_empty() && request.end.is_empty() {
            true => region.range(),
            false => KeyRange { start: request.start.clone(), end: request.end.clone() },
        };
        assert!(region.range().contains_range(&span), "{span:?} is not in {region:?}");
        region_response::Result::Hash(self.hash_of(&span, request.revision).into())
    }

    fn hash_of(&self, span: &KeyRange, revision: i64) -> RangeHash {
        let mut hash = RangeHash::default();
        for (key, states) in self.keys.iter().filter(|(key, _)| span.contains(&user_key(key))) {
            for state in states.iter().rev().filter(|state| state.mod_revision <= revision && state.version > 0) {
                let KeyValue { create_revision, mod_revision, version, lease, .. } = *state;
                hash.add(key, &Head { create_revision, mod_revision, version, lease }, &state.value, 0);
            }
        }
        hash
    }

    fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)?.last().filter(|state| state.version > 0)
    }

    fn put(&mut self, request: &PutRequest, revision: i64) -> PutResponse {
        let before = self.get(&request.key).cloned();
        let state = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            create_revision: before.as_ref().map_or(revision, |before| before.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(1, |before| before.version + 1),
            lease: request.lease,
        };
        self.keys.entry(request.key.clone()).or_default().push(state);
        PutResponse { header: header(revision), prev_kv: before.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest, revision: i64) -> DeleteRangeResponse {
        let span = KeyRange::user(&request.key, &request.range_end);
        let all = RangeRequest::default();
        let gone = self.range(&all, &span, i64::MAX).kvs;
        for kv in &gone {
            let tombstone = KeyValue { key: kv.key.clone(), mod_revision: revision, ..Default::default() };
            self.keys.entry(kv.key.clone()).or_default().push(tombstone);
        }
        let deleted = gone.len() as i64;
        DeleteRangeResponse { header: None, deleted, prev_kvs: if request.prev_kv { gone } else { Vec::new() } }
    }

    fn txn(&mut self, region: u64, txn: &TxnRequest) -> region_response::Result {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let next = self.revision + 1;
        let mut changed = false;
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let leases = branch.iter().filter_map(|op| match &op.request {
            Some(request_op::Request::RequestPut(put)) => Some(put.lease),
            _ => None,
        });
        if !self.attach_own(region, leases) {
            return region_response::Result::Error(error::LEASE_NOT_FOUND.into());
        }
        let responses = branch.iter().map(|op| self.operation(op, next, &mut changed)).collect();
        if changed {
            self.revision = next;
        }
        region_response::Result::Txn(TxnResponse { header: header(self.revision), succeeded, responses })
    }

    fn operation(&mut self, op: &RequestOp, next: i64, changed: &mut bool) -> ResponseOp {
        let response = match op.request.as_ref().expect("checked by the proxy") {
            request_op::Request::RequestPut(put) => {
                *changed = true;
                response_op::Response::ResponsePut(self.put(put, next))
            }
            request_op::Request::RequestDeleteRange(delete) => {
                let mut answer = self.delete(delete, next);
                *changed |= answer.deleted > 0;
                answer.header = header(if *changed { next } else { self.revision });
                response_op::Response::ResponseDeleteRange(answer)
            }
            request_op::Request::RequestRange(range) => {
                let span = KeyRange::user(&range.key, &range.range_end);
                let answer = self.range(range, &span, next);
                let header = header(if *changed { next } else { self.revision });
                response_op::Response::ResponseRange(RangeResponse { header, ..answer })
            }
            request_op::Request::RequestTxn(_) => panic!("no test nests transactions"),
        };
        ResponseOp { response: Some(response) }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.get(&compare.key);
        let (have, want) = match (compare.target(), &compare.target_union) {
            (CompareTarget::Mod, Some(TargetUnion::ModRevision(want))) => (kv.map_or(0, |kv| kv.mod_revision), *want),
            (CompareTarget::Version, Some(TargetUnion::Version(want))) => (kv.map_or(0, |kv| kv.version), *want),
            (CompareTarget::Create, Some(TargetUnion::CreateRevision(want))) => {
                (kv.map_or(0, |kv| kv.create_revision), *want)
            }
            other => panic!("no test compares {other:?}"),
        };
        match compare.result() {
            CompareResult::Equal => have == want,
            CompareResult::NotEqual => have != want,
            CompareResult::Greater => have > want,
            CompareResult::Less => have < want,
        }
    }
}
