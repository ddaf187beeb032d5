//! Where the regions are, as their leaders report it. Memory of the placement leader; a new one learns it anew.
//!
//! 1. It begins with the regions that the cluster began with, at their first epochs and without leaders, so that every
//!    key has some region to ask. Whoever asks a region that has changed since is told so by its store.
//! 2. A report is taken unless something newer is known of the region, or of another one over a part of its range.
//! 3. What it covers is taken away from older regions; what is left of those stays, so that a split of which only one
//!    half has been reported leaves no hole.
//!
//! Invariant: ranges never overlap.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Bound;

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::key::KeyRange;
use braid_proto::pb::{LonelyPeer, Region, RegionReport, RegionState, Route};
use bytes::Bytes;

#[cfg(test)]
mod tests;

/// Regions that have ended and are remembered. Of older ones nothing is said.
const ENDED_MAX: usize = 100_000;

/// See the module's page.
#[derive(Debug, Default)]
pub struct RegionMap {
    by_start: BTreeMap<Bytes, Known>,
    starts: BTreeMap<RegionId, Bytes>,
    /// Regions whose leader is not known.
    leaderless: BTreeSet<RegionId>,
    /// Regions that this map has seen end: newer ones cover them.
    ended: HashSet<RegionId>,
    ended_order: VecDeque<RegionId>,
}

/// A region as it is known.
#[derive(Clone, Debug)]
pub struct Known {
    /// Range, peers, epoch. The range may be smaller than the region's at that epoch: the rest belongs to newer regions.
    pub region: Region,
    /// The leader's peer; 0: unknown.
    pub leader_peer: u64,
    /// Newest term reported; 0: none.
    pub term: u64,
    /// A store has said this in this leader's time.
    heard: bool,
    /// What its leader last said about it.
    report: RegionReport,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is what the map says now.
    New,
    /// The map knows something newer about the region or a part of its range.
    Stale,
}

impl Known {
    /// The store of the leader; invalid if unknown.
    pub fn leader_store(&self) -> StoreId {
        let leader = self.region.peer(PeerId(self.leader_peer));
        leader.map_or(StoreId::INVALID, |peer| StoreId(peer.store_id))
    }

    /// What makes one report of a region newer than another.
    fn age(&self) -> (u64, u64, u64) {
        let epoch = self.region.region_epoch();
        (epoch.version, epoch.conf_ver, self.term)
    }

    fn version(&self) -> u64 {
        self.region.region_epoch().version
    }

    fn route(&self) -> Route {
        Route { region: Some(self.region.clone()), leader_store: self.leader_store().0 }
    }

    /// All that is known.
    pub fn state(&self) -> RegionState {
        let report = RegionReport {
            region: Some(self.region.clone()),
            leader_peer: self.leader_peer,
            term: self.term,
            ..self.report.clone()
        };
        RegionState { report: Some(report), leader_store: self.leader_store().0, operator: None }
    }
}

impl RegionMap {
    /// The regions that a cluster began with, without leaders.
    pub fn begin_with(regions: impl IntoIterator<Item = Region>) -> Self {
        let mut map = Self::default();
        for region in regions {
            let report = RegionReport::default();
            map.place(Known { region, leader_peer: 0, term: 0, heard: false, report });
        }
        map
    }

    /// Takes a leader's report, unless something newer is known: a higher epoch of the same region, a higher term in
    /// the same epoch, or a region with a higher version over a part of its range.
    pub fn take(&mut self, mut report: RegionReport) -> Taken {
        let Some(region) = report.region.take() else { return Taken::Stale };
        let (leader_peer, term) = (report.leader_peer, report.term);
        self.place(Known { region, leader_peer, term, heard: true, report })
    }

    /// Takes what a store said of a region without leading it: its range, peers and epoch. The leader stays who it was.
    /// Stale also if just that is known already.
    pub fn learn(&mut self, region: Region) -> Taken {
        let known = self.get(region.region_id());
        if known.is_some_and(|known| known.region == region) {
            return Taken::Stale;
        }
        let (leader_peer, term) = known.map_or((0, 0), |known| (known.leader_peer, known.term));
        let report = known.map(|known| known.report.clone()).unwrap_or_default();
        self.place(Known { region, leader_peer, term, heard: true, report })
    }

    /// A store that refused names another peer as the leader; only a hint, the next report is better.
    pub fn learn_leader(&mut self, id: RegionId, leader_peer: PeerId) {
        if let Some(known) = self.starts.get(&id).and_then(|start| self.by_start.get_mut(start)) {
            known.leader_peer = leader_peer.0;
            match leader_peer.is_valid() {
                true => self.leaderless.remove(&id),
                false => self.leaderless.insert(id),
            };
        }
    }

    /// `store` has said everything that it leads: it leads nothing else. Returns the regions that lost it as their
    /// leader.
    pub fn leads_only(&mut self, store: StoreId, led: &HashSet<RegionId>) -> Vec<RegionId> {
        let mut lost = Vec::new();
        for known in self.by_start.values_mut() {
            let id = known.region.region_id();
            if known.leader_store() == store && !led.contains(&id) {
                known.leader_peer = 0;
                lost.push(id);
            }
        }
        self.leaderless.extend(&lost);
        lost
    }

