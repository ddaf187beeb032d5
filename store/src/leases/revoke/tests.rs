//! Revocations over scripted regions: what is asked of whom, and what is there afterwards.

#[path = "tests/world.rs"]
mod world;

use std::time::Duration;

use braid_proto::pb::{AttachedKeysResponse, Refusal, TooLarge, Unknown, refusal};
use braid_store_client::deadline::Patience;

use super::*;
use world::{LEASE, State, World, other_txn};

/// How long a revocation that must succeed may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn unknown() -> region_response::Result {
    let why = "the leader is gone".to_owned();
    region_response::Result::Refusal(Refusal { reason: Some(refusal::Reason::Unknown(Unknown { why })) })
}

fn too_large() -> region_response::Result {
    region_response::Result::Refusal(Refusal { reason: Some(refusal::Reason::TooLarge(TooLarge {})) })
}

impl World {
    async fn revoke_within(&self, ranges: &[(&str, &str)], patience: Duration) -> Result<i64, NotDone> {
        let ranges: Vec<KeyRange> = ranges.iter().map(|(start, end)| world::range(start, end)).collect();
        carry_out(&self.cluster, &self.terms, LEASE, &ranges, Patience::within(patience)).await
    }

    async fn revoke(&self, ranges: &[(&str, &str)]) -> i64 {
        self.revoke_within(ranges, PATIENCE).await.expect("it is carried out")
    }
}

/// Two regions with a key each, and a key of nobody's in the second.
fn two_regions() -> World {
    World::new(&["m"], &[("a", LEASE), ("n", LEASE), ("o", 0)])
}

#[tokio::test]
async fn one_region_does_it_alone() {
    let world = World::new(&["m"], &[("a", LEASE), ("b", 0), ("c", LEASE), ("d", 9)]);
    assert_eq!(world.revoke(&[("a", "b"), ("c", "e")]).await, 101);
    assert_eq!(world.log(), ["r1 detach"]);
    assert_eq!(world.keys(), ["b", "d"]);
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again() {
    let world = World::new(&[], &[("a", LEASE)]);
    world.on("detach", |state, request| {
        state.serve(request);
        Some(unknown())
    });
    assert_eq!(world.revoke(&[("a", "b")]).await, 101);
    assert_eq!(world.log(), ["r1 detach", "r1 detach"]);
    assert_eq!(world.keys(), [""; 0]);
}

#[tokio::test]
async fn keys_of_several_regions_go_at_one_revision() {
    let world = World::new(&["m", "t"], &[("a", LEASE), ("b", 0), ("c", LEASE), ("n", LEASE), ("o", 9), ("z", LEASE)]);
    assert_eq!(world.revoke(&[("a", "d"), ("m", "")]).await, 101);
    assert_eq!(
        world.log(),
        [
            "r1 keys",
            "r2 keys",
            "r3 keys",
            "r1 lock wait a,c",
            "r2 lock n",
            "r3 lock z",
            "r1 decide a#0 c#1 | n#2 | z#3",
        ]
    );
    assert_eq!(world.keys(), ["b", "o"]);
    assert_eq!(world.deleted(), ["a@101", "c@101", "n@101", "z@101"]);
    assert_eq!(world.locked(), 0);
}

#[tokio::test]
async fn once_a_term_is_known_all_is_locked_at_once() {
    let world = two_regions();
    world.revoke(&[("", "")]).await;
    world.put("b", LEASE);
    world.put("p", LEASE);
    world.clear_log();
    assert_eq!(world.revoke(&[("", "")]).await, 104);
    assert_eq!(world.log(), ["r1 keys", "r2 keys", "r1 lock b", "r2 lock p", "r1 decide b#0 | p#1"]);
    assert_eq!(world.keys(), ["o"]);
}

#[tokio::test]
async fn where_nothing_is_attached_nothing_is_locked() {
    let world = World::new(&["m"], &[("a", 0), ("n", 9)]);
    world.on("keys", |state, _| {
        state.revision = 120;
        None
    });
    assert_eq!(world.revoke(&[("", "")]).await, 120, "the newest that was answered");
    assert_eq!(world.log(), ["r1 keys", "r2 keys"]);
    assert_eq!(world.keys(), ["a", "n"]);
    assert_eq!(world.revoke(&[]).await, 0);
}

#[tokio::test]
async fn a_region_without_keys_is_closed_and_not_locked() {
    let world = World::new(&["m", "t"], &[("a", LEASE), ("z", LEASE)]);
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.closed(), [1, 2, 3]);
    assert_eq!(world.locks_asked(), ["r1 lock wait a", "r3 lock z"]);
    assert_eq!(world.keys(), [""; 0]);
}

#[tokio::test]
async fn a_region_with_more_than_an_entry_takes_wipes_its_own_keys() {
    let world = World::new(&[], &[("a", 0), ("b", LEASE), ("c", 9), ("d", LEASE), ("e", 0)]);
    world.on("detach", |_, _| Some(too_large()));
    world.state().keys_named_max = 1;
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.log(), ["r1 detach", "r1 keys", "r1 lock wait b..d count", "r1 decide wipe b..d#0 of lease 7"]);
    assert_eq!(world.keys(), ["a", "c", "e"]);
}

