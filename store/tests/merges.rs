//! Two regions become one under clients and watches, on three real stores, and whoever can die in the middle does (rule S4,
//! `docs/decisions/0007-merges.md`).
//!
//! What must be true: nothing that a client was told is lost or comes twice; transactions over both regions are seen whole or
//! not at all; watches see every event once, and none at or below what they were told to have seen; and the keys are served again soon, by one region or by two.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::key::{lease_key, user_key};
use braid_proto::pb::{
    GrantLeaseRequest, KeepLeaseRequest, LeaseStateRequest, MergeRegionResponse, Refusal, Region, RegionEpoch,
    RegionRequest, RevokeLeaseRequest, refusal, region_request, region_response,
};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

#[path = "merges/clients.rs"]
mod clients;
#[path = "transactions/cluster.rs"]
#[allow(dead_code, reason = "the tests of transactions use more of it")]
mod cluster;
#[path = "transactions/faults.rs"]
#[allow(dead_code, reason = "the tests of transactions use more of it")]
mod faults;
#[path = "watch/listener.rs"]
#[allow(dead_code, reason = "the tests of watch use more of it")]
mod listener;
#[path = "transactions/sequencer.rs"]
#[allow(dead_code, reason = "the tests of transactions use more of it")]
mod sequencer;

use clients::{Clients, PATIENCE, get, put_with};
use cluster::{Cluster, LOOK, World, anchor};
use faults::{CLIENT, Link, Stop};
use listener::Listener;

/// What regions begin with.
const EPOCH: RegionEpoch = RegionEpoch { conf_ver: 1, version: 1 };
/// Id of the region that a split makes.
const CHILD: u64 = 40;

/// The user's keys of a letter.
fn keys_of(letter: char) -> (Bytes, Bytes) {
    let next = char::from_u32(letter as u32 + 1).expect("a letter");
    (anchor(letter), anchor(next))
}

/// Everything that a follow was told, with keys and values as text.
fn events(listener: &Listener, id: u64) -> Vec<(i64, String, String)> {
    let told = &listener.follows[&id];
    let string = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("text");
    let event = |(place, event): (&(i64, u32), &braid_proto::etcd::mvccpb::Event)| {
        let kv = event.kv.clone().expect("a key");
        (place.0, string(&kv.key), string(&kv.value))
    };
    told.events.iter().map(event).collect()
}

fn merged(answer: &MergeRegionResponse) -> Region {
    assert_eq!((&answer.failed[..], &answer.refusal), ("", &None), "the regions are merged");
    answer.region.clone().expect("the merged region")
}

/// Merges until placement's order is taken: a leader may be busy with something else.
async fn merge(cluster: &Cluster, source: char, target: char) -> Region {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = cluster.merge(source, target).await;
        if answer.failed.is_empty() && answer.refusal.is_none() {
            return merged(&answer);
        }
        assert!(Instant::now() < deadline, "not merged: {answer:?}");
        sleep(LOOK).await;
    }
}

/// What a store says to a request that names a region as it was.
async fn ask_as_it_was(world: &World, store: u64, region_id: u64, key: &str) -> Option<refusal::Reason> {
    let range = braid_proto::etcd::etcdserverpb::RangeRequest { key: clients::text(key), ..Default::default() };
    let read = braid_proto::pb::ReadRequest { range: Some(range), read_at: 0 };
    let op = Some(region_request::Op::Read(read));
    let request = RegionRequest { region_id, epoch: Some(EPOCH), timeout_ms: 5_000, op };
    let link = Link { from: CLIENT, to: store, faults: Arc::clone(&world.faults) };
    match braid_proto::service::RegionService::call(&link, request).await.result {
        Some(region_response::Result::Refusal(Refusal { reason })) => reason,
        other => panic!("{other:?}"),
    }
}

