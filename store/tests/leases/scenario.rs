//! Runs crash points: those of one kind on one cluster, each with a lease of its own, beside one that is kept alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use braid_proto::key::{lease_key, user_key};
use braid_proto::pb::{
    GrantLeaseRequest, KeepLeaseRequest, LeaseStateRequest, ReadRequest, RevokeLeaseRequest, region_request,
    region_response,
};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::POINTS;
use crate::cluster::{Cluster, LOOK, World};
use crate::faults::Stop;

/// How long anything may take: elections, the patience of whoever asks in vain, an expiry.
const PATIENCE: Duration = Duration::from_secs(30);
/// The lease that is kept alive all the time, the seconds it has, and between two keep-alives.
const KEPT: i64 = 1;
const KEPT_TTL: i64 = 6;
const KEEP: Duration = Duration::from_millis(300);
/// Seconds of a lease that expires, and of one that does not.
const SHORT: i64 = 3;
const LONG: i64 = 3_600;
/// Id of the region that a split makes.
const CHILD: u64 = 40;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The message is late, and if it is a question it comes twice.
    Nothing,
    /// The store that leads the record's region dies.
    KillsRecord,
    /// The store that leads region 2 dies.
    KillsAttached,
    /// The record's leader is cut off from its followers until a new one leads.
    IsolatesRecord,
    /// Store 3 takes the record's region over.
    MovesRecord,
    /// Store 3 takes region 2 over.
    MovesAttached,
    /// The sequencer dies and the next one takes over.
    Sequencer,
    /// Region 2 is split between two keys.
    Splits,
}

/// On its way it stands still until that has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A region asks whether there is such a lease.
    Register,
    /// The regions are asked to close the lease and name its keys: the one for the second region.
    Close,
    /// The regions are asked for locks: the one for the second.
    Lock,
    /// The decision.
    Decide,
    /// The primary's word to the other regions.
    Commit,
}

/// How the lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A client wants it.
    Revoked,
    /// Nobody keeps it alive.
    Expires,
}

/// A crash point.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// What happens.
    pub blow: Blow,
    /// While this message stands still.
    pub at: Message,
    /// It is not the message but its answer: what it asked for is done.
    pub answer: bool,
    /// How the lease ends.
    pub ending: Ending,
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Point {
    fn stop(&self) -> Stop {
        use region_request::Op;
        let (which, after): (fn(&Op) -> bool, u32) = match self.at {
            Message::Register => (|op| matches!(op, Op::RegisterLease(_)), 0),
            Message::Close => (|op| matches!(op, Op::AttachedKeys(keys) if keys.close), 1),
            Message::Lock => (|op| matches!(op, Op::Lock(_)), 1),
            Message::Decide => (|op| matches!(op, Op::Decide(_)), 0),
            Message::Commit => (|op| matches!(op, Op::Commit(_)), 0),
        };
        Stop { which, after, answer: self.answer, twice: self.blow == Blow::Nothing }
    }
}

/// Its keys: two in region 2, so that it can be split between them.
fn keys(lease: i64) -> [String; 4] {
    ["a/0", "n/1", "n/9", "u/0"].map(|key| format!("{key}/{lease}"))
}

async fn grant(world: &World, id: i64, ttl: i64) {
    let op = region_request::Op::GrantLease(GrantLeaseRequest { id, ttl });
    let answer = world.ask_once(&lease_key(id), op, PATIENCE).await;
    assert!(matches!(answer, region_response::Result::GrantLease(_)), "{answer:?}");
}

/// A put with a lease; whether it was done. `None`: nobody knows.
async fn put(world: &World, key: &str, lease: i64) -> Option<bool> {
    let put = PutRequest { key: text(key), value: text("there"), lease, ..PutRequest::default() };
    match world.ask_once(&user_key(key.as_bytes()), region_request::Op::Put(put), PATIENCE).await {
        region_response::Result::Put(_) => Some(true),
        region_response::Result::Error(error) => {
            assert_eq!(error.message, "etcdserver: requested lease not found");
            Some(false)
        }
        region_response::Result::Refusal(_) => None,
        other => panic!("{key}: {other:?}"),
    }
}

