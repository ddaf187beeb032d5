//! Random schedules against a reference that knows everything: every subscription hears exactly its part of history.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use braid_proto::id::{RegionId, StoreId};
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{Follow, RegionEpoch, RegionEvent, RegionEvents, RegionFrontier, StoreFrontier};
use parking_lot::Mutex;

use super::super::{Effect, Limits, Merge, Tile, Trouble};
use super::{event, key_of};
use crate::watch::batch::Batch;
use crate::watch::{Receiver, SubscriptionId, Wanted};

const SEEDS: u64 = 2_000;
const STEPS: usize = 300;
const STORES: u64 = 3;
const KEYS: &[&str] = &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.roll(len as u64)).expect("small")
    }
}

type Deed = Vec<(u32, &'static str)>;

/// A region: what was numbered for it and is not applied, and what is.
#[derive(Clone)]
struct Region {
    id: RegionId,
    version: u64,
    range: KeyRange,
    leader: StoreId,
    in_flight: BTreeMap<i64, Deed>,
    applied: BTreeMap<i64, Deed>,
}

enum Word {
    Joined(u64, i64),
    Left(u64),
    Compacted(u64, i64),
    Events(RegionEvents),
    Frontier(StoreFrontier),
}

enum Order {
    Follow(Follow),
    Unfollow(u64),
    Nudge,
}

#[derive(Default)]
struct Store {
    orders: VecDeque<Order>,
    words: VecDeque<Word>,
    follows: BTreeMap<u64, Follow>,
}

/// A client: takes while there is room, and checks the order of what it hears.
struct Client {
    start: i64,
    state: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    room: usize,
    refused: bool,
    last: i64,
    promised: i64,
    heard: Vec<(i64, Vec<String>)>,
    compacted: Option<i64>,
}

impl Receiver for Client {
    fn take(&self, _: SubscriptionId, batch: &Batch, from: usize) -> usize {
        for (index, moment) in batch.moments().iter().enumerate().skip(from) {
            let mut state = self.state.lock();
            if !state.has_room() {
                return index;
            }
            let revision = moment.revision;
            assert!(revision >= self.start && revision > state.last, "{revision} after {}", state.last);
            assert!(revision > state.promised, "{revision} although {} was promised", state.promised);
            state.last = revision;
            let keys = moment.events.iter().map(|event| key_of(event).to_owned()).collect();
            state.heard.push((revision, keys));
        }
        batch.len()
    }

    fn end(&self, _: SubscriptionId, begin: i64) -> bool {
        let mut state = self.state.lock();
        let has_room = state.has_room();
        if has_room {
            state.compacted = Some(begin);
        }
        has_room
    }
}

impl Heard {
    fn has_room(&mut self) -> bool {
        assert!(!self.refused, "told before it had room again");
        assert_eq!(self.compacted, None, "told after its end");
        self.refused = self.room == 0;
        self.room = self.room.saturating_sub(1);
        !self.refused
    }
}

struct Watch {
    range: KeyRange,
    client: Arc<Client>,
}

struct World {
    dice: Dice,
    merge: Merge,
    newest: i64,
    compacted: i64,
    history: BTreeMap<i64, Deed>,
    regions: Vec<Region>,
    old_routes: Vec<Region>,
    stores: BTreeMap<StoreId, Store>,
    placing: Vec<(u64, KeyRange)>,
    watches: BTreeMap<SubscriptionId, Watch>,
    waits: BTreeSet<(SubscriptionId, i64)>,
    next: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let small = Limits { group_events: 6, backlog_events: 3, recent: 5, ..Limits::default() };
        let limits = if dice.roll(2) == 0 { small } else { Limits::default() };
        let whole = Region {
            id: RegionId(1),
            version: 1,
            range: KeyRange::default(),
            leader: StoreId(1),
            in_flight: BTreeMap::new(),
            applied: BTreeMap::new(),
        };
        Self {
            dice,
            merge: Merge::new(limits),
            newest: 1,
            compacted: 0,
            history: BTreeMap::new(),
            old_routes: vec![whole.clone()],
            regions: vec![whole],
            stores: (1..=STORES).map(|store| (StoreId(store), Store::default())).collect(),
            placing: Vec::new(),
            watches: BTreeMap::new(),
            waits: BTreeSet::new(),
            next: 10,
        }
    }

    fn step(&mut self) {
        let store = StoreId(1 + self.dice.roll(STORES));
        match self.dice.roll(100) {
            0..20 => self.commit(),
            20..40 => self.apply(),
            40..52 => self.obey(store),
            52..72 => self.hear(store),
            72..78 => self.say_frontier(store),
            78..84 => self.place(),
            84..88 => self.watch(),
            88..89 => self.unwatch(),
            89..93 => self.make_room(),
            93..95 => self.move_leader(),
            95..96 => self.split(),
            96..97 => self.lose(store),
            97..98 => self.want(),
            98..99 => self.old_routes = self.regions.clone(),
            _ if self.dice.roll(8) == 0 => self.compacted = self.compacted.max(self.safe() - 5),
            _ => {}
        }
        self.follow_up();
        self.check_promise();
    }

    /// Nothing at or below this is in flight.
    fn safe(&self) -> i64 {
        let first = self.regions.iter().filter_map(|region| region.in_flight.keys().next()).min();
        first.map_or(self.newest, |first| first - 1)
    }

    fn commit(&mut self) {
        self.newest += 1;
        let count = 1 + self.dice.index(3);
        let mut keys = BTreeSet::new();
        for _ in 0..count {
            let index = self.dice.index(KEYS.len());
            keys.insert(KEYS[index]);
        }
        let mut deed: Deed = keys.into_iter().enumerate().map(|(sub, key)| (sub as u32, key)).collect();
        if self.dice.roll(2) == 0 {
            // Subs need not follow the order of keys.
            let last = deed.len() as u32;
            deed.iter_mut().for_each(|(sub, _)| *sub = last - *sub);
            deed.sort_unstable();
        }
        for region in &mut self.regions {
            let part: Deed =
                deed.iter().filter(|(_, key)| region.range.contains(&user_key(key.as_bytes()))).copied().collect();
            if !part.is_empty() {
                region.in_flight.insert(self.newest, part);
            }
        }
        self.history.insert(self.newest, deed);
    }

    fn apply(&mut self) {
        let index = self.dice.index(self.regions.len());
        let among = self.regions[index].in_flight.len();
        if among == 0 {
            return;
        }
        let at = self.dice.index(among);
        let region = &mut self.regions[index];
        let revision = *region.in_flight.keys().nth(at).expect("counted");
        let deed = region.in_flight.remove(&revision).expect("found");
        region.applied.insert(revision, deed.clone());
        let store = self.stores.get_mut(&region.leader).expect("known");
        let wants = |follow: &&Follow| follow.region_id == region.id.0 && !within(follow, &deed).is_empty();
        let ids: Vec<u64> = store.follows.values().filter(wants).map(|follow| follow.id).collect();
        if !ids.is_empty() {
            store.words.push_back(Word::Events(tell(ids, revision, &deed)));
        }
    }

    /// A store does what it was asked first.
    fn obey(&mut self, id: StoreId) {
        let Some(order) = self.stores.get_mut(&id).and_then(|store| store.orders.pop_front()) else { return };
        match order {
            Order::Nudge => self.say_frontier(id),
            Order::Unfollow(follow) => _ = self.stores.get_mut(&id).map(|store| store.follows.remove(&follow)),
            Order::Follow(follow) => {
                let region = self.regions.iter().find(|region| region.id.0 == follow.region_id);
                let leads = region.filter(|region| {
                    region.leader == id && Some(region.version) == follow.epoch.map(|epoch| epoch.version)
                });
                let store = self.stores.get_mut(&id).expect("known");
                let Some(region) = leads else { return store.words.push_back(Word::Left(follow.id)) };
                if follow.after + 1 < self.compacted {
                    return store.words.push_back(Word::Compacted(follow.id, self.compacted));
                }
                store.words.push_back(Word::Joined(follow.id, follow.after));
                for (revision, deed) in region.applied.range(follow.after + 1..) {
                    let part = within(&follow, deed);
                    if !part.is_empty() {
                        store.words.push_back(Word::Events(tell(vec![follow.id], *revision, &part)));
                    }
                }
                store.follows.insert(follow.id, follow);
            }
        }
    }

    fn say_frontier(&mut self, id: StoreId) {
        let store = self.stores.get_mut(&id).expect("known");
        let followed: BTreeSet<u64> = store.follows.values().map(|follow| follow.region_id).collect();
        let lags = |region: &&Region| followed.contains(&region.id.0) && !region.in_flight.is_empty();
        let lower = self.regions.iter().filter(lags).map(|region| {
            let first = *region.in_flight.keys().next().expect("not empty");
            RegionFrontier { region_id: region.id.0, revision: first - 1 }
        });
        let frontier =
            StoreFrontier { revision: self.newest, compacted: 0, lower: lower.collect(), catching_up: Vec::new() };
        store.words.push_back(Word::Frontier(frontier));
    }

    fn hear(&mut self, id: StoreId) {
        let Some(word) = self.stores.get_mut(&id).and_then(|store| store.words.pop_front()) else { return };
        match word {
            Word::Joined(follow, frontier) => self.merge.joined(id, follow, frontier),
            Word::Left(follow) => self.merge.left(id, follow, Trouble::Lost(id)),
            Word::Compacted(follow, compacted) => self.merge.left_compacted(id, follow, compacted),
            Word::Events(events) => self.merge.events(id, &events),
            Word::Frontier(frontier) => self.merge.store_frontier(id, &frontier),
        }
    }

    fn follow_up(&mut self) {
        for effect in self.merge.effects() {
            match effect {
                Effect::Place { piece, range, .. } => self.placing.push((piece, range)),
                Effect::Follow { store, order } => self.order(store, Order::Follow(order)),
                Effect::Unfollow { store, id } => self.order(store, Order::Unfollow(id)),
                Effect::Nudge { store, revision } => {
                    assert!(revision <= self.newest, "{revision} was never given");
                    self.order(store, Order::Nudge);
                }
                Effect::Reached { id, revision } => {
                    self.waits.retain(|(waiting, wanted)| *waiting != id || *wanted > revision);
                }
            }
        }
    }

    fn order(&mut self, store: StoreId, order: Order) {
        self.stores.get_mut(&store).expect("known").orders.push_back(order);
    }

    /// Places a piece, sometimes where it was long ago.
    fn place(&mut self) {
        if self.placing.is_empty() {
            return;
        }
        let at = self.dice.index(self.placing.len());
        let (piece, range) = self.placing.swap_remove(at);
        if self.dice.roll(10) == 0 {
            return self.merge.not_placed(piece);
        }
        let routes = if self.dice.roll(4) == 0 { &self.old_routes } else { &self.regions };
        let tiles = routes.iter().filter(|region| region.range.overlaps(&range)).map(|region| Tile {
            range: region.range.intersect(&range),
            region: region.id,
            epoch: RegionEpoch { conf_ver: 1, version: region.version },
            store: region.leader,
        });
        self.merge.placed(piece, tiles.collect());
    }

    fn watch(&mut self) {
        if self.watches.len() > 8 {
            return;
        }
        let range = match self.dice.roll(4) {
            0 => KeyRange::user(b"a", b"\0"),
            1 => KeyRange::user(b"c", b"h"),
            2 => KeyRange::user(b"b", b""),
            _ => KeyRange::user(b"e", b"\0"),
        };
        let back = if self.dice.roll(2) == 0 { 0 } else { self.dice.roll(30).cast_signed() };
        let start = (self.newest + 1 - back).max(1);
        let room = self.dice.index(20);
        let client = Arc::new(Client { start, state: Mutex::new(Heard { room, ..Heard::default() }) });
        let id = SubscriptionId(self.next);
        self.next += 1;
        let receiver: Arc<dyn Receiver> = client.clone();
        let wanted = Wanted { range: range.clone(), start, prev_kv: false };
        self.watches.insert(id, Watch { range, client });
        self.merge.subscribe(id, wanted, receiver, self.newest);
    }

    fn any_watch(&mut self) -> Option<SubscriptionId> {
        let count = self.watches.len();
        let at = (count > 0).then(|| self.dice.index(count))?;
        self.watches.keys().nth(at).copied()
    }

    fn unwatch(&mut self) {
        if let Some(id) = self.any_watch() {
            self.check(id, false);
            self.merge.unsubscribe(id);
            self.watches.remove(&id);
        }
    }

    fn make_room(&mut self) {
        let Some(id) = self.any_watch() else { return };
        let room = 1 + self.dice.index(6);
        self.give_room(id, room);
    }

    fn give_room(&mut self, id: SubscriptionId, room: usize) {
        let mut state = self.watches[&id].client.state.lock();
        state.room = room;
        let refused = std::mem::take(&mut state.refused);
        drop(state);
        if refused {
            self.merge.resume(id, self.newest);
        }
    }

    fn want(&mut self) {
        let Some(id) = self.any_watch() else { return };
        if !self.merge.want(id, self.newest) {
            self.waits.insert((id, self.newest));
        }
    }

    fn leave(&mut self, region: RegionId) {
        for store in self.stores.values_mut() {
            let gone: Vec<u64> =
                store.follows.values().filter(|follow| follow.region_id == region.0).map(|follow| follow.id).collect();
            for id in gone {
                store.follows.remove(&id);
                store.words.push_back(Word::Left(id));
            }
        }
    }

    fn move_leader(&mut self) {
        let index = self.dice.index(self.regions.len());
        let leader = StoreId(1 + self.dice.roll(STORES));
        let region = self.regions[index].id;
        self.regions[index].leader = leader;
        self.leave(region);
    }

    fn split(&mut self) {
        let at = user_key(KEYS[1 + self.dice.index(KEYS.len() - 1)].as_bytes());
        let Some(index) = self.regions.iter().position(|region| region.range.contains(&at) && region.range.start != at)
        else {
            return;
        };
        let leader = StoreId(1 + self.dice.roll(STORES));
        let id = RegionId(self.next);
        self.next += 1;
        let parent = &mut self.regions[index];
        parent.version += 1;
        let mut child =
            Region { id, leader, range: KeyRange { start: at.clone(), ..parent.range.clone() }, ..parent.clone() };
        parent.range.end = at;
        for half in [&mut *parent, &mut child] {
            for deeds in [&mut half.in_flight, &mut half.applied] {
                deeds.retain(|_, deed| {
                    deed.retain(|(_, key)| half.range.contains(&user_key(key.as_bytes())));
                    !deed.is_empty()
                });
            }
        }
        let parent = parent.id;
        self.regions.insert(index + 1, child);
        self.leave(parent);
    }

    fn lose(&mut self, id: StoreId) {
        // What was under way is lost with the connection.
        self.stores.insert(id, Store::default());
        self.merge.lost(id);
    }

    /// What a frontier promises has been heard.
    fn check_promise(&mut self) {
        let Some(id) = self.any_watch() else { return };
        let Some(frontier) = self.merge.frontier(id) else { return };
        let watch = &self.watches[&id];
        let mut state = watch.client.state.lock();
        assert!(frontier >= state.promised, "{frontier} after {}", state.promised);
        state.promised = frontier;
        let heard = state.heard.iter().filter(|(revision, _)| *revision <= frontier).count();
        drop(state);
        assert_eq!(heard, self.expected(watch, frontier).len(), "promised {frontier}");
    }

    fn expected(&self, watch: &Watch, through: i64) -> Vec<(i64, Vec<String>)> {
        let from = watch.client.start;
        let deeds = self.history.range(from..).take_while(|(revision, _)| **revision <= through);
        let parts = deeds.map(|(revision, deed)| {
            let inside = deed.iter().filter(|(_, key)| watch.range.contains(&user_key(key.as_bytes())));
            (*revision, inside.map(|(_, key)| (*key).to_owned()).collect::<Vec<_>>())
        });
        parts.filter(|(_, keys)| !keys.is_empty()).collect()
    }

    /// A watch has heard a prefix of its history, or all of it.
    fn check(&self, id: SubscriptionId, whole: bool) {
        let watch = &self.watches[&id];
        let state = watch.client.state.lock();
        let expected = self.expected(watch, i64::MAX);
        assert_eq!(state.heard[..], expected[..state.heard.len()], "{id:?}");
        if let Some(compacted) = state.compacted {
            assert!(state.last < compacted, "{id:?} had no need of what is gone");
        } else if whole {
            assert_eq!(state.heard, expected, "{id:?} has not heard everything");
        }
    }

    /// Everything works and everybody listens: all must come out.
    fn heal(&mut self) {
        for _ in 0..400 {
            while self.regions.iter().any(|region| !region.in_flight.is_empty()) {
                self.apply();
            }
            self.old_routes = self.regions.clone();
            while !self.placing.is_empty() {
                self.place();
            }
            self.follow_up();
            for store in (1..=STORES).map(StoreId) {
                while !self.stores[&store].orders.is_empty() {
                    self.obey(store);
                }
                self.say_frontier(store);
                while !self.stores[&store].words.is_empty() {
                    self.hear(store);
                    self.follow_up();
                }
            }
            let ids: Vec<SubscriptionId> = self.watches.keys().copied().collect();
            ids.into_iter().for_each(|id| self.give_room(id, usize::MAX));
            self.follow_up();
            if self.placing.is_empty() && self.waits.is_empty() && self.is_quiet() {
                return;
            }
        }
    }

    fn is_quiet(&self) -> bool {
        let done = |watch: &Watch| {
            let state = watch.client.state.lock();
            state.compacted.is_some() || state.heard.len() == self.expected(watch, i64::MAX).len()
        };
        self.merge.counts().waiting_events == 0 && self.watches.values().all(done)
    }
}

