//! Clients of two regions that become one: they put and read keys, raise two counters in one transaction, and read both at
//! one revision. They remember what they were told.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::id::RegionId;
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{
    Change, DecideRequest, DecideResponse, LockRange, LockRead, ReadRequest, Share, region_request, region_response,
};
use braid_store_client::deadline::Patience;
use braid_store_client::locks::{LockTerms, Locks, NotLocked, Part, Taken};
use braid_store_client::regions::Ask;
use braid_store_client::retry::Kind;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{LOOK, World};

/// How long anything may take that must happen: a few elections on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How long a client waits for an answer to a write: a leader that is cut off never gives one.
const WRITE_PATIENCE: Duration = Duration::from_secs(6);
/// How long one attempt to read may take: between the two halves of a split nobody knows the second one's route for a moment,
/// and who asks then waits for placement, of which there is none here.
const READ_PATIENCE: Duration = Duration::from_secs(3);
/// One in each region.
pub const COUNTERS: [&str; 2] = ["a/counter", "n/counter"];

/// What clients have been told.
#[derive(Default)]
pub struct Log {
    /// By revision, and key.
    pub acknowledged: BTreeMap<(i64, String), String>,
    /// Every put that was tried.
    tried: HashSet<(String, String)>,
}

/// See the module's text.
pub struct Clients {
    world: Arc<World>,
    stop: Arc<AtomicBool>,
    done: Arc<[AtomicU64; 4]>,
    log: Arc<Mutex<Log>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Two who put and read, one who raises both counters, one who looks at them.
    pub async fn start(world: &Arc<World>) -> Self {
        let clients = Self {
            world: Arc::clone(world),
            stop: Arc::default(),
            done: Arc::default(),
            log: Arc::default(),
            tasks: Vec::new(),
        };
        for key in COUNTERS {
            let revision = put(world, key, "0").await.expect("nothing goes wrong yet");
            clients.log.lock().tried.insert((key.to_owned(), "0".to_owned()));
            clients.log.lock().acknowledged.insert((revision, key.to_owned()), "0".to_owned());
        }
        let Self { world, stop, done, log, .. } = &clients;
        let run = |at: usize| (Arc::clone(world), Arc::clone(stop), Arc::clone(done), Arc::clone(log), at);
        let tasks = vec![
            tokio::spawn(puts(run(0), 'a')),
            tokio::spawn(puts(run(1), 'n')),
            tokio::spawn(raises(run(2))),
            tokio::spawn(looks(run(3))),
        ];
        Self { tasks, ..clients }
    }

    /// Waits until each has got through some more of its work.
    pub async fn go_on(&self, times: u64) {
        let until: Vec<u64> = self.done.iter().map(|done| done.load(Ordering::SeqCst) + times).collect();
        let deadline = Instant::now() + PATIENCE;
        while self.done.iter().zip(&until).any(|(done, until)| done.load(Ordering::SeqCst) < *until) {
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "a client has failed");
            assert!(Instant::now() < deadline, "the clients do not get on: {:?}, wanted {until:?}", self.done);
            sleep(LOOK).await;
        }
    }

    /// Stops them, sees that everything they were told is there, and returns what they were told.
    pub async fn stop(mut self) -> Log {
        self.stop.store(true, Ordering::SeqCst);
        for task in std::mem::take(&mut self.tasks) {
            task.await.expect("no client fails");
        }
        let log = std::mem::take(&mut *self.log.lock());
        let mut newest: BTreeMap<&String, (i64, &String)> = BTreeMap::new();
        for ((revision, key), value) in &log.acknowledged {
            // In the order of revisions.
            newest.insert(key, (*revision, value));
        }
        for (key, (revision, value)) in newest {
            let found = get(&self.world, key).await.unwrap_or_else(|| panic!("{key} is lost"));
            let same = found.mod_revision == revision && found.value == text(value);
            let tried = log.tried.contains(&(key.clone(), String::from_utf8_lossy(&found.value).into_owned()));
            assert!(
                same || (found.mod_revision > revision && tried),
                "{key}: {found:?} instead of {value} @{revision}"
            );
        }
        log
    }
}