async fn read(world: &World, from: &str, to: &str, at: i64) -> RangeResponse {
    let range = RangeRequest { key: text(from), range_end: text(to), ..RangeRequest::default() };
    let op = region_request::Op::Read(ReadRequest { range: Some(range), read_at: at });
    match world.ask(&user_key(from.as_bytes()), op, PATIENCE).await {
        region_response::Result::Range(range) => range,
        other => panic!("{from} at {at}: {other:?}"),
    }
}

/// How many of a lease's keys there are at one revision, the newest: all or none.
async fn count(world: &World, lease: i64) -> usize {
    let at = world.sequencer.bound().await;
    let first = look(world, lease, at).await;
    if !first.is_empty() && first.len() != keys(lease).len() {
        let again = look(world, lease, at).await;
        panic!("lease {lease}, half of the keys at {at}: first {first:?}, then {again:?}");
    }
    first.len()
}

/// Which of a lease's keys there are at a revision.
async fn look(world: &World, lease: i64, at: i64) -> Vec<String> {
    let mut found = Vec::new();
    for key in keys(lease) {
        let kvs = read(world, &key, "", at).await.kvs;
        assert!(kvs.iter().all(|kv| kv.lease == lease), "{kvs:?}");
        found.extend(kvs.iter().map(|_| key.clone()));
    }
    found
}

/// Whether there is such a lease; if it is being revoked, when it is not any more.
async fn is_there(world: &World, id: i64) -> bool {
    let op = region_request::Op::LeaseState(LeaseStateRequest { id, at_once: false });
    match world.ask(&lease_key(id), op, PATIENCE).await {
        region_response::Result::LeaseState(state) => state.granted_ttl > 0,
        other => panic!("{other:?}"),
    }
}

/// Revokes until nobody needs to any more.
async fn revoke(world: Arc<World>, id: i64) {
    let op = region_request::Op::RevokeLease(RevokeLeaseRequest { id });
    match world.ask(&lease_key(id), op, PATIENCE).await {
        region_response::Result::RevokeLease(_) => {}
        // An attempt whose answer was lost.
        region_response::Result::Error(error) => assert_eq!(error.message, "etcdserver: requested lease not found"),
        other => panic!("{other:?}"),
    }
}

/// Keeps [`KEPT`] alive, and sees that all its keys are there, until it is told to stop.
fn keep(world: &Arc<World>, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (world, stop) = (Arc::clone(world), Arc::clone(stop));
    tokio::spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            let op = region_request::Op::KeepLease(KeepLeaseRequest { id: KEPT });
            match world.ask(&lease_key(KEPT), op, PATIENCE).await {
                region_response::Result::KeepLease(kept) => assert_eq!(kept.ttl, KEPT_TTL, "it is kept alive"),
                other => panic!("{other:?}"),
            }
            sleep(KEEP).await;
        }
    })
}

/// Reads all the time until the keys of a lease are gone: all or none of them, and not again when they are gone.
fn watch(world: &Arc<World>, lease: i64, name: String) -> JoinHandle<()> {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        while count(&world, lease).await > 0 {}
        assert_eq!(count(&world, lease).await, 0, "{name}: gone is gone");
    })
}