fn within(follow: &Follow, deed: &Deed) -> Deed {
    let range = KeyRange { start: follow.start.clone(), end: follow.end.clone() };
    deed.iter().filter(|(_, key)| range.contains(&user_key(key.as_bytes()))).copied().collect()
}

fn tell(ids: Vec<u64>, revision: i64, deed: &Deed) -> RegionEvents {
    let events = deed.iter().map(|(sub, key)| RegionEvent { sub: *sub, event: Some(event(key, revision)) });
    RegionEvents { ids, revision, events: events.collect() }
}

#[test]
fn every_subscription_hears_its_history_whatever_happens() {
    let (mut heard, mut refollows, mut ended) = (0, 0, 0);
    for seed in 1..=SEEDS {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.heal();
            let mut heard = (0, 0);
            for (id, watch) in &world.watches {
                world.check(*id, true);
                let state = watch.client.state.lock();
                heard.0 += state.heard.len();
                heard.1 += usize::from(state.compacted.is_some());
            }
            assert!(world.waits.is_empty(), "{:?} wait for ever", world.waits);
            let counts = world.merge.counts();
            assert_eq!(counts.waiting_events, 0);
            let ids: Vec<SubscriptionId> = world.watches.keys().copied().collect();
            ids.into_iter().for_each(|id| world.merge.unsubscribe(id));
            assert_eq!((world.merge.counts().groups, world.merge.counts().watches), (0, 0));
            assert!(world.merge.pieces.is_empty(), "pieces of no group");
            (heard, counts.refollows)
        });
        match outcome {
            Ok((more, again)) => {
                heard += more.0;
                ended += more.1;
                refollows += again;
            }
            Err(why) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(why);
            }
        }
    }
    assert!(heard > 100_000 && refollows > 10_000 && ended > 100, "{heard} {refollows} {ended}: too tame");
}