/// Merges one way, under everything that goes on all the time.
async fn merge_under_clients(source: char, target: char, ids: (u64, u64)) {
    let cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    let begun = world.sequencer.bound().await;
    let clients = Clients::start(&world).await;
    // The leaders of the two regions are stores 1 and 2.
    let mut listeners = [Listener::new(cluster.watch(1)), Listener::new(cluster.watch(2))];
    let mut follows = Vec::new();
    for (at, letter) in ['a', 'n'].into_iter().enumerate() {
        let region = (at as u64 + 1, EPOCH);
        follows.push(listeners[at].join(region, keys_of(letter), begun, false).await);
    }
    clients.go_on(10).await;
    let (source_id, target_id) = ids;
    let region = merge(&cluster, source, target).await;
    assert_eq!(region.id, target_id);
    assert_eq!((&region.start[..], &region.end[..]), (&b""[..], &user_key(b"t")[..]));
    let epoch = region.region_epoch();
    assert!(epoch.version >= 3 && epoch.conf_ver == 1, "{epoch}");
    clients.go_on(10).await;

    // Who comes late with the ended region's name is told where its keys are; every store knows soon.
    for store in 1..=3 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask_as_it_was(&world, store, source_id, &source.to_string()).await {
                Some(refusal::Reason::EpochMismatch(mismatch)) => {
                    if mismatch.current[0].id == target_id {
                        assert!(mismatch.current[0].range().contains(&anchor(source)));
                        break;
                    }
                }
                Some(refusal::Reason::NotLeader(_) | refusal::Reason::Busy(_)) => {}
                other => panic!("{other:?}"),
            }
            assert!(Instant::now() < deadline, "store {store} does not know of the merge");
            sleep(LOOK).await;
        }
    }

    // Watches go on in the merged region from where they were.
    let (_, leader) = world.leader(&anchor('a')).await;
    let mut next = Listener::new(cluster.watch(leader));
    let mut seen = Vec::new();
    let mut later = Vec::new();
    for (at, letter) in ['a', 'n'].into_iter().enumerate() {
        listeners[at].left(follows[at]).await;
        seen.extend(events(&listeners[at], follows[at]));
        let frontier = listeners[at].follows[&follows[at]].frontier;
        seen.retain(|(revision, key, _)| *revision <= frontier || !key.starts_with(letter));
        later.push(next.join((target_id, epoch), keys_of(letter), frontier, false).await);
    }
    // Somebody who has seen nothing yet catches up from below the merge.
    let from_the_start = next.join((target_id, epoch), (anchor('a'), anchor('o')), begun, true).await;
    clients.go_on(10).await;
    // And it is split again where it was, and goes on so.
    let newest = world.sequencer.bound().await;
    for follow in later.iter().chain([&from_the_start]) {
        next.nudge(newest);
        next.reach(*follow, newest).await;
    }
    let split = cluster.split("m", CHILD).await;
    assert!(split.invalid.is_empty() && split.refusal.is_none(), "{split:?}");
    clients.go_on(10).await;
    let log = clients.stop().await;

    let cut =
        |events: Vec<(i64, String, String)>| events.into_iter().filter(|(at, _, _)| *at <= newest).collect::<Vec<_>>();
    let log = log.upto(newest);
    let whole = cut(events(&next, from_the_start));
    log.judge(begun, &whole);
    for follow in later {
        seen.extend(events(&next, follow));
    }
    log.judge(begun, &cut(seen));
    cluster.forgets_all_locks(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_goes_into_its_left_neighbour_under_clients_and_watches() {
    merge_under_clients('n', 'a', (2, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_goes_into_its_right_neighbour_under_clients_and_watches() {
    merge_under_clients('a', 'n', (1, 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_live_and_end_in_the_merged_region() {
    let cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    let ask = async |id: i64, op| world.ask(&lease_key(id), op, PATIENCE).await;
    let (revoked, expires, kept) = (7, 8, 9);
    for (id, ttl) in [(revoked, 3_600), (expires, 6), (kept, 6)] {
        let granted = ask(id, region_request::Op::GrantLease(GrantLeaseRequest { id, ttl })).await;
        assert!(matches!(granted, region_response::Result::GrantLease(_)), "{granted:?}");
        for letter in ["a", "n", "u"] {
            put_with(&world, &format!("{letter}/{id}"), "leased", id).await.expect("put");
        }
    }
    // The records lie in the first region: it is the one that ends.
    let region = merge(&cluster, 'a', 'n').await;
    assert_eq!(region.id, 2);
    let begun = Instant::now();
    // A key in the half that came, and one in the half that was there, by way of the record that has moved.
    for letter in ["a", "n"] {
        put_with(&world, &format!("{letter}/later/{revoked}"), "leased", revoked).await.expect("put");
    }
    let state = ask(revoked, region_request::Op::LeaseState(LeaseStateRequest { id: revoked, at_once: false })).await;
    assert!(matches!(state, region_response::Result::LeaseState(state) if state.granted_ttl == 3_600));
    let gone = ask(revoked, region_request::Op::RevokeLease(RevokeLeaseRequest { id: revoked })).await;
    assert!(matches!(gone, region_response::Result::RevokeLease(_)), "{gone:?}");
    for key in ["a", "n", "u", "a/later", "n/later"].map(|place| format!("{place}/{revoked}")) {
        assert_eq!(get(&world, &key).await, None, "{key}");
    }
    // One is kept alive beyond its time; the other ends, and not before.
    let mut expired = None;
    while begun.elapsed() < Duration::from_secs(12) || expired.is_none() {
        let keep = ask(kept, region_request::Op::KeepLease(KeepLeaseRequest { id: kept })).await;
        assert!(matches!(keep, region_response::Result::KeepLease(keep) if keep.ttl == 6), "{keep:?}");
        if expired.is_none() && get(&world, &format!("n/{expires}")).await.is_none() {
            expired = Some(begun.elapsed());
        }
        assert!(begun.elapsed() < PATIENCE, "a lease does not end");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(expired.is_some_and(|after| after >= Duration::from_secs(5)), "full time after the merge: {expired:?}");
    for letter in ["a", "n", "u"] {
        assert!(get(&world, &format!("{letter}/{kept}")).await.is_some());
        assert_eq!(get(&world, &format!("{letter}/{expires}")).await, None);
    }
}

/// Who is struck while a message of the merge stands still, and how.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// This store dies.
    Kills(u64),
    /// All die at once.
    KillsAll,
    /// This store is cut off from the others; it can be called.
    Isolates(u64),
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Merged,
    Apart,
    Either,
}

/// Region 2, led by store 2, goes into region 1, led by store 1.
struct Point {
    name: &'static str,
    stop: Stop,
    blow: Blow,
    /// What has become of it while those who are struck stay away.
    expect: Expect,
}

fn absorb(op: &region_request::Op) -> bool {
    matches!(op, region_request::Op::Absorb(_))
}

fn asks(op: &region_request::Op) -> bool {
    matches!(op, region_request::Op::Frozen(_))
}

fn at(which: fn(&region_request::Op) -> bool, after: u32, answer: bool) -> Stop {
    Stop { which, after, answer, twice: false }
}

async fn strike(point: Point) {
    let name = point.name;
    let mut cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    let clients = Clients::start(&world).await;
    clients.go_on(5).await;
    world.faults.stop(point.stop);
    let (into, _) = world.leader(&anchor('a')).await;
    assert_eq!(into.region.0, 1, "{name}");
    {
        let order = cluster.merge('n', 'a');
        tokio::pin!(order);
        // Whoever ordered it may die, and with it the answer.
        tokio::select! {
            // Its store has come to the merge before the source's leader is told.
            answer = &mut order => {
                assert!(point.stop.answer, "{name}: over before anything stood still: {answer:?}");
                merged(&answer);
            }
            _ = world.faults.stopped() => {}
        }
        world.faults.stopped().await;
    }
    match point.blow {
        Blow::Kills(store) => cluster.kill(store).await,
        Blow::KillsAll => {
            for store in 1..=3 {
                cluster.kill(store).await;
            }
        }
        Blow::Isolates(store) => world.faults.isolate(store),
    }
    world.faults.go_on();
    if let Blow::KillsAll = point.blow {
        cluster.heal().await;
    }
    // The keys are served again while whoever was struck is still away.
    clients.go_on(5).await;
    let regions = regions(&world).await;
    let expected = match point.expect {
        Expect::Merged => regions.0 == regions.1,
        Expect::Apart => regions.0 != regions.1,
        Expect::Either => true,
    };
    assert!(expected, "{name}: a and n are in regions {regions:?}");
    cluster.heal().await;
    clients.go_on(5).await;
    // And what is apart can be merged yet.
    if regions.0 != regions.1 {
        merge(&cluster, 'n', 'a').await;
        clients.go_on(5).await;
    }
    let merged = self::regions(&world).await;
    assert_eq!((merged.0, merged.1), (1, 1), "{name}");
    let log = clients.stop().await;
    let (route, leader) = world.leader(&anchor('a')).await;
    let mut listener = Listener::new(cluster.watch(leader));
    let everything = listener.join((1, route.epoch), (anchor('a'), anchor('o')), 1, false).await;
    let newest = world.sequencer.bound().await;
    listener.nudge(newest);
    listener.reach(everything, newest).await;
    log.judge(1, &events(&listener, everything));
    // Every replica comes to it.
    for store in 1..=3 {
        let deadline = Instant::now() + PATIENCE;
        while !matches!(
            ask_as_it_was(&world, store, 2, "n").await,
            Some(refusal::Reason::EpochMismatch(mismatch)) if mismatch.current[0].id == 1
        ) && !matches!(ask_as_it_was(&world, store, 2, "n").await, Some(refusal::Reason::RegionNotFound(_)))
        {
            assert!(Instant::now() < deadline, "{name}: store {store} still has the region that ended");
            sleep(LOOK).await;
        }
    }
    cluster.forgets_all_locks(PATIENCE).await;
}

/// The regions that serve the two letters, by their leaders' word.
async fn regions(world: &World) -> (u64, u64) {
    let mut found = Vec::new();
    for letter in ['a', 'n'] {
        get(world, &letter.to_string()).await;
        found.push(world.leader(&anchor(letter)).await.0.region.0);
    }
    (found[0], found[1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sources_leader_dies_when_the_region_is_frozen() {
    let stop = at(absorb, 0, false);
    strike(Point { name: "source-dies", stop, blow: Blow::Kills(2), expect: Expect::Apart }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_targets_leader_dies_before_it_proposes() {
    let stop = at(asks, 1, false);
    strike(Point { name: "target-dies", stop, blow: Blow::Kills(1), expect: Expect::Apart }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_targets_leader_dies_when_it_has_merged_and_told_nobody() {
    let stop = at(absorb, 0, true);
    strike(Point { name: "target-dies-late", stop, blow: Blow::Kills(1), expect: Expect::Merged }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sources_leader_dies_when_it_is_absorbed_and_not_told() {
    let stop = at(absorb, 0, true);
    strike(Point { name: "source-dies-late", stop, blow: Blow::Kills(2), expect: Expect::Merged }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_is_away_and_the_source_goes_on() {
    let stop = at(absorb, 0, false);
    strike(Point { name: "one-away", stop, blow: Blow::Kills(3), expect: Expect::Apart }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_targets_leader_is_cut_off_when_it_asks() {
    let stop = at(asks, 0, false);
    strike(Point { name: "target-cut-off", stop, blow: Blow::Isolates(1), expect: Expect::Either }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_stops_with_a_frozen_region_and_the_merge_goes_on_after() {
    let stop = at(absorb, 0, false);
    strike(Point { name: "all-die", stop, blow: Blow::KillsAll, expect: Expect::Either }).await;
}