/// All rows of a kind of blow.
pub async fn run(blow: Blow) {
    let mut cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    grant(&world, KEPT, KEPT_TTL).await;
    let stop = Arc::new(AtomicBool::new(false));
    let keeping = keep(&world, &stop);
    for key in keys(KEPT) {
        assert_eq!(put(&world, &key, KEPT).await, Some(true));
    }
    let points: Vec<&Point> = POINTS.iter().filter(|point| point.blow == blow).collect();
    assert!(!points.is_empty());
    for (number, point) in points.into_iter().enumerate() {
        let lease = 100 + number as i64;
        match point.at {
            Message::Register => attach_at(&mut cluster, point, lease).await,
            _ => end_at(&mut cluster, point, lease).await,
        }
        // Nobody has it any more, whatever came late.
        for gone in 100..=lease {
            assert_eq!(count(&world, gone).await, 0, "{point:?}: keys of lease {gone} are there");
        }
        cluster.forgets_all_locks(PATIENCE).await;
        assert_eq!(count(&world, KEPT).await, keys(KEPT).len(), "{point:?}: what is kept alive has its keys");
        if blow != Blow::Splits {
            cluster.arrange().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    keeping.await.expect("the lease is kept alive");
}

/// What happens while the message stands still.
async fn strike(cluster: &mut Cluster, point: &Point, lease: i64) {
    let world = Arc::clone(&cluster.world);
    match point.blow {
        Blow::Nothing => {}
        Blow::KillsRecord => cluster.kill(1).await,
        Blow::KillsAttached => cluster.kill(2).await,
        Blow::IsolatesRecord => {
            world.faults.isolate(1);
            let others = async {
                while world.leader(&lease_key(lease)).await.1 == 1 {
                    sleep(LOOK).await;
                }
            };
            timeout(PATIENCE, others).await.expect("another one leads");
        }
        Blow::MovesRecord => cluster.lead('a', 3).await,
        Blow::MovesAttached => cluster.lead('n', 3).await,
        Blow::Sequencer => {
            world.sequencer.stop();
            world.sequencer.restart();
        }
        Blow::Splits => {
            let child = CHILD + lease.unsigned_abs();
            let split = cluster.split(&format!("n/5/{lease}"), child).await;
            assert!(split.right.is_some(), "{split:?}");
        }
    }
}

/// A lease with keys in three regions ends, and a message of that stands still meanwhile.
async fn end_at(cluster: &mut Cluster, point: &Point, lease: i64) {
    let world = Arc::clone(&cluster.world);
    let ttl = if point.ending == Ending::Expires { SHORT } else { LONG };
    grant(&world, lease, ttl).await;
    for key in keys(lease) {
        assert_eq!(put(&world, &key, lease).await, Some(true), "{point:?}");
    }
    let watching = watch(&world, lease, format!("{point:?}"));
    world.faults.stop(point.stop());
    let revoking = (point.ending == Ending::Revoked).then(|| tokio::spawn(revoke(Arc::clone(&world), lease)));
    let stopped = timeout(PATIENCE, world.faults.stopped()).await;
    stopped.unwrap_or_else(|_| panic!("{point:?}: the message never came"));
    strike(cluster, point, lease).await;
    world.faults.go_on();
    cluster.heal().await;
    if let Some(revoking) = revoking {
        revoking.await.unwrap_or_else(|why| panic!("{point:?}: {why}"));
    }
    let gone = async {
        while is_there(&world, lease).await {
            sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("{point:?}: the lease does not end"));
    timeout(PATIENCE, watching).await.unwrap_or_else(|_| panic!("{point:?}: keys are left")).expect("all or none");
}

/// The first put with a lease in region 2 waits for the word of the record's region, and what comes of that is late. Where
/// nothing else happens the lease is revoked before it comes (H29).
async fn attach_at(cluster: &mut Cluster, point: &Point, lease: i64) {
    let world = Arc::clone(&cluster.world);
    grant(&world, lease, LONG).await;
    let [first, second, third, last] = keys(lease);
    for key in [&first, &last] {
        assert_eq!(put(&world, key, lease).await, Some(true), "{point:?}");
    }
    world.faults.stop(point.stop());
    let putting = tokio::spawn({
        let world = Arc::clone(&world);
        async move { put(&world, &second, lease).await }
    });
    let stopped = timeout(PATIENCE, world.faults.stopped()).await;
    stopped.unwrap_or_else(|_| panic!("{point:?}: the message never came"));
    if point.blow == Blow::Nothing {
        revoke(Arc::clone(&world), lease).await;
        world.faults.go_on();
        let put = putting.await.expect("an answer");
        assert_eq!(put, Some(false), "{point:?}: the lease was gone before the word came");
        return;
    }
    strike(cluster, point, lease).await;
    world.faults.go_on();
    cluster.heal().await;
    let done = putting.await.expect("an answer");
    assert_ne!(done, Some(false), "{point:?}: there is such a lease");
    assert_eq!(put(&world, &third, lease).await, Some(true), "{point:?}");
    assert_eq!(put(&world, &keys(lease)[1], lease).await, Some(true), "{point:?}");
    let watching = watch(&world, lease, format!("{point:?}"));
    revoke(Arc::clone(&world), lease).await;
    timeout(PATIENCE, watching).await.unwrap_or_else(|_| panic!("{point:?}: keys are left")).expect("all or none");
    assert!(!is_there(&world, lease).await);
    // What was asked for again must not bring it back.
    assert_eq!(put(&world, &third, lease).await, Some(false), "{point:?}");
}
