//! Scripts for single rules here; random schedules in [`random`].

mod random;

use std::sync::Arc;

use braid_proto::etcd::mvccpb::{Event, KeyValue};
use braid_proto::id::{RegionId, StoreId};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Follow, FollowFrontier, RegionEpoch, RegionEvent, RegionEvents, RegionFrontier, StoreFrontier};
use parking_lot::Mutex;

use super::{Effect, Limits, Merge, Tile, Trouble};
use crate::watch::batch::Batch;
use crate::watch::{Receiver, SubscriptionId, Wanted};

const S1: StoreId = StoreId(1);
const S2: StoreId = StoreId(2);

/// Takes news while there is room, and remembers them as text: "105 k z" for keys k and z at revision 105.
struct Client {
    taken: Mutex<Taken>,
}

struct Taken {
    room: usize,
    lines: Vec<String>,
}

impl Client {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::new(Taken { room, lines: Vec::new() }) })
    }

    fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.taken.lock().lines)
    }

    fn give_room(&self, room: usize) {
        self.taken.lock().room = room;
    }
}

impl Receiver for Client {
    fn take(&self, _: SubscriptionId, batch: &Batch, from: usize) -> usize {
        let mut taken = self.taken.lock();
        for (index, moment) in batch.moments().iter().enumerate().skip(from) {
            let Some(room) = taken.room.checked_sub(1) else { return index };
            taken.room = room;
            let keys: Vec<&str> = moment.events.iter().map(key_of).collect();
            taken.lines.push(format!("{} {}", moment.revision, keys.join(" ")));
        }
        batch.len()
    }

    fn end(&self, _: SubscriptionId, begin: i64) -> bool {
        let mut taken = self.taken.lock();
        let Some(room) = taken.room.checked_sub(1) else { return false };
        taken.room = room;
        taken.lines.push(format!("compacted {begin}"));
        true
    }
}

fn key_of(event: &Event) -> &str {
    std::str::from_utf8(&event.kv.as_ref().expect("an event has a key").key).expect("a key of these tests is text")
}

fn event(key: &str, revision: i64) -> Event {
    let kv = KeyValue { key: key.to_owned().into(), mod_revision: revision, ..KeyValue::default() };
    Event { kv: Some(kv), ..Event::default() }
}

fn told(ids: &[u64], revision: i64, keys: &[(u32, &str)]) -> RegionEvents {
    let events = keys.iter().map(|(sub, key)| RegionEvent { sub: *sub, event: Some(event(key, revision)) });
    RegionEvents { ids: ids.to_vec(), revision, events: events.collect() }
}

fn frontier(revision: i64, lower: &[(u64, i64)]) -> StoreFrontier {
    let lower = lower.iter().map(|(region_id, revision)| RegionFrontier { region_id: *region_id, revision: *revision });
    StoreFrontier { revision, compacted: 0, lower: lower.collect(), catching_up: Vec::new() }
}

/// A merge and its effects so far.
struct Script {
    merge: Merge,
    effects: Vec<Effect>,
    follows: Vec<(StoreId, Follow)>,
}

impl Script {
    fn new(limits: Limits) -> Self {
        Self { merge: Merge::new(limits), effects: Vec::new(), follows: Vec::new() }
    }

    fn subscribe(&mut self, id: u64, range: (&str, &str), start: i64, room: usize) -> Arc<Client> {
        let client = Client::new(room);
        let range = KeyRange::user(range.0.as_bytes(), range.1.as_bytes());
        let wanted = Wanted { range, start, prev_kv: false };
        let receiver: Arc<dyn Receiver> = client.clone();
        self.merge.subscribe(SubscriptionId(id), wanted, receiver, start - 1);
        client
    }

    fn collect(&mut self) {
        self.effects.extend(self.merge.effects());
    }

    /// The one piece that looks for a place.
    fn place(&mut self) -> (u64, KeyRange, Trouble) {
        let mut places = self.places();
        assert_eq!(places.len(), 1, "{places:?}");
        places.remove(0)
    }

