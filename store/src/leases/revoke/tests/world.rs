//! Regions whose state is a map of keys. Each kind of request can be met by a hook, in the order in which the hooks were
//! set: it changes the state, and may answer instead of the region. What was asked is written down as text.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use braid_placement_client::PlacementClient;
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::region_request::Op;
use braid_proto::pb::region_response::Result as Answer;
use braid_proto::pb::*;
use braid_proto::service::{BoxFuture, RegionService};
use braid_store_client::Regions;
use braid_store_client::locks::LockTerms;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

/// The lease that is revoked.
pub const LEASE: i64 = 7;
/// The revision at the beginning.
const FIRST: i64 = 100;
const CLUSTER: ClusterId = ClusterId(5);

type Hook = Box<dyn FnOnce(&mut State, RegionRequest) -> Option<Answer> + Send>;

/// Somebody who is not the revocation.
pub fn other_txn() -> TxnId {
    TxnId { high: 1, low: 1 }
}

/// User keys as a range; nothing: unbounded.
pub fn range(start: &str, end: &str) -> KeyRange {
    let bound = |key: &str| if key.is_empty() { Bytes::new() } else { user_key(key.as_bytes()) };
    KeyRange { start: bound(start), end: bound(end) }
}

pub struct Held {
    pub region: u64,
    pub txn: TxnId,
    token: LockToken,
    ranges: Vec<KeyRange>,
}

/// What the regions have.
pub struct State {
    regions: Vec<Region>,
    /// Lease and revision of each user key.
    keys: BTreeMap<String, (i64, i64)>,
    pub revision: i64,
    /// Regions that have closed the lease.
    pub closed: BTreeSet<u64>,
    pub locks: Vec<Held>,
    tokens: u64,
    /// Keys that an answer names.
    pub keys_named_max: usize,
    /// Requests that a hook has kept.
    pub late: Vec<RegionRequest>,
    hooks: BTreeMap<&'static str, VecDeque<Hook>>,
    log: Vec<String>,
    deleted: Vec<String>,
}

/// The regions and the way to them.
pub struct World {
    pub cluster: Arc<Regions>,
    pub terms: LockTerms,
    store: Arc<FakeStore>,
}

struct FakeStore {
    state: Mutex<State>,
    asked: watch::Sender<u64>,
}

impl World {
    /// Regions that begin at `cuts`, with these keys and their leases.
    pub fn new(cuts: &[&str], keys: &[(&str, i64)]) -> Self {
        let mut bounds = vec![""];
        bounds.extend(cuts);
        bounds.push("");
        let region = |(id, bound): (u64, &[&str])| {
            let KeyRange { start, end } = range(bound[0], bound[1]);
            let peers = vec![Peer::voter(id + 10, 1)];
            Region { id, start, end, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), peers }
        };
        let regions: Vec<Region> = (1..).zip(bounds.windows(2)).map(region).collect();
        let state = State {
            regions: regions.clone(),
            keys: keys.iter().map(|(key, lease)| ((*key).to_owned(), (*lease, FIRST))).collect(),
            revision: FIRST,
            closed: BTreeSet::new(),
            locks: Vec::new(),
            tokens: 0,
            keys_named_max: usize::MAX,
            late: Vec::new(),
            hooks: BTreeMap::new(),
            log: Vec::new(),
            deleted: Vec::new(),
        };
        let store = Arc::new(FakeStore { state: Mutex::new(state), asked: watch::Sender::new(0) });
        // Nobody answers there: what regions say of themselves is enough.
        let cluster = Regions::connect(CLUSTER, Arc::new(PlacementClient::new(vec!["127.0.0.1:1".into()])));
        cluster.add_local(StoreId(1), Arc::clone(&store) as Arc<dyn RegionService>);
        cluster.router.learn(regions);
        Self { cluster, terms: LockTerms::default(), store }
    }

    /// The next request of this name, after those that have a hook already, meets `hook`.
    pub fn on(
        &self,
        name: &'static str,
        hook: impl FnOnce(&mut State, RegionRequest) -> Option<Answer> + Send + 'static,
    ) {
        self.state().hooks.entry(name).or_default().push_back(Box::new(hook));
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.store.state.lock()
    }

    pub fn put(&self, key: &str, lease: i64) {
        self.state().put(key, lease);
    }

    /// What was asked, signs of life and releases aside.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    pub fn locks_asked(&self) -> Vec<String> {
        self.log().into_iter().filter(|line| line.contains(" lock ")).collect()
    }

    pub fn decisions(&self) -> usize {
        self.log().iter().filter(|line| line.contains(" decide ")).count()
    }

    /// All keys that are there.
    pub fn keys(&self) -> Vec<String> {
        self.state().keys.keys().cloned().collect()
    }

    /// Keys that were deleted by decisions, with their revision, in order of sub-revision.
    pub fn deleted(&self) -> Vec<String> {
        self.state().deleted.clone()
    }

    /// Regions that have closed the lease.
    pub fn closed(&self) -> Vec<u64> {
        self.state().closed.iter().copied().collect()
    }

    /// How many locks stand.
    pub fn locked(&self) -> usize {
        self.state().locks.len()
    }

    /// Waits until something holds after a request.
    pub async fn until(&self, holds: impl Fn(&State) -> bool) {
        let mut asked = self.store.asked.subscribe();
        while !holds(&self.state()) {
            asked.changed().await.expect("the store is there");
        }
    }

    /// Waits until this was asked.
    pub async fn reached(&self, line: &str) {
        self.until(|state| state.log.iter().any(|asked| asked == line)).await;
    }
}