#[tokio::test]
async fn wide_and_listed_regions_are_numbered_in_key_order() {
    let keys = [("a", LEASE), ("n", LEASE), ("o", 0), ("p", LEASE), ("x", 0), ("z", LEASE)];
    let world = World::new(&["m", "t"], &keys);
    world.state().keys_named_max = 1;
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    // Three keys lie between n and p: whichever of them go, z comes after.
    assert_eq!(world.log().last().expect("asked"), "r1 decide a#0 | wipe n..p#1 of lease 7 | z#4");
    assert_eq!(world.keys(), ["o", "x"]);
}

#[tokio::test]
async fn values_that_no_answer_holds_are_not_read() {
    let world = two_regions();
    world.on("lock", |_, _| Some(too_large()));
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.log().last().expect("asked"), "r1 decide wipe a..a#0 of lease 7 | wipe n..n#1 of lease 7");
    assert_eq!(world.keys(), ["o"]);
}

#[tokio::test]
async fn a_region_that_is_split_before_it_is_closed_is_asked_as_two() {
    let world = two_regions();
    world.put("g", LEASE);
    world.on("keys", |state, _| {
        state.split("f");
        None
    });
    world.revoke(&[("", "")]).await;
    assert_eq!(world.closed(), [1, 2, 3]);
    assert_eq!(world.locks_asked(), ["r1 lock wait a", "r3 lock g", "r2 lock n"]);
    assert_eq!(world.keys(), ["o"]);
}

#[tokio::test]
async fn a_region_that_is_split_before_it_does_it_alone_is_asked_as_two() {
    let world = World::new(&[], &[("a", LEASE), ("g", LEASE)]);
    world.on("detach", |state, _| {
        state.split("f");
        None
    });
    world.revoke(&[("", "")]).await;
    assert_eq!(world.closed(), [1, 2]);
    assert_eq!(world.keys(), [""; 0]);
}

#[tokio::test]
async fn a_region_that_is_split_before_it_is_locked_is_closed_anew() {
    let world = two_regions();
    world.put("g", LEASE);
    world.on("lock", |state, _| {
        state.split("f");
        // The first leader of the half has not heard of the lease yet, and so nothing is closed there.
        state.closed.remove(&3);
        None
    });
    world.revoke(&[("", "")]).await;
    assert_eq!(world.closed(), [1, 2, 3]);
    assert_eq!(world.deleted(), ["a@102", "g@102", "n@102"]);
    assert_eq!(world.locked(), 0);
}

#[tokio::test]
async fn what_was_overwritten_before_it_was_locked_stays() {
    let world = two_regions();
    world.put("p", LEASE);
    world.on("lock", |state, _| {
        state.put("n", 0);
        state.put("p", LEASE);
        None
    });
    let revision = world.revoke(&[("", "")]).await;
    assert_eq!(world.log().last().expect("asked"), "r1 decide a#0 | p#1");
    // The fake checks that what is superseded is what was there.
    assert_eq!(world.deleted(), [format!("a@{revision}"), format!("p@{revision}")]);
    assert_eq!(world.keys(), ["n", "o"]);
}

#[tokio::test]
async fn where_nothing_is_left_under_the_locks_nothing_is_decided() {
    let world = two_regions();
    world.on("lock", |state, _| {
        state.put("a", 0);
        state.put("n", 9);
        None
    });
    assert_eq!(world.revoke(&[("", "")]).await, 102, "not older than what others were told");
    assert_eq!(world.decisions(), 0);
    assert_eq!(world.keys(), ["a", "n", "o"]);
    assert_eq!(world.locked(), 0);
}

#[tokio::test]
async fn a_decision_that_has_happened_is_found_done() {
    let world = two_regions();
    world.on("decide", |state, request| {
        state.serve(request);
        Some(unknown())
    });
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.decisions(), 1);
    assert_eq!(world.deleted(), ["a@101", "n@101"]);
}

#[tokio::test]
async fn a_decision_that_is_still_coming_is_waited_for() {
    let world = two_regions();
    world.on("decide", |state, request| {
        state.late.push(request);
        Some(unknown())
    });
    // The keys are locked until it comes.
    for _ in 0..3 {
        world.on("lock", |_, _| None);
    }
    world.on("lock", |state, _| {
        for request in std::mem::take(&mut state.late) {
            state.serve(request);
        }
        None
    });
    let revision = world.revoke(&[("", "")]).await;
    assert_eq!(revision, 101);
    assert_eq!(world.deleted(), ["a@101", "n@101"], "once, and at one revision");
    assert_eq!(world.locked(), 0);
}

#[tokio::test]
async fn a_decision_that_never_comes_is_made_again() {
    let world = two_regions();
    world.on("decide", |state, _| {
        state.locks.clear();
        Some(unknown())
    });
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.decisions(), 2);
    assert_eq!(world.deleted(), ["a@101", "n@101"]);
}