impl Log {
    /// What was told of revisions up to `newest`.
    pub fn upto(mut self, newest: i64) -> Self {
        self.acknowledged.retain(|(revision, _), _| *revision <= newest);
        self
    }

    /// Sees that `events`, all there were above revision `after`, are what clients were told, and nothing that nobody tried.
    pub fn judge(&self, after: i64, events: &[(i64, String, String)]) {
        let mut seen = BTreeMap::new();
        for (revision, key, value) in events {
            assert_eq!(seen.insert((*revision, key.clone()), value.clone()), None, "{key} @{revision} comes twice");
            assert!(self.tried.contains(&(key.clone(), value.clone())), "nobody has put {value} to {key} @{revision}");
        }
        for (place, value) in self.acknowledged.range((after + 1, String::new())..) {
            assert_eq!(seen.get(place), Some(value), "{place:?} is not among the events");
        }
    }
}

type Run = (Arc<World>, Arc<AtomicBool>, Arc<[AtomicU64; 4]>, Arc<Mutex<Log>>, usize);

async fn puts((world, stop, done, log, at): Run, letter: char) {
    let mut turn = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let (key, value) = (format!("{letter}/{:02}", turn % 20), turn.to_string());
        turn += 1;
        log.lock().tried.insert((key.clone(), value.clone()));
        let told = put(&world, &key, &value).await;
        let seen = get(&world, &key).await;
        if let Some(revision) = told {
            // A read that begins after an answer sees it: nobody else writes the key.
            let seen = seen.unwrap_or_else(|| panic!("{key} is gone"));
            assert_eq!((seen.mod_revision, &seen.value), (revision, &text(&value)), "{key}");
            let twice = log.lock().acknowledged.insert((revision, key.clone()), value);
            assert_eq!(twice, None, "{key} @{revision}");
            done[at].fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn raises((world, stop, done, log, at): Run) {
    let terms = LockTerms::default();
    while !stop.load(Ordering::SeqCst) {
        if let Some((revision, value)) = raise(&world, &terms, &log).await {
            let mut log = log.lock();
            for key in COUNTERS {
                let twice = log.acknowledged.insert((revision, key.to_owned()), value.clone());
                assert_eq!(twice, None, "{key} @{revision}");
            }
            done[at].fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn looks((world, stop, done, _, at): Run) {
    let mut before = 0;
    while !stop.load(Ordering::SeqCst) {
        let bound = world.sequencer.bound().await;
        let mut seen = Vec::new();
        for key in COUNTERS {
            seen.push(get_at(&world, key, bound).await.unwrap_or_else(|| panic!("{key} is gone")));
        }
        let [one, other] = &seen[..] else { unreachable!("two counters") };
        assert_eq!(one.value, other.value, "half of a transaction is seen @{bound}");
        assert!(one.mod_revision == other.mod_revision || one.value == text("0"), "{seen:?} @{bound}");
        let count: u64 = std::str::from_utf8(&one.value).expect("text").parse().expect("a number");
        assert!(count >= before, "the counters went back from {before} to {count} @{bound}");
        before = count;
        done[at].fetch_add(1, Ordering::SeqCst);
    }
}

/// Puts a key; `None`: nobody knows whether.
pub async fn put(world: &World, key: &str, value: &str) -> Option<i64> {
    put_with(world, key, value, 0).await
}

/// The same with a lease.
pub async fn put_with(world: &World, key: &str, value: &str, lease: i64) -> Option<i64> {
    let put = PutRequest { key: text(key), value: text(value), lease, ..Default::default() };
    let anchor = user_key(key.as_bytes());
    let asked = world.ask_once(&anchor, region_request::Op::Put(put), PATIENCE);
    match timeout(WRITE_PATIENCE, asked).await {
        Ok(region_response::Result::Put(put)) => Some(world.sequencer.uses(put.header.expect("a header").revision)),
        Ok(region_response::Result::Refusal(_)) | Err(_) => None,
        Ok(other) => panic!("{key}: {other:?}"),
    }
}

/// Reads a key, linearizably.
pub async fn get(world: &World, key: &str) -> Option<KeyValue> {
    get_at(world, key, 0).await
}

async fn get_at(world: &World, key: &str, read_at: i64) -> Option<KeyValue> {
    let range = Some(RangeRequest { key: text(key), ..Default::default() });
    let op = region_request::Op::Read(ReadRequest { range, read_at });
    let deadline = Instant::now() + PATIENCE;
    loop {
        match timeout(READ_PATIENCE, world.ask(&user_key(key.as_bytes()), op.clone(), PATIENCE)).await {
            Ok(region_response::Result::Range(range)) => return range.kvs.into_iter().next(),
            Ok(other) => panic!("{key}: {other:?}"),
            Err(_) => assert!(Instant::now() < deadline, "{key} cannot be read"),
        }
    }
}

/// Raises both counters in one transaction, wherever they lie. `None`: somebody was in the way, or nobody knows.
async fn raise(world: &World, terms: &LockTerms, log: &Mutex<Log>) -> Option<(i64, String)> {
    let patience = Patience::within(WRITE_PATIENCE);
    let mut parts: Vec<Part> = Vec::new();
    for key in COUNTERS.map(|key| user_key(key.as_bytes())) {
        let region: RegionId = world.client.find(&key, patience).await.ok()?.region;
        let KeyRange { start, end } = KeyRange::single(key);
        let read = LockRead { start: start.clone(), end: end.clone(), count_only: false };
        let lock = LockRange { start, end, exclusive: true };
        match parts.last_mut().filter(|part| part.region == region) {
            Some(part) => {
                part.ranges.push(lock);
                part.reads.push(read);
            }
            None => {
                parts.push(Part { region, ranges: vec![lock], reads: vec![read], puts: true, attaches: Vec::new() })
            }
        }
    }
    let (mut locks, taken) = match Locks::take(&world.client, terms, &parts, patience).await {
        Ok(taken) => taken,
        Err(NotLocked::Again(_)) => {
            sleep(LOOK).await;
            return None;
        }
        Err(NotLocked::Failed(_)) => return None,
        Err(other) => panic!("{other:?}"),
    };
    let count = |kv: &KeyValue| std::str::from_utf8(&kv.value).expect("text").parse::<u64>().expect("a number");
    let found: Vec<&KeyValue> = taken.iter().flat_map(|taken| &taken.data).flat_map(|data| &data.kvs).collect();
    assert_eq!(found.len(), COUNTERS.len(), "both counters are there");
    assert_eq!(count(found[0]), count(found[1]), "half of a transaction has happened");
    let value = (count(found[0]) + 1).to_string();
    for key in COUNTERS {
        log.lock().tried.insert((key.to_owned(), value.clone()));
    }
    let shares = shares(&taken, &value);
    let op = region_request::Op::Decide(DecideRequest { txn: Some(locks.txn()), shares });
    let primary = locks.primary().clone();
    let ask = Ask { anchor: &primary, within: |_: &_| true, op: &op, kind: Kind::Write, any_replica: false };
    locks.decided();
    match world.client.ask(ask, patience).await {
        Ok(region_response::Result::Decide(DecideResponse { over: false, revision })) => {
            Some((world.sequencer.uses(revision), value))
        }
        Ok(region_response::Result::Decide(_)) | Err(_) => {
            locks.release(patience).await;
            None
        }
        Ok(other) => panic!("{other:?}"),
    }
}

fn shares(taken: &[Taken], value: &str) -> Vec<Share> {
    let mut sub = 0_u32;
    let share = |taken: &Taken| {
        let kvs = taken.data.iter().flat_map(|data| &data.kvs);
        let changes: Vec<Change> = kvs
            .map(|kv| Change {
                key: user_key(&kv.key),
                supersedes: kv.mod_revision,
                create_revision: kv.create_revision,
                version: kv.version + 1,
                value: text(value),
                ..Default::default()
            })
            .collect();
        let subs = (sub..sub + changes.len() as u32).collect();
        sub += changes.len() as u32;
        Share { key: taken.key.clone(), token: Some(taken.token), changes, subs, wipes: Vec::new() }
    };
    taken.iter().map(share).collect()
}

pub fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