impl RegionService for FakeStore {
    fn call(&self, request: RegionRequest) -> BoxFuture<RegionResponse> {
        let mut state = self.state.lock();
        let (name, line) = describe(&request);
        if !line.is_empty() {
            state.log.push(line);
        }
        let hook = state.hooks.get_mut(name).and_then(VecDeque::pop_front);
        let instead = hook.and_then(|hook| hook(&mut state, request.clone()));
        let answer = instead.unwrap_or_else(|| state.serve(request));
        drop(state);
        self.asked.send_modify(|count| *count += 1);
        // Others get their turn, as they would if it had to travel.
        Box::pin(async move {
            tokio::task::yield_now().await;
            RegionResponse { result: Some(answer) }
        })
    }
}

impl State {
    /// Somebody else puts a key.
    pub fn put(&mut self, key: &str, lease: i64) {
        assert!(self.locks.iter().all(|held| !held.holds(key)), "{key} is locked");
        self.revision += 1;
        self.keys.insert(key.to_owned(), (lease, self.revision));
    }

    /// Cuts the region that holds `key` there.
    pub fn split(&mut self, key: &str) {
        let parent = self.region_of(key);
        let child_id = self.regions.len() as u64 + 1;
        let parent = self.regions.iter_mut().find(|region| region.id == parent).expect("a region");
        parent.epoch = Some(RegionEpoch { conf_ver: 1, version: parent.epoch.unwrap_or_default().version + 1 });
        let mut child = Region { id: child_id, start: user_key(key.as_bytes()), ..parent.clone() };
        child.peers[0].id = child_id + 10;
        parent.end = child.start.clone();
        if self.closed.contains(&parent.id) {
            self.closed.insert(child_id);
        }
        self.regions.push(child);
    }

    pub fn region_of(&self, key: &str) -> u64 {
        let key = user_key(key.as_bytes());
        self.regions.iter().find(|region| region_range(region).contains(&key)).expect("a region").id
    }

    pub fn lock_for(&mut self, region: u64, txn: TxnId, ranges: Vec<KeyRange>) -> LockToken {
        self.tokens += 1;
        let token = LockToken { region_id: region, term: 3, seq: self.tokens };
        self.locks.push(Held { region, txn, token, ranges });
        token
    }

