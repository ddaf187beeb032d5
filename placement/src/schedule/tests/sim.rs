//! A cluster as the driver sees it: stores that live and die, regions that carry out orders late, twice or never. It
//! keeps raft's promises: nothing is decided without a quorum of live voters, only live voters lead, a learner votes
//! only when it has caught up and is promoted, and orders for another epoch are refused.
//!
//! Checked at every change: no two peers on one store, and a region that had a quorum of live voters keeps it.

use std::collections::{BTreeMap, BTreeSet};

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::pb::{Peer, Region, RegionEpoch};
use bytes::Bytes;

use crate::schedule::{Config, Driver, Load, Order, RegionNews, SplitAt, Step, StoreState};

pub const TICK_MS: u64 = 1_000;
/// First id of what the driver names: above all that a test starts with.
const DRIVER_IDS: u64 = 1_000_000;

/// xorshift: repeatable from its seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    pub fn one_in(&mut self, sides: usize) -> bool {
        sides > 0 && self.roll(sides) == 0
    }
}

enum Event {
    Order(Box<Order>),
    CaughtUp(RegionId, PeerId),
    LeaveJoint(RegionId),
}

/// How often something goes wrong, once in so many; 0: never.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub order_lost: usize,
    pub order_refused: usize,
    pub copy_stuck: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub copies: usize,
    pub transfers: usize,
    pub splits: usize,
    pub merges: usize,
}

pub struct Sim {
    pub driver: Driver,
    pub dice: Dice,
    pub faults: Faults,
    pub counts: Counts,
    pub regions: BTreeMap<RegionId, RegionNews>,
    pub now_ms: u64,
    live: BTreeMap<StoreId, bool>,
    events: BTreeMap<(u64, u64), Event>,
    events_made: u64,
    ids: u64,
    /// Milliseconds that the bytes of a copy take per MiB.
    pub copy_ms_per_mib: u64,
}

/// Times short enough for simulated minutes, limits high enough for thousands of regions.
pub fn config() -> Config {
    Config {
        store_down_ms_max: 30_000,
        operators_max: 400,
        snapshots_receiving_max: 64,
        snapshots_sending_max: 200,
        move_bytes_per_second: 0,
        step_ms_max: 12_000,
        snapshot_ms_max: 20_000,
        order_retry_ms: 3_000,
        failed_rest_ms: 4_000,
        load_settle_ms: 3_000,
        merge_rest_ms: 10_000,
        plans_per_round: 100,
        ..Config::default()
    }
}