    fn places(&mut self) -> Vec<(u64, KeyRange, Trouble)> {
        self.collect();
        let places = self.effects.extract_if(.., |effect| matches!(effect, Effect::Place { .. }));
        let place = |effect| match effect {
            Effect::Place { piece, range, trouble, .. } => (piece, range, trouble),
            other => panic!("{other:?}"),
        };
        places.map(place).collect()
    }

    /// Follows a piece: (region, first key of the region in it or nothing, store). Returns the follows.
    fn put(&mut self, piece: u64, range: &KeyRange, regions: &[(u64, &str, StoreId)]) -> Vec<Follow> {
        let starts: Vec<_> = regions
            .iter()
            .map(|(_, start, _)| KeyRange::user(start.as_bytes(), b"\0").start.max(range.start.clone()))
            .collect();
        let tile = |(index, (region, _, store)): (usize, &(u64, &str, StoreId))| Tile {
            range: KeyRange { start: starts[index].clone(), end: starts.get(index + 1).unwrap_or(&range.end).clone() },
            region: RegionId(*region),
            epoch: RegionEpoch::default(),
            store: *store,
        };
        self.merge.placed(piece, regions.iter().enumerate().map(tile).collect());
        self.follows()
    }

    fn follows(&mut self) -> Vec<Follow> {
        self.collect();
        let follows = self.effects.extract_if(.., |effect| matches!(effect, Effect::Follow { .. }));
        let follows: Vec<(StoreId, Follow)> = follows
            .map(|effect| match effect {
                Effect::Follow { store, order } => (store, order),
                other => panic!("{other:?}"),
            })
            .collect();
        self.follows.extend(follows.iter().cloned());
        follows.into_iter().map(|(_, order)| order).collect()
    }