    /// What the region answers.
    pub fn serve(&mut self, request: RegionRequest) -> Answer {
        let found = self.regions.iter().find(|region| region.id == request.region_id && region.epoch == request.epoch);
        let Some(region) = found.cloned() else {
            let reason = refusal::Reason::EpochMismatch(EpochMismatch { current: self.regions.clone() });
            return refused(reason);
        };
        match request.op.expect("an operation") {
            Op::DetachLease(detach) => {
                self.closed.insert(region.id);
                let keys = self.attached(&region_range(&region), detach.lease);
                self.revision += i64::from(!keys.is_empty());
                self.keys.retain(|key, _| !keys.contains(key));
                Answer::DetachLease(DetachLeaseResponse { revision: self.revision })
            }
            Op::AttachedKeys(AttachedKeysRequest { lease, close }) => {
                assert!(close, "the lease is being revoked");
                self.closed.insert(region.id);
                let keys = self.attached(&region_range(&region), lease);
                let mut keys: Vec<Bytes> = keys.iter().map(|key| user_key(key.as_bytes())).collect();
                let (count, revision) = (keys.len() as i64, self.revision);
                let first = keys.first().cloned().unwrap_or_default();
                let last = keys.last().cloned().unwrap_or_default();
                if keys.len() > self.keys_named_max {
                    keys.clear();
                }
                Answer::AttachedKeys(AttachedKeysResponse { keys, count, first, last, revision })
            }
            Op::Lock(lock) => self.lock(region.id, lock),
            Op::Release(release) => {
                self.locks.retain(|held| Some(held.txn) != release.txn || held.region != region.id);
                Answer::Release(ReleaseResponse {})
            }
            Op::Hold(_) => Answer::Hold(HoldResponse { over: false }),
            Op::Decide(decide) => self.decide(region.id, &decide),
            other => panic!("a revocation asks {other:?}"),
        }
    }

    fn lock(&mut self, region: u64, request: LockRequest) -> Answer {
        assert!(!request.puts && request.attaches.is_empty(), "a revocation puts nothing");
        let ranges: Vec<KeyRange> =
            request.ranges.iter().map(|r| KeyRange { start: r.start.clone(), end: r.end.clone() }).collect();
        let is_held = |range: &KeyRange| self.locks.iter().any(|held| held.ranges.iter().any(|r| r.overlaps(range)));
        if ranges.iter().any(is_held) {
            return match request.wait {
                true => refused(refusal::Reason::Busy(Busy { what: "it waits".into(), retry_after_ms: 1 })),
                false => Answer::Lock(LockResponse { conflict: true, ..LockResponse::default() }),
            };
        }
        let read = |read: &LockRead| {
            let range = KeyRange { start: read.start.clone(), end: read.end.clone() };
            let kvs: Vec<KeyValue> =
                self.within(&range).map(|(key, (lease, revision))| kv(key, *lease, *revision)).collect();
            let count = kvs.len() as i64;
            LockedData { kvs: if read.count_only { Vec::new() } else { kvs }, count }
        };
        let data = request.reads.iter().map(read).collect();
        let token = self.lock_for(region, request.txn.expect("a name"), ranges);
        Answer::Lock(LockResponse { token: Some(token), data, ..LockResponse::default() })
    }

