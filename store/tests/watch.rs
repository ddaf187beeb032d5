//! What a store tells proxies of its regions: in order, everything, once, and never behind a frontier that covers it.

#[path = "transactions/cluster.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod cluster;
#[path = "transactions/coordinator.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod coordinator;
#[path = "transactions/faults.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod faults;
#[path = "watch/listener.rs"]
mod listener;
#[path = "transactions/sequencer.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod sequencer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest};
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::key::user_key;
use braid_proto::pb::{RegionEpoch, refusal, region_request, region_response};
use bytes::Bytes;
use cluster::{Cluster, World, anchor};
use coordinator::{Coordinator, Part, Told as Decided, text};
use listener::Listener;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(20);

async fn put(world: &World, key: &str, value: Bytes) -> i64 {
    let put = PutRequest { key: text(key), value, ..Default::default() };
    match world.ask_once(&user_key(key.as_bytes()), region_request::Op::Put(put), PATIENCE).await {
        region_response::Result::Put(put) => put.header.expect("a header").revision,
        other => panic!("{key}: {other:?}"),
    }
}

async fn delete(world: &World, key: &str) -> i64 {
    let delete = DeleteRangeRequest { key: text(key), ..Default::default() };
    match world.ask_once(&user_key(key.as_bytes()), region_request::Op::DeleteRange(delete), PATIENCE).await {
        region_response::Result::DeleteRange(delete) => delete.header.expect("a header").revision,
        other => panic!("{key}: {other:?}"),
    }
}

/// All keys that begin with `letter`.
fn keys_of(letter: char) -> (Bytes, Bytes) {
    (anchor(letter), anchor(char::from(letter as u8 + 1)))
}

/// The region of `letter`, for a follow.
async fn region(world: &World, letter: char) -> (u64, RegionEpoch) {
    let (route, _) = world.leader(&anchor(letter)).await;
    (route.region.0, route.epoch)
}