#[tokio::test]
async fn a_transaction_that_was_given_up_by_its_primary_begins_again() {
    let world = two_regions();
    world.on("decide", |state, _| {
        state.locks.retain(|held| held.region != 1);
        None
    });
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.decisions(), 2);
    assert_eq!(world.deleted(), ["a@101", "n@101"]);
    assert_eq!(world.locked(), 0);
}

#[tokio::test]
async fn whoever_is_in_the_way_is_waited_for_in_key_order() {
    let world = two_regions();
    world.state().hold("n", other_txn());
    world.on("lock", |_, _| None);
    world.on("lock", |_, _| None);
    // The other one goes once the keys before are locked again, in order.
    world.on("lock", |_, _| None);
    world.on("lock", |state, _| {
        state.locks.retain(|held| held.txn != other_txn());
        None
    });
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.locks_asked(), ["r1 lock wait a", "r2 lock n", "r1 lock wait a", "r2 lock wait n"]);
    assert_eq!(world.keys(), ["o"]);
    assert_eq!(world.locked(), 0);
}

#[tokio::test]
async fn a_revocation_that_cannot_go_on_says_so_in_time_and_goes_on_later() {
    let world = two_regions();
    world.state().hold("n", other_txn());
    let why = world.revoke_within(&[("", "")], Duration::from_millis(300)).await.expect_err("n is locked");
    assert_eq!((why.lease, why.attempts), (LEASE, 1), "{why}");
    assert_eq!(world.keys(), ["a", "n", "o"], "all or nothing");
    world.state().locks.clear();
    assert_eq!(world.revoke(&[("", "")]).await, 101);
    assert_eq!(world.keys(), ["o"]);
}

#[tokio::test]
async fn an_error_of_a_region_ends_it() {
    let world = two_regions();
    world.on("keys", |_, _| Some(region_response::Result::Error(error::CORRUPT.into())));
    let why = world.revoke_within(&[("", "")], PATIENCE).await.expect_err("damaged");
    assert_eq!(why.why.message(), error::CORRUPT.message);
    assert_eq!(world.keys(), ["a", "n", "o"]);
}

#[tokio::test]
async fn a_region_that_counts_keys_and_names_none_is_not_believed() {
    let world = two_regions();
    let nonsense = AttachedKeysResponse { count: 3, ..AttachedKeysResponse::default() };
    world.on("keys", |_, _| Some(region_response::Result::AttachedKeys(nonsense)));
    let why = world.revoke_within(&[("", "")], PATIENCE).await.expect_err("nonsense");
    assert_eq!(why.why.code(), tonic::Code::Internal);
    assert_eq!(world.locks_asked(), [""; 0]);
}

#[tokio::test]
async fn whoever_drops_it_leaves_no_locks() {
    let world = two_regions();
    world.state().hold("n", other_txn());
    let waiting = world.reached("r2 lock wait n");
    tokio::select! {
        done = world.revoke(&[("", "")]) => panic!("n is locked, and yet @{done}"),
        () = waiting => {}
    }
    world.until(|state| state.locks.iter().all(|held| held.txn == other_txn())).await;
    assert_eq!(world.keys(), ["a", "n", "o"]);
}

#[test]
fn keys_are_listed_while_they_are_few() {
    let closed = |region, count: usize| {
        let keys: Vec<Bytes> = (0..count).map(|n| user_key(format!("{region}{n:06}").as_bytes())).collect();
        let (first, last) = (keys[0].clone(), keys[count - 1].clone());
        let keys = AttachedKeysResponse { count: count as i64, first, last, keys, revision: 1 };
        Closed { region: RegionId(region), keys }
    };
    let wide =
        |closed: &[Closed]| -> Vec<bool> { parts(closed, false).iter().map(|part| part.reads[0].count_only).collect() };
    assert_eq!(wide(&[closed(1, LISTED_KEYS_MAX), closed(2, LISTED_KEYS_MAX + 1)]), [false, true]);
    let many: Vec<Closed> = (1..=5).map(|region| closed(region, LISTED_KEYS_MAX)).collect();
    assert_eq!(wide(&many), [false, false, false, false, true]);
    let mut large = closed(3, 2);
    large.keys.keys[0] = vec![0; LISTED_BYTES_MAX].into();
    assert_eq!(wide(&[large, closed(4, 1)]), [true, false]);
    let part = &parts(&[closed(1, 2)], true)[0];
    let [range] = &part.ranges[..] else { panic!("{part:?}") };
    assert_eq!((&range.start[..], &range.end[..]), (&b" 1000000"[..], &b" 1000001\0"[..]));
    assert!(part.reads[0].count_only && range.exclusive);
}

impl State {
    /// Somebody else's lock on one key.
    fn hold(&mut self, key: &str, txn: braid_proto::pb::TxnId) {
        let region = self.region_of(key);
        self.lock_for(region, txn, vec![KeyRange::single(user_key(key.as_bytes()))]);
    }
}