    fn decide(&mut self, region: u64, request: &DecideRequest) -> Answer {
        let tokens: Vec<LockToken> = request.shares.iter().filter_map(|share| share.token).collect();
        let held = |token: &LockToken| self.locks.iter().any(|held| held.token == *token);
        assert_eq!(tokens.first().map(|token| token.region_id), Some(region), "the primary decides");
        if !held(&tokens[0]) {
            return Answer::Decide(DecideResponse { over: true, revision: 0 });
        }
        assert!(tokens.iter().all(held), "everything is locked");
        self.revision += 1;
        let mut gone: Vec<(u32, String)> = Vec::new();
        for share in &request.shares {
            for (change, sub) in share.changes.iter().zip(&share.subs) {
                let key = text(&change.key);
                assert!(change.delete);
                assert_eq!(self.keys.get(&key).map(|(_, revision)| *revision), Some(change.supersedes), "{key}");
                gone.push((*sub, key));
            }
            for wipe in &share.wipes {
                let range = KeyRange { start: wipe.start.clone(), end: wipe.end.clone() };
                gone.extend((wipe.first_sub..).zip(self.attached(&range, wipe.lease)));
            }
        }
        assert!(gone.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1), "{gone:?}");
        for (_, key) in gone {
            assert!(
                self.locks.iter().any(|held| tokens.contains(&held.token) && held.holds(&key)),
                "{key} is not locked"
            );
            self.keys.remove(&key).expect("it was there");
            self.deleted.push(format!("{key}@{}", self.revision));
        }
        self.locks.retain(|held| !tokens.contains(&held.token));
        Answer::Decide(DecideResponse { over: false, revision: self.revision })
    }

    fn within<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = (&'a String, &'a (i64, i64))> {
        self.keys.iter().filter(|(key, _)| range.contains(&user_key(key.as_bytes())))
    }

    fn attached(&self, range: &KeyRange, lease: i64) -> Vec<String> {
        self.within(range).filter(|(_, (of, _))| *of == lease).map(|(key, _)| key.clone()).collect()
    }
}

impl Held {
    fn holds(&self, key: &str) -> bool {
        self.ranges.iter().any(|range| range.contains(&user_key(key.as_bytes())))
    }
}

fn region_range(region: &Region) -> KeyRange {
    KeyRange { start: region.start.clone(), end: region.end.clone() }
}

fn kv(key: &str, lease: i64, mod_revision: i64) -> KeyValue {
    KeyValue { key: key.to_owned().into(), lease, mod_revision, create_revision: 1, version: 1, value: Bytes::new() }
}

fn refused(reason: refusal::Reason) -> Answer {
    Answer::Refusal(Refusal { reason: Some(reason) })
}

/// The user key inside an internal key.
fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(&key[1..]).into_owned()
}

/// First and last key of a range that ends just after its last.
fn ends(start: &[u8], end: &[u8]) -> String {
    assert_eq!(end.last(), Some(&0), "it ends after a key");
    format!("{}..{}", text(start), text(&end[..end.len() - 1]))
}

/// A request's name, and its line in the log; empty: it is not written down.
fn describe(request: &RegionRequest) -> (&'static str, String) {
    let region = request.region_id;
    match request.op.as_ref().expect("an operation") {
        Op::DetachLease(_) => ("detach", format!("r{region} detach")),
        Op::AttachedKeys(_) => ("keys", format!("r{region} keys")),
        Op::Lock(lock) => {
            let wait = if lock.wait { " wait" } else { "" };
            let what = match lock.reads[0].count_only {
                true => format!("{} count", ends(&lock.ranges[0].start, &lock.ranges[0].end)),
                false => lock.ranges.iter().map(|range| text(&range.start)).collect::<Vec<_>>().join(","),
            };
            ("lock", format!("r{region} lock{wait} {what}"))
        }
        Op::Decide(decide) => {
            let share = |share: &Share| {
                let changes = share.changes.iter().zip(&share.subs);
                let changes = changes.map(|(change, sub)| format!("{}#{sub}", text(&change.key)));
                let wipe = |wipe: &Wipe| {
                    format!("wipe {}#{} of lease {}", ends(&wipe.start, &wipe.end), wipe.first_sub, wipe.lease)
                };
                changes.chain(share.wipes.iter().map(wipe)).collect::<Vec<_>>().join(" ")
            };
            let shares: Vec<String> = decide.shares.iter().map(share).collect();
            let shares: Vec<&str> = shares.iter().map(String::as_str).filter(|share| !share.is_empty()).collect();
            ("decide", format!("r{region} decide {}", shares.join(" | ")))
        }
        Op::Release(_) => ("release", String::new()),
        Op::Hold(_) => ("hold", String::new()),
        other => panic!("a revocation asks {other:?}"),
    }
}