    fn nudges(&mut self) -> Vec<(StoreId, i64)> {
        self.collect();
        let nudges = self.effects.extract_if(.., |effect| matches!(effect, Effect::Nudge { .. }));
        nudges
            .map(|effect| match effect {
                Effect::Nudge { store, revision } => (store, revision),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn frontier(&mut self, id: u64) -> i64 {
        self.merge.frontier(SubscriptionId(id)).expect("it is subscribed")
    }
}

/// A watch over [a, z) from 101 on, of r1 [a, m) at s1 and r2 [m, z) at s2, both joined.
fn two_regions(limits: Limits) -> (Script, Arc<Client>, u64, u64) {
    let mut script = Script::new(limits);
    let client = script.subscribe(1, ("a", "z"), 101, usize::MAX);
    let (piece, range, trouble) = script.place();
    assert_eq!(trouble, Trouble::None);
    let follows = script.put(piece, &range, &[(1, "a", S1), (2, "m", S2)]);
    assert_eq!(follows.iter().map(|follow| follow.after).collect::<Vec<_>>(), [100, 100]);
    let (one, two) = (follows[0].id, follows[1].id);
    script.merge.joined(S1, one, 100);
    script.merge.joined(S2, two, 100);
    (script, client, one, two)
}

#[test]
fn events_wait_for_the_slower_store_and_come_in_order() {
    let (mut script, client, one, two) = two_regions(Limits::default());
    script.merge.events(S1, &told(&[one], 102, &[(0, "b")]));
    assert_eq!(script.nudges(), [(S2, 102)], "the other store is asked at once");
    script.merge.store_frontier(S1, &frontier(110, &[]));
    assert!(client.lines().is_empty());
    script.merge.events(S2, &told(&[two], 101, &[(0, "n")]));
    script.merge.store_frontier(S2, &frontier(101, &[]));
    assert_eq!(client.lines(), ["101 n"]);
    script.merge.store_frontier(S2, &frontier(105, &[]));
    assert_eq!(client.lines(), ["102 b"]);
    assert_eq!(script.frontier(1), 105);
}

/// A watch that is still told the past holds back itself, and nobody else who watches the same region.
#[test]
fn a_follow_that_catches_up_holds_back_only_itself() {
    let mut script = Script::new(Limits::default());
    let mut join = |id: u64, range, start| {
        let client = script.subscribe(id, range, start, usize::MAX);
        let (piece, range, _) = script.place();
        let follow = script.put(piece, &range, &[(1, "a", S1)])[0].id;
        script.merge.joined(S1, follow, start - 1);
        (client, follow)
    };
    let (live, one) = join(1, ("a", "b"), 101);
    let (late, two) = join(2, ("b", "c"), 11);
    script.merge.events(S1, &told(&[two], 11, &[(0, "b")]));
    script.merge.events(S1, &told(&[one], 102, &[(0, "a")]));
    let catching_up = vec![FollowFrontier { id: two, revision: 20 }];
    script.merge.store_frontier(S1, &StoreFrontier { catching_up, ..frontier(110, &[]) });
    assert_eq!((live.lines(), late.lines()), (vec!["102 a".to_owned()], vec!["11 b".to_owned()]));
    assert_eq!((script.frontier(1), script.frontier(2)), (110, 20));
    script.merge.store_frontier(S1, &frontier(110, &[]));
    assert_eq!(script.frontier(2), 110);
}

#[test]
fn places_of_which_nobody_tells_are_silent() {
    let mut script = Script::new(Limits::default());
    let silent = |script: &Script| {
        let mut places: Vec<_> = script.merge.silent(&[SubscriptionId(1), SubscriptionId(7)]).into_iter().collect();
        places.sort_unstable();
        places
    };
    let start = |key: &str| KeyRange::user(key.as_bytes(), b"\0").start;
    let _client = script.subscribe(1, ("a", "z"), 101, usize::MAX);
    assert_eq!(silent(&script), [start("a")], "nobody knows where to ask");
    let (piece, range, _) = script.place();
    let follows = script.put(piece, &range, &[(1, "a", S1), (2, "m", S2)]);
    assert_eq!(silent(&script), [start("a"), start("m")], "nobody has answered");
    script.merge.joined(S1, follows[0].id, 100);
    script.merge.joined(S2, follows[1].id, 100);
    assert!(silent(&script).is_empty());
    let refused = Trouble::Refused(S2, braid_proto::pb::Refusal::default());
    script.merge.left(S2, follows[1].id, refused);
    assert_eq!(silent(&script), [start("m")]);
    let (piece, range, _) = script.place();
    let again = script.put(piece, &range, &[(2, "m", S1)]);
    assert_eq!(silent(&script), [start("m")], "the same place as before");
    script.merge.joined(S1, again[0].id, 100);
    assert!(silent(&script).is_empty());
    script.merge.lost(S1);
    assert_eq!(silent(&script), [start("a"), start("m")]);
}

#[test]
fn a_revision_of_two_regions_is_one_delivery_in_order_of_sub() {
    let (mut script, client, one, two) = two_regions(Limits::default());
    script.merge.events(S2, &told(&[two], 103, &[(0, "n"), (2, "o")]));
    script.merge.store_frontier(S2, &frontier(103, &[]));
    script.merge.events(S1, &told(&[one], 103, &[(1, "b"), (3, "c")]));
    assert!(client.lines().is_empty());
    script.merge.store_frontier(S1, &frontier(104, &[]));
    assert_eq!(client.lines(), ["103 n b o c"]);
}

#[test]
fn h16_a_frontier_does_not_cover_a_region_that_left_before_it() {
    let mut script = Script::new(Limits::default());
    let client = script.subscribe(1, ("a", "z"), 101, usize::MAX);
    let (piece, range, _) = script.place();
    let follows = script.put(piece, &range, &[(1, "a", S1), (2, "m", S1)]);
    let (a, b) = (follows[0].id, follows[1].id);
    script.merge.joined(S1, a, 100);
    script.merge.joined(S1, b, 100);
    script.merge.left(S1, a, Trouble::Lost(S1));
    script.merge.store_frontier(S1, &frontier(110, &[]));
    assert_eq!(script.frontier(1), 100);
    // S2 has said 120 before it was joined: that is no word about a.
    script.merge.store_frontier(S2, &frontier(120, &[]));
    let (piece, range, _) = script.place();
    let again = script.put(piece, &range, &[(1, "a", S2)]);
    assert_eq!(again[0].after, 100);
    script.merge.joined(S2, again[0].id, 100);
    assert_eq!(script.frontier(1), 100);
    script.merge.events(S2, &told(&[again[0].id], 105, &[(0, "b")]));
    script.merge.store_frontier(S2, &frontier(121, &[]));
    assert_eq!(client.lines(), ["105 b"]);
    assert_eq!(script.frontier(1), 110);
}

#[test]
fn h17_a_piece_that_nobody_serves_keeps_its_frontier() {
    let (mut script, client, one, two) = two_regions(Limits::default());
    script.merge.store_frontier(S1, &frontier(104, &[]));
    script.merge.store_frontier(S2, &frontier(104, &[]));
    script.merge.lost(S1);
    script.merge.events(S2, &told(&[two], 107, &[(0, "n")]));
    for revision in 105..120 {
        script.merge.store_frontier(S2, &frontier(revision, &[]));
    }
    assert_eq!(script.frontier(1), 104);
    let (piece, range, trouble) = script.place();
    assert_eq!(trouble, Trouble::Lost(S1));
    let again = script.put(piece, &range, &[(1, "a", S2)]);
    assert_eq!(again[0].after, 104);
    script.merge.joined(S2, again[0].id, 104);
    script.merge.events(S2, &told(&[again[0].id], 106, &[(0, "b")]));
    // A word of the old follow means nothing any more.
    script.merge.events(S1, &told(&[one], 105, &[(0, "c")]));
    script.merge.store_frontier(S2, &frontier(120, &[]));
    assert_eq!(client.lines(), ["106 b", "107 n"]);
}

#[test]
fn h18_a_late_lower_revision_is_told_after_a_change_of_leader() {
    let mut script = Script::new(Limits::default());
    let client = script.subscribe(1, ("a", "z"), 99, usize::MAX);
    let (piece, range, _) = script.place();
    let id = script.put(piece, &range, &[(1, "a", S1)])[0].id;
    script.merge.joined(S1, id, 98);
    script.merge.events(S1, &told(&[id], 101, &[(0, "b")]));
    script.merge.events(S1, &told(&[id], 105, &[(0, "b"), (1, "c")]));
    script.merge.store_frontier(S1, &frontier(105, &[(1, 98)]));
    assert!(client.lines().is_empty());
    script.merge.left(S1, id, Trouble::Lost(S1));
    let (piece, range, _) = script.place();
    let again = script.put(piece, &range, &[(1, "a", S2)]);
    assert_eq!(again[0].after, 98, "from the frontier, not from the last event");
    let id = again[0].id;
    script.merge.joined(S2, id, 98);
    for (revision, keys) in [(99, &[(0, "k")][..]), (101, &[(0, "b")]), (105, &[(0, "b"), (1, "c")])] {
        script.merge.events(S2, &told(&[id], revision, keys));
    }
    script.merge.store_frontier(S2, &frontier(105, &[]));
    assert_eq!(client.lines(), ["99 k", "101 b", "105 b c"], "nothing lost, nothing twice");
}

#[test]
fn children_of_a_split_inherit_the_frontier() {
    let (mut script, client, one, two) = two_regions(Limits::default());
    script.merge.events(S1, &told(&[one], 103, &[(0, "b"), (1, "g")]));
    script.merge.store_frontier(S1, &frontier(103, &[]));
    script.merge.left(S1, one, Trouble::Lost(S1));
    let (piece, range, _) = script.place();
    let children = script.put(piece, &range, &[(1, "a", S1), (3, "f", S2)]);
    assert_eq!(children.iter().map(|child| child.after).collect::<Vec<_>>(), [103, 103]);
    script.merge.joined(S1, children[0].id, 103);
    script.merge.joined(S2, children[1].id, 103);
    script.merge.events(S2, &told(&[two, children[1].id], 104, &[(0, "h"), (1, "n")]));
    script.merge.store_frontier(S2, &frontier(104, &[]));
    assert_eq!(client.lines(), ["103 b g"]);
    script.merge.store_frontier(S1, &frontier(104, &[]));
    assert_eq!(client.lines(), ["104 h n"]);
}

#[test]
fn a_region_that_lags_holds_back_only_those_that_watch_it() {
    let (mut script, both, one, two) = two_regions(Limits::default());
    let left = script.subscribe(2, ("a", "m"), 101, usize::MAX);
    let (piece, range, _) = script.place();
    let alone = script.put(piece, &range, &[(1, "a", S1)])[0].id;
    script.merge.joined(S1, alone, 100);
    script.merge.events(S1, &told(&[one, alone], 103, &[(0, "b")]));
    script.merge.store_frontier(S2, &frontier(103, &[(2, 101)]));
    script.merge.store_frontier(S1, &frontier(103, &[]));
    assert_eq!((left.lines(), both.lines()), (vec!["103 b".to_owned()], vec![]));
    script.merge.events(S2, &told(&[two], 102, &[(0, "n")]));
    script.merge.store_frontier(S2, &frontier(103, &[]));
    assert_eq!(both.lines(), ["102 n", "103 b"]);
}

#[test]
fn watches_of_one_range_share_follows_and_each_begins_where_it_wants() {
    let (mut script, first, one, _) = two_regions(Limits::default());
    let later = script.subscribe(2, ("a", "z"), 104, usize::MAX);
    assert!(script.places().is_empty(), "the follows are shared");
    for revision in [102, 104] {
        script.merge.events(S1, &told(&[one], revision, &[(0, "b")]));
    }
    script.merge.store_frontier(S1, &frontier(104, &[]));
    script.merge.store_frontier(S2, &frontier(104, &[]));
    assert_eq!(first.lines(), ["102 b", "104 b"]);
    assert_eq!(later.lines(), ["104 b"]);
    assert_eq!(script.merge.counts().groups, 1);
}

#[test]
fn a_watch_from_the_past_catches_up_alone_and_moves_over() {
    let (mut script, first, one, _) = two_regions(Limits::default());
    script.merge.events(S1, &told(&[one], 105, &[(0, "b")]));
    script.merge.store_frontier(S1, &frontier(105, &[]));
    script.merge.store_frontier(S2, &frontier(105, &[]));
    assert_eq!(first.lines(), ["105 b"]);
    script.nudges();
    let past = script.subscribe(2, ("a", "z"), 50, usize::MAX);
    assert_eq!(script.merge.counts().groups, 2);
    let (piece, range, _) = script.place();
    let follows = script.put(piece, &range, &[(1, "a", S1), (2, "m", S2)]);
    script.merge.joined(S1, follows[0].id, 49);
    script.merge.joined(S2, follows[1].id, 49);
    assert_eq!(script.nudges(), [(S1, 105), (S2, 105)], "stores are asked for what the others have");
    script.merge.events(S2, &told(&[follows[1].id], 60, &[(0, "n")]));
    script.merge.events(S1, &told(&[follows[0].id], 105, &[(0, "b")]));
    script.merge.events(S1, &told(&[one, follows[0].id], 106, &[(0, "c")]));
    script.merge.store_frontier(S1, &frontier(106, &[]));
    script.merge.store_frontier(S2, &frontier(106, &[]));
    assert_eq!(past.lines(), ["60 n", "105 b", "106 c"]);
    assert_eq!(first.lines(), ["106 c"]);
    assert_eq!(script.merge.counts().groups, 1, "it has moved over");
    script.merge.events(S1, &told(&[one], 107, &[(0, "b")]));
    script.merge.store_frontier(S1, &frontier(107, &[]));
    script.merge.store_frontier(S2, &frontier(107, &[]));
    assert_eq!((past.lines(), first.lines()), (vec!["107 b".to_owned()], vec!["107 b".to_owned()]));
}

#[test]
fn a_full_receiver_goes_on_from_the_backlog() {
    let (mut script, quick, one, _) = two_regions(Limits::default());
    let slow = script.subscribe(2, ("a", "z"), 101, 1);
    for revision in 101..=104 {
        script.merge.events(S1, &told(&[one], revision, &[(0, "b")]));
    }
    script.merge.store_frontier(S1, &frontier(104, &[]));
    script.merge.store_frontier(S2, &frontier(104, &[]));
    assert_eq!(quick.lines().len(), 4);
    assert_eq!((slow.lines(), script.frontier(2)), (vec!["101 b".to_owned()], 101));
    slow.give_room(2);
    script.merge.resume(SubscriptionId(2), 104);
    assert_eq!(slow.lines(), ["102 b", "103 b"]);
    slow.give_room(9);
    script.merge.resume(SubscriptionId(2), 104);
    assert_eq!((slow.lines(), script.frontier(2)), (vec!["104 b".to_owned()], 104));
    assert!(script.places().is_empty());
}

#[test]
fn a_receiver_too_far_behind_is_parked_and_catches_up_from_the_stores() {
    let (mut script, quick, one, _) = two_regions(Limits { backlog_events: 2, ..Limits::default() });
    let slow = script.subscribe(2, ("a", "z"), 101, 0);
    for revision in 101..=110 {
        script.merge.events(S1, &told(&[one], revision, &[(0, "b")]));
    }
    script.merge.store_frontier(S1, &frontier(110, &[]));
    script.merge.store_frontier(S2, &frontier(110, &[]));
    assert_eq!(quick.lines().len(), 10);
    assert_eq!((script.frontier(2), script.merge.counts().groups), (100, 1));
    slow.give_room(99);
    script.merge.resume(SubscriptionId(2), 110);
    let (piece, range, _) = script.place();
    assert_eq!(script.put(piece, &range, &[(1, "a", S1)])[0].after, 100);
}

#[test]
fn pieces_ahead_of_one_that_lags_drop_what_waits_and_are_told_again() {
    let (mut script, client, one, two) = two_regions(Limits { group_events: 4, ..Limits::default() });
    for revision in 101..=106 {
        script.merge.events(S1, &told(&[one], revision, &[(0, "b")]));
        script.merge.store_frontier(S1, &frontier(revision, &[]));
    }
    assert_eq!(script.merge.counts().waiting_events, 2, "101 and 102 stay");
    script.collect();
    assert!(script.effects.contains(&Effect::Unfollow { store: S1, id: one }));
    assert!(script.places().is_empty(), "it waits for the other");
    script.merge.events(S2, &told(&[two], 102, &[(1, "n")]));
    script.merge.store_frontier(S2, &frontier(102, &[]));
    assert_eq!(client.lines(), ["101 b", "102 b n"]);
    assert!(script.places().is_empty(), "the other is not ahead yet");
    script.merge.store_frontier(S2, &frontier(106, &[]));
    let (piece, range, _) = script.place();
    let again = script.put(piece, &range, &[(1, "a", S1)])[0].clone();
    assert_eq!(again.after, 102);
    script.merge.joined(S1, again.id, 102);
    for revision in 103..=106 {
        script.merge.events(S1, &told(&[again.id], revision, &[(0, "b")]));
    }
    script.merge.store_frontier(S1, &frontier(106, &[]));
    assert_eq!(client.lines(), ["103 b", "104 b", "105 b", "106 b"]);
}

#[test]
fn compacted_history_ends_only_those_that_need_it() {
    let mut script = Script::new(Limits::default());
    let needs = script.subscribe(1, ("a", "z"), 50, usize::MAX);
    let does_not = script.subscribe(2, ("a", "z"), 70, usize::MAX);
    let full = script.subscribe(3, ("a", "z"), 69, 0);
    let (piece, range, _) = script.place();
    let id = script.put(piece, &range, &[(1, "a", S1)])[0].id;
    script.merge.left_compacted(S1, id, 70);
    assert_eq!(needs.lines(), ["compacted 70"]);
    assert_eq!(script.merge.frontier(SubscriptionId(1)), None);
    assert!(full.lines().is_empty());
    full.give_room(1);
    script.merge.resume(SubscriptionId(3), 70);
    assert_eq!(full.lines(), ["compacted 70"]);
    let (piece, range, _) = script.place();
    let again = script.put(piece, &range, &[(1, "a", S1)])[0].clone();
    assert_eq!(again.after, 69);
    script.merge.joined(S1, again.id, 69);
    script.merge.events(S1, &told(&[again.id], 70, &[(0, "b")]));
    script.merge.store_frontier(S1, &frontier(70, &[]));
    assert_eq!(does_not.lines(), ["70 b"]);
}

#[test]
fn a_wait_nudges_the_stores_and_ends_when_all_have_answered() {
    let (mut script, _client, _, _) = two_regions(Limits::default());
    assert!(!script.merge.want(SubscriptionId(1), 130));
    let mut nudges = script.nudges();
    nudges.sort();
    assert_eq!(nudges, [(S1, 130), (S2, 130)]);
    script.merge.store_frontier(S1, &frontier(130, &[]));
    script.collect();
    assert!(script.effects.is_empty(), "{:?}", script.effects);
    script.merge.store_frontier(S2, &frontier(131, &[]));
    script.collect();
    assert_eq!(script.effects, [Effect::Reached { id: SubscriptionId(1), revision: 130 }]);
    assert!(script.merge.want(SubscriptionId(1), 130));
    assert!(script.merge.want(SubscriptionId(7), 130), "nobody");
}

#[test]
fn the_end_of_the_last_watch_ends_the_follows_and_its_waits() {
    let (mut script, _client, one, two) = two_regions(Limits::default());
    assert!(!script.merge.want(SubscriptionId(1), 130));
    script.nudges();
    script.merge.unsubscribe(SubscriptionId(1));
    script.collect();
    let unfollow = |store, id| Effect::Unfollow { store, id };
    let reached = Effect::Reached { id: SubscriptionId(1), revision: i64::MAX };
    assert_eq!(script.effects, [unfollow(S1, one), unfollow(S2, two), reached]);
    assert_eq!(script.merge.counts().groups, 0);
}

#[test]
fn idle_groups_cost_no_frontier_anything() {
    let mut script = Script::new(Limits::default());
    for id in 0..1_000 {
        let key = format!("k{id:04}");
        script.subscribe(id, (&key, ""), 101, usize::MAX);
        let (piece, range, _) = script.place();
        let follow = script.put(piece, &range, &[(1, "", S1)])[0].id;
        script.merge.joined(S1, follow, 100);
    }
    script.merge.store_frontier(S1, &frontier(200, &[]));
    assert!(script.merge.streams[&S1].hot.is_empty());
    assert_eq!(script.frontier(500), 200, "but it counts for them when somebody asks");
}

#[test]
fn many_regions_are_reckoned_by_store() {
    let mut script = Script::new(Limits::default());
    let client = script.subscribe(1, ("k000", "k999"), 101, usize::MAX);
    let (piece, range, _) = script.place();
    let starts: Vec<String> = (0..100).map(|region| format!("k{:03}", region * 9)).collect();
    let store = |region: usize| if region.is_multiple_of(2) { S1 } else { S2 };
    let regions: Vec<_> =
        starts.iter().enumerate().map(|(region, start)| (region as u64 + 1, &start[..], store(region))).collect();
    let follows = script.put(piece, &range, &regions);
    for (region, follow) in follows.iter().enumerate() {
        script.merge.joined(store(region), follow.id, 100);
    }
    script.merge.store_frontier(S1, &frontier(150, &[]));
    script.merge.store_frontier(S2, &frontier(150, &[]));
    assert_eq!(script.frontier(1), 150);
    script.merge.events(S1, &told(&[follows[0].id], 151, &[(0, "k001")]));
    script.merge.store_frontier(S2, &frontier(160, &[(2, 150)]));
    script.merge.store_frontier(S1, &frontier(160, &[]));
    assert!(client.lines().is_empty(), "r2 lags");
    script.merge.store_frontier(S2, &frontier(160, &[(1, 5)]));
    assert_eq!(client.lines(), ["151 k001"], "r1 is not followed at that store");
    assert_eq!(script.frontier(1), 160);
}