/// Puts and deletes of keys of `letter` until `stop`.
fn writer(world: &Arc<World>, letter: char, name: usize, stop: &Arc<AtomicBool>) -> JoinHandle<Vec<i64>> {
    let (world, stop) = (Arc::clone(world), Arc::clone(stop));
    tokio::spawn(async move {
        let mut made = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let turn = made.len();
            let key = format!("{letter}/{name}/{}", turn % 7);
            made.push(match turn % 14 {
                13 => delete(&world, &key).await,
                _ => put(&world, &key, text(&format!("{turn}"))).await,
            });
        }
        made
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_comes_once_with_values_and_the_past_is_the_same() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    let home = region(world, 'a').await;
    let mut listener = Listener::new(cluster.watch(1));
    let live = listener.join(home, keys_of('a'), 1, true).await;
    let one = listener.join(home, (user_key(b"a1"), user_key(b"a1\0")), 1, false).await;
    let created = put(world, "a1", text("first")).await;
    let updated = put(world, "a1", text("second")).await;
    let other = put(world, "a2", text("other")).await;
    put(world, "n", text("elsewhere")).await;
    let deleted = delete(world, "a1").await;
    listener.reach(live, deleted).await;
    listener.reach(one, deleted).await;
    let past = listener.join(home, keys_of('a'), 1, true).await;
    let late = listener.join(home, keys_of('a'), created, true).await;
    listener.reach(past, deleted).await;
    listener.reach(late, deleted).await;
    let told = |id: u64| &listener.follows[&id];
    let places = [created, updated, other, deleted].map(|revision| (revision, 0));
    assert_eq!(told(live).order, places);
    assert_eq!(told(past).order, places);
    assert_eq!(told(late).order, places[1..]);
    assert_eq!(told(live).events, told(past).events);
    assert_eq!(told(one).order, [created, updated, deleted].map(|revision| (revision, 0)));
    assert!(told(one).events.values().all(|event| event.prev_kv.is_none()), "nobody asked for it");
    let event = |revision| &told(live).events[&(revision, 0)];
    let kv = event(updated).kv.as_ref().expect("a value");
    assert_eq!((&kv.key[..], &kv.value[..]), (&b"a1"[..], &b"second"[..]));
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (created, updated, 2));
    assert_eq!(event(created).prev_kv, None);
    assert_eq!(event(updated).prev_kv, event(created).kv);
    assert_eq!(event(deleted).r#type(), EventType::Delete);
    assert_eq!(event(deleted).prev_kv, event(updated).kv);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_together_with_the_frontier_that_releases_them() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    let home = region(world, 'a').await;
    let mut listener = Listener::new(cluster.watch(1));
    let id = listener.join(home, keys_of('a'), 1, false).await;
    for turn in 0..100 {
        let revision = put(world, &format!("a{turn}"), text("v")).await;
        while listener.follows[&id].frontier < revision {
            listener.listen().await;
        }
    }
    // A round that was on its way when something was applied does not count it in.
    assert!(listener.uncovered < 10, "{} of 100 had to wait", listener.uncovered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_joins_while_others_write_misses_and_repeats_nothing() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    let home = region(world, 'a').await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4).map(|name| writer(world, 'a', name, &stop)).collect();
    let mut listener = Listener::new(cluster.watch(1));
    let first = listener.join(home, keys_of('a'), 1, true).await;
    let mut joined = Vec::new();
    for turn in 0..60 {
        // From the beginning, from somewhere, and from a moment ago.
        let now = world.sequencer.newest();
        let after = [1, now / 2, now - 3][turn % 3].max(1);
        joined.push((after, listener.join(home, keys_of('a'), after, true).await));
        listener.reach(first, now).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut made = Vec::new();
    for writer in writers {
        made.extend(writer.await.expect("a writer"));
    }
    let end = world.sequencer.newest();
    listener.reach(first, end).await;
    for (_, id) in &joined {
        listener.reach(*id, end).await;
    }
    let whole = &listener.follows[&first].events;
    for revision in made {
        assert!(whole.contains_key(&(revision, 0)), "@{revision} was answered and is not told");
    }
    assert!(listener.follows[&first].order.is_sorted());
    for (after, id) in joined {
        let told = &listener.follows[&id];
        assert_eq!(told.left, None);
        let expected: Vec<_> = whole.range((after + 1, 0)..).collect();
        assert_eq!(told.events.iter().collect::<Vec<_>>(), expected, "after {after}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frontier_waits_for_transactions_over_several_regions() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    let mut listeners = Vec::new();
    for (letter, store) in [('a', 1), ('n', 2)] {
        let mut listener = Listener::new(cluster.watch(store));
        let id = listener.join(region(world, letter).await, keys_of(letter), 1, false).await;
        listeners.push((listener, id));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ['a', 'n'].map(|letter| writer(world, letter, 0, &stop)).into_iter().collect();
    for turn in 0..12 {
        let mut both = Coordinator::seed(world, &format!("t{turn}"), turn, &[Part::of('a'), Part::of('n')]).await;
        both.lock_all().await;
        // The frontier passes a lock whose transaction is not numbered yet (rule M7) ...
        let now = world.sequencer.newest();
        for (listener, id) in &mut listeners {
            listener.reach(*id, now).await;
        }
        let Decided::Revision(revision) = both.decide().await else { panic!("it is decided") };
        // ... and one whose transaction is, only behind its events.
        for (listener, id) in &mut listeners {
            listener.reach(*id, revision).await;
            let told = &listener.follows[id];
            assert_eq!(told.events.range((revision, 0)..(revision + 1, 0)).count(), 2, "two keys in each region");
        }
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.expect("a writer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_goes_on_where_the_old_one_ended() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    let home = region(world, 'a').await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = writer(world, 'a', 0, &stop);
    let mut listener = Listener::new(cluster.watch(1));
    let old = listener.join(home, keys_of('a'), 1, false).await;
    let now = world.sequencer.newest() + 20;
    while listener.follows[&old].frontier < now {
        listener.listen().await;
    }
    cluster.lead('a', 2).await;
    let left = listener.left(old).await;
    let reason = left.refusal.and_then(|refusal| refusal.reason);
    assert!(matches!(reason, Some(refusal::Reason::NotLeader(_))), "{reason:?}");
    let from = listener.follows[&old].frontier;
    let mut next = Listener::new(cluster.watch(2));
    let new = next.join(home, keys_of('a'), from, false).await;
    stop.store(true, Ordering::SeqCst);
    let made = writer.await.expect("a writer");
    next.reach(new, world.sequencer.newest()).await;
    let (old, new) = (&listener.follows[&old].events, &next.follows[&new].events);
    for revision in made {
        let place = (revision, 0);
        assert_eq!(new.contains_key(&place), revision > from, "@{revision}, frontier {from}");
        assert!(revision > from || old.contains_key(&place), "@{revision} is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_halves_of_a_split_go_on_where_the_whole_ended() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    let (id, epoch) = region(world, 'a').await;
    let mut made = Vec::new();
    for turn in 0..40 {
        made.push(put(world, &format!("a{turn:02}"), text("v")).await);
    }
    made.push(delete(world, "a30").await);
    let mut listener = Listener::new(cluster.watch(1));
    let whole = listener.join((id, epoch), keys_of('a'), 1, false).await;
    listener.reach(whole, world.sequencer.newest()).await;
    let answer = cluster.split("a20", 9).await;
    let (left, right) = (answer.left.expect("the left half"), answer.right.expect("the right half"));
    let ended = listener.left(whole).await.refusal.and_then(|refusal| refusal.reason);
    assert!(matches!(ended, Some(refusal::Reason::EpochMismatch(_))), "{ended:?}");
    cluster.world.leader(&user_key(b"a30")).await;
    cluster.lead('a', 1).await;
    let (_, child_leader) = world.leader(&user_key(b"a30")).await;
    made.push(put(world, "a10", text("later")).await);
    made.push(put(world, "a35", text("later")).await);
    let end = world.sequencer.newest();
    let cut = user_key(b"a20");
    // Also from far before the split: the child's range has a past that the parent has seen.
    for after in [1, made[24], listener.follows[&whole].frontier] {
        let mut told = std::collections::BTreeMap::new();
        for (store, half, range) in
            [(1, &left, (anchor('a'), cut.clone())), (child_leader, &right, (cut.clone(), anchor('b')))]
        {
            let mut half_listener = Listener::new(cluster.watch(store));
            let id = half_listener.join((half.id, half.epoch.expect("an epoch")), range, after, true).await;
            half_listener.reach(id, end).await;
            let half_told = &half_listener.follows[&id];
            assert_eq!(half_told.left, None);
            told.extend(half_told.events.clone());
        }
        let revisions: Vec<i64> = told.keys().map(|(revision, _)| *revision).collect();
        let expected: Vec<i64> = made.iter().copied().filter(|revision| *revision > after).collect();
        assert_eq!(revisions, expected, "after {after}");
        for (place, event) in &told {
            if let Some(before) = listener.follows[&whole].events.get(place) {
                assert_eq!((event.r#type(), &event.kv), (before.r#type(), &before.kv));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_left_and_comes_back() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    let home = region(world, 'a').await;
    let mut slow = Listener::new(cluster.watch(1));
    let mut quick = Listener::new(cluster.watch(1));
    let lost = slow.join(home, keys_of('a'), 1, false).await;
    let kept = quick.join(home, keys_of('a'), 1, false).await;
    slow.reach(lost, world.sequencer.newest()).await;
    let mut newest = 0;
    for turn in 0..80 {
        newest = put(world, &format!("a{turn}"), Bytes::from(vec![b'x'; 1 << 20])).await;
        quick.reach(kept, newest).await;
    }
    assert_eq!(quick.follows[&kept].events.len(), 80);
    let left = slow.left(lost).await.refusal.and_then(|refusal| refusal.reason);
    assert!(matches!(left, Some(refusal::Reason::Busy(_))), "{left:?}");
    assert!(slow.follows[&lost].events.len() < 80);
    // What it was told beyond its frontier comes again.
    let again = slow.join(home, keys_of('a'), slow.follows[&lost].frontier, false).await;
    slow.reach(again, newest).await;
    let told = |id| slow.follows[&id].events.clone();
    let mut all = told(lost);
    all.extend(told(again));
    assert_eq!(all, quick.follows[&kept].events);
}