    /// Whether a peer belongs to no region any more: a store has told this leader of a later change of peers of its
    /// region, which lacks the peer, or the region has ended. Peers' ids are never used twice, so whoever was removed
    /// stays removed.
    pub fn is_gone(&self, peer: &LonelyPeer) -> bool {
        let id = RegionId(peer.region_id);
        if self.ended.contains(&id) {
            return true;
        }
        let known_to_peer = peer.epoch.unwrap_or_default();
        self.get(id).is_some_and(|known| {
            let newer = known.region.region_epoch().conf_ver > known_to_peer.conf_ver;
            known.heard && newer && known.region.peer(PeerId(peer.peer_id)).is_none()
        })
    }

    /// The region `id`.
    pub fn get(&self, id: RegionId) -> Option<&Known> {
        self.starts.get(&id).and_then(|start| self.by_start.get(start))
    }

    /// The region that holds `key`.
    pub fn at(&self, key: &[u8]) -> Option<&Known> {
        let (_, known) = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        known.region.range().contains(key).then_some(known)
    }

    /// At most `limit` regions, from the one that holds `key` on, as far as they follow each other without a hole.
    pub fn routes(&self, key: &[u8], limit: usize) -> Vec<Route> {
        let Some(first) = self.at(key) else { return Vec::new() };
        let mut next = first.region.start.clone();
        let adjoining = self.by_start.range(first.region.start.clone()..).take(limit).take_while(|(start, known)| {
            let adjoins = **start == next;
            next = known.region.end.clone();
            adjoins
        });
        adjoining.map(|(_, known)| known.route()).collect()
    }

    /// The regions that share keys with `[start, end)`, in key order.
    pub fn list(&self, start: &Bytes, end: &Bytes) -> Vec<RegionState> {
        let range = KeyRange { start: start.clone(), end: end.clone() };
        self.overlapping(&range).map(Known::state).collect()
    }

    /// Those that have no leader that is known.
    pub fn leaderless(&self) -> &BTreeSet<RegionId> {
        &self.leaderless
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    fn place(&mut self, news: Known) -> Taken {
        let (id, range) = (news.region.region_id(), news.region.range());
        if range.is_empty() || self.get(id).is_some_and(|known| known.age() > news.age()) {
            return Taken::Stale;
        }
        let others: Vec<&Known> = self.overlapping(&range).filter(|other| other.region.region_id() != id).collect();
        if others.iter().any(|other| other.version() >= news.version()) {
            return Taken::Stale;
        }
        let others: Vec<RegionId> = others.iter().map(|other| other.region.region_id()).collect();
        self.remove(id);
        for other in others {
            match self.remove(other).and_then(|other| outside(other, &range)) {
                Some(rest) => self.insert(rest),
                // A region that is cut keeps the first part: whoever has nothing left went into another one.
                None => self.end(other),
            }
        }
        self.insert(news);
        Taken::New
    }

    fn insert(&mut self, known: Known) {
        let (id, start) = (known.region.region_id(), known.region.start.clone());
        self.starts.insert(id, start.clone());
        if known.leader_peer == 0 {
            self.leaderless.insert(id);
        }
        let before = self.by_start.insert(start, known);
        assert!(before.is_none(), "two regions begin at the same key: {id} and {before:?}");
    }

    fn end(&mut self, id: RegionId) {
        if self.ended.insert(id) {
            self.ended_order.push_back(id);
        }
        while self.ended_order.len() > ENDED_MAX {
            self.ended_order.pop_front().map(|oldest| self.ended.remove(&oldest));
        }
    }

    fn remove(&mut self, id: RegionId) -> Option<Known> {
        self.leaderless.remove(&id);
        self.starts.remove(&id).and_then(|start| self.by_start.remove(&start))
    }

    /// The regions that share keys with `range`, in key order.
    pub fn overlapping<'a>(&'a self, range: &KeyRange) -> impl Iterator<Item = &'a Known> + use<'a> {
        let first = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(&range.start[..]))).next_back();
        let from = first.map_or(range.start.clone(), |(start, _)| start.clone());
        let (range, end) = (range.clone(), range.end.clone());
        self.by_start
            .range(from..)
            .take_while(move |(start, _)| end.is_empty() || **start < end)
            .map(|(_, known)| known)
            .filter(move |known| known.region.range().overlaps(&range))
    }
}

/// What is left of an older region outside `taken`: the part before it, else the part after it. A region in whose middle
/// a newer one lies keeps only the part before; the rest is a hole until its own region is reported.
fn outside(mut known: Known, taken: &KeyRange) -> Option<Known> {
    let range = known.region.range();
    if range.start < taken.start {
        known.region.end = taken.start.clone();
        return Some(known);
    }
    let reaches_further = !taken.end.is_empty() && (range.end.is_empty() || range.end > taken.end);
    reaches_further.then(|| {
        known.region.start = taken.end.clone();
        known
    })
}