pub fn labels(pairs: &[(&str, String)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

pub fn key(number: usize) -> Bytes {
    if number == 0 { Bytes::new() } else { Bytes::from(format!("{number:08}")) }
}

impl Sim {
    pub fn new(config: Config, seed: u64) -> Self {
        let location = ["zone", "rack", "host"].map(str::to_owned).to_vec();
        Self {
            driver: Driver::new(config, location).unwrap(),
            dice: Dice::new(seed),
            faults: Faults::default(),
            counts: Counts::default(),
            regions: BTreeMap::new(),
            now_ms: 1_000_000,
            live: BTreeMap::new(),
            events: BTreeMap::new(),
            events_made: 0,
            ids: DRIVER_IDS,
            copy_ms_per_mib: 1,
        }
    }

    pub fn add_store(&mut self, id: u64, labels: BTreeMap<String, String>, weight: f64) {
        self.live.insert(StoreId(id), true);
        self.driver.view_mut().put_store(StoreId(id), labels, weight);
        self.driver.view_mut().set_space(StoreId(id), 1 << 40, 0, 1 << 40);
    }

    pub fn add_stores(&mut self, ids: std::ops::RangeInclusive<u64>) {
        ids.for_each(|id| self.add_store(id, BTreeMap::new(), 1.0));
    }

    /// Regions from `key(0)` on, each on the stores that `place` says, led by the first of them.
    pub fn add_regions(&mut self, count: usize, mut place: impl FnMut(&mut Self, usize) -> (Vec<u64>, u64, Load)) {
        for number in 0..count {
            let (stores, bytes, load) = place(self, number);
            let id = number as u64 + 1;
            let peer = |(at, store): (usize, &u64)| Peer::voter(id * 10 + at as u64 + 100_000, *store);
            let peers: Vec<Peer> = stores.iter().enumerate().map(peer).collect();
            let end = if number + 1 == count { Bytes::new() } else { key(number + 1) };
            let epoch = Some(RegionEpoch { conf_ver: 1, version: 1 });
            let news = RegionNews {
                leader: PeerId(peers[0].id),
                region: Region { id, start: key(number), end, epoch, peers },
                bytes,
                keys: bytes / 1_024,
                load,
                ..RegionNews::default()
            };
            self.regions.insert(RegionId(id), news.clone());
            self.report(news);
        }
    }

    pub fn kill(&mut self, store: u64) {
        self.live.insert(StoreId(store), false);
        self.driver.view_mut().set_state(StoreId(store), StoreState::Down { since_ms: self.now_ms });
        self.elect_all();
    }

    pub fn revive(&mut self, store: u64) {
        self.live.insert(StoreId(store), true);
        self.driver.view_mut().set_state(StoreId(store), StoreState::Up);
        self.elect_all();
    }

    pub fn is_live(&self, store: u64) -> bool {
        self.live.get(&StoreId(store)).copied().unwrap_or(false)
    }

    /// Runs until nothing is under way and nothing is begun for a while.
    pub fn run_to_rest(&mut self, ticks_max: usize) {
        let mut quiet = 0;
        for _ in 0..ticks_max {
            let before = (self.counts, self.events_made);
            self.tick();
            let idle = self.driver.operators().active().len() == 0 && before == (self.counts, self.events_made);
            quiet = if idle { quiet + 1 } else { 0 };
            if quiet >= 20 {
                return;
            }
        }
        let said: Vec<_> = self.driver.said().map(|(kind, said)| format!("{kind}: {}", said.text)).collect();
        panic!(
            "no rest after {ticks_max} ticks: {:?}\n{}\n{:?}",
            self.counts,
            said.join("\n"),
            self.driver.operators().active().next()
        );
    }

    pub fn tick(&mut self) {
        self.now_ms += TICK_MS;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now_ms) {
            match entry.remove() {
                Event::Order(order) => self.carry_out(*order),
                Event::CaughtUp(id, peer) => self.change(id, |news| news.catching_up.retain(|other| *other != peer)),
                Event::LeaveJoint(id) => self.change(id, |news| news.joint = false),
            }
        }
        let wanted = self.driver.ids_wanted(0);
        self.driver.feed_ids(self.ids, wanted);
        self.ids += wanted;
        let orders = self.driver.tick(self.now_ms);
        orders.into_iter().for_each(|order| self.send(order));
    }

    /// Changes what a region is, and reports it.
    pub fn change(&mut self, id: RegionId, change: impl FnOnce(&mut RegionNews)) {
        let Some(mut news) = self.regions.get(&id).cloned() else { return };
        let had_quorum = self.has_quorum(&news.region);
        change(&mut news);
        let known: BTreeSet<u64> = news.region.peers.iter().map(|peer| peer.id).collect();
        news.catching_up.retain(|peer| known.contains(&peer.0));
        let stores: BTreeSet<u64> = news.region.peers.iter().map(|peer| peer.store_id).collect();
        assert_eq!(stores.len(), news.region.peers.len(), "two peers on one store: {:?}", news.region);
        assert!(!had_quorum || self.has_quorum(&news.region), "it had a quorum: {:?}", news.region);
        self.elect(&mut news);
        self.regions.insert(id, news.clone());
        self.report(news);
    }

    fn report(&mut self, news: RegionNews) {
        if let Some(order) = self.driver.report(news, self.now_ms) {
            self.send(order);
        }
    }

    fn elect_all(&mut self) {
        let ids: Vec<RegionId> = self.regions.keys().copied().collect();
        for id in ids {
            let mut news = self.regions[&id].clone();
            self.elect(&mut news);
            if news != self.regions[&id] {
                self.regions.insert(id, news.clone());
                self.report(news);
            }
        }
    }

    /// Who leads, and who does not answer.
    fn elect(&self, news: &mut RegionNews) {
        let dead = |peer: &&Peer| !self.is_live(peer.store_id);
        news.down = news.region.peers.iter().filter(dead).map(|peer| PeerId(peer.id)).collect();
        let leads = |peer: &Peer| !peer.learner && self.is_live(peer.store_id);
        if !self.has_quorum(&news.region) {
            news.leader = PeerId::INVALID;
        } else if !news.region.peer(news.leader).is_some_and(leads) {
            let next = news.region.peers.iter().find(|peer| leads(peer)).expect("a quorum is live");
            news.leader = PeerId(next.id);
        }
    }

    fn has_quorum(&self, region: &Region) -> bool {
        let voters = region.peers.iter().filter(|peer| !peer.learner);
        let live = voters.clone().filter(|peer| self.is_live(peer.store_id)).count();
        live > voters.count() / 2
    }

    pub fn at(&mut self, after_ms: u64, event_of: Order) {
        self.push(after_ms, Event::Order(Box::new(event_of)));
    }

    fn push(&mut self, after_ms: u64, event: Event) {
        self.events_made += 1;
        self.events.insert((self.now_ms + after_ms, self.events_made), event);
    }

    fn send(&mut self, order: Order) {
        if self.dice.one_in(self.faults.order_lost) {
            return;
        }
        if self.dice.one_in(self.faults.order_refused) {
            self.driver.refused(order.operator, "the store will not", self.now_ms);
            return;
        }
        let after = 10 + self.dice.roll(400) as u64;
        if self.faults.order_lost > 0 && self.dice.one_in(20) {
            // It arrives a second time, late.
            let late = 5_000 + self.dice.roll(10_000) as u64;
            self.push(late, Event::Order(Box::new(order.clone())));
        }
        self.at(after, order);
    }

    fn carry_out(&mut self, order: Order) {
        let id = order.region.region_id();
        let Some(news) = self.regions.get(&id).cloned() else { return };
        let leads = news.region.peer(news.leader).map(|peer| StoreId(peer.store_id)) == Some(order.leader);
        if news.region.epoch != order.region.epoch || !leads || news.joint || !self.has_quorum(&news.region) {
            return;
        }
        match order.step {
            Step::AddLearner { store, peer } => {
                self.counts.copies += 1;
                self.change(id, |news| {
                    news.region.peers.push(Peer::learner(peer.0, store.0));
                    news.catching_up.push(peer);
                    conf_changed(news, 1);
                });
                if !self.dice.one_in(self.faults.copy_stuck) {
                    let mib = news.bytes >> 20;
                    let after = 200 + self.dice.roll(1_500) as u64 + mib * self.copy_ms_per_mib;
                    self.push(after, Event::CaughtUp(id, peer));
                }
            }
            Step::ChangePeers { promote, demote } => {
                let leader = news.region.peer(news.leader).map(|peer| StoreId(peer.store_id));
                assert!(!demote.iter().any(|store| leader == Some(*store)), "the leader was to lose its vote");
                let joint = self.dice.one_in(2);
                self.change(id, |news| {
                    for peer in &mut news.region.peers {
                        let store = StoreId(peer.store_id);
                        assert!(!promote.contains(&store) || !news.catching_up.contains(&PeerId(peer.id)));
                        peer.learner = (peer.learner && !promote.contains(&store)) || demote.contains(&store);
                    }
                    news.joint = joint;
                    conf_changed(news, 2);
                });
                if joint {
                    self.push(300, Event::LeaveJoint(id));
                }
            }
            Step::RemovePeer { store } => self.change(id, |news| {
                let peer = news.region.peer_on(store).expect("its epoch has the peer");
                assert!(peer.learner, "a voter was to be removed: {:?}", news.region);
                news.region.peers.retain(|peer| peer.store_id != store.0);
                conf_changed(news, 1);
            }),
            Step::TransferLeader { store } => {
                self.counts.transfers += 1;
                let peer =
                    news.region.peer_on(store).filter(|peer| !peer.learner && self.is_live(store.0)).map(|p| p.id);
                if let Some(peer) = peer {
                    self.change(id, |news| news.leader = PeerId(peer));
                }
            }
            Step::Split { at, child, child_peers } => self.split(id, &at, child, &child_peers),
            Step::Merge { target } => self.merge(id, target, order.target.expect("a merge names its target")),
        }
    }

    fn split(&mut self, id: RegionId, at: &SplitAt, child: RegionId, child_peers: &[PeerId]) {
        let news = self.regions[&id].clone();
        let key = match at {
            SplitAt::Key(key) => key.clone(),
            SplitAt::Size | SplitAt::Load => between(&news.region.start, &news.region.end),
        };
        self.counts.splits += 1;
        let mut right = news.clone();
        right.region.id = child.0;
        right.region.start = key.clone();
        assert_eq!(child_peers.len(), right.region.peers.len());
        for (peer, id) in right.region.peers.iter_mut().zip(child_peers) {
            peer.id = id.0;
        }
        let leader = news.region.peer(news.leader).expect("a leader carries it out").store_id;
        right.leader = PeerId(right.region.peer_on(StoreId(leader)).expect("the same stores").id);
        (right.catching_up, right.down) = (Vec::new(), Vec::new());
        halve(&mut right, false);
        version_changed(&mut right, 1);
        self.elect(&mut right);
        self.change(id, |left| {
            left.region.end = key;
            halve(left, true);
            version_changed(left, 1);
        });
        self.regions.insert(child, right.clone());
        self.report(right);
    }

    fn merge(&mut self, source: RegionId, target: RegionId, as_ordered: Region) {
        let (from, into) = (self.regions[&source].clone(), self.regions[&target].clone());
        if into.region.epoch != as_ordered.epoch {
            return;
        }
        let stores =
            |news: &RegionNews| news.region.peers.iter().map(|p| (p.store_id, p.learner)).collect::<BTreeSet<_>>();
        assert_eq!(stores(&from), stores(&into), "a merge of regions on different stores");
        self.counts.merges += 1;
        self.regions.remove(&source);
        let version = from.region.region_epoch().version;
        self.change(target, |news| {
            if news.region.end == from.region.start {
                news.region.end = from.region.end.clone();
            } else {
                assert_eq!(news.region.start, from.region.end, "a merge of regions that are no neighbours");
                news.region.start = from.region.start.clone();
            }
            news.bytes += from.bytes;
            news.keys += from.keys;
            news.load.ops += from.load.ops;
            news.load.written += from.load.written;
            let own = news.region.region_epoch().version;
            version_changed(news, version.saturating_sub(own) + 1);
        });
    }

    /// The regions cover every key once, and the driver knows them as they are.
    pub fn check_whole(&self) {
        let mut by_start: Vec<_> = self.regions.values().map(|news| &news.region).collect();
        by_start.sort_by(|a, b| a.start.cmp(&b.start));
        assert!(by_start[0].start.is_empty() && by_start[by_start.len() - 1].end.is_empty());
        assert!(by_start.windows(2).all(|pair| pair[0].end == pair[1].start), "a hole or an overlap");
        assert_eq!(self.driver.view().regions().len(), self.regions.len());
        for (id, news) in &self.regions {
            assert_eq!(self.driver.view().region(*id).map(|region| &region.news), Some(news));
        }
    }

    /// Every region has just its replicas, on live stores.
    pub fn check_replicas(&self, replicas: usize) {
        for news in self.regions.values() {
            let peers = &news.region.peers;
            assert!(
                peers.len() == replicas && peers.iter().all(|p| !p.learner && self.is_live(p.store_id)),
                "{news:?}"
            );
        }
    }

    pub fn said(&self, kind: crate::schedule::Kind) -> String {
        self.driver.said().find(|(other, _)| *other == kind).map(|(_, said)| said.text).unwrap()
    }
}

fn conf_changed(news: &mut RegionNews, by: u64) {
    let epoch = news.region.epoch.as_mut().unwrap();
    epoch.conf_ver += by;
}

fn version_changed(news: &mut RegionNews, by: u64) {
    let epoch = news.region.epoch.as_mut().unwrap();
    epoch.version += by;
}

/// Half of something; the left half gets what is odd.
fn halve(news: &mut RegionNews, left: bool) {
    let half = |amount: &mut u64| *amount = if left { *amount - *amount / 2 } else { *amount / 2 };
    half(&mut news.bytes);
    half(&mut news.keys);
    half(&mut news.load.ops);
    half(&mut news.load.written);
}

/// A key after `start` and before `end`.
fn between(start: &Bytes, end: &Bytes) -> Bytes {
    // Keys of tests are digits; one more digit in the middle leaves room on both sides.
    let mut key = start.to_vec();
    loop {
        key.push(b'0');
        for digit in (b'1'..=b'9').rev().skip(4).chain(b'6'..=b'9') {
            *key.last_mut().unwrap() = digit;
            if key[..] > start[..] && (end.is_empty() || key[..] < end[..]) {
                return Bytes::from(key);
            }
        }
        *key.last_mut().unwrap() = b'0';
        assert!(key.len() < 4_000, "no key between {start:?} and {end:?}");
    }
}
