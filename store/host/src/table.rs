//! Which regions live on a host, and where: one map under one lock.
//!
//! Invariant: at any time no two initialised regions of a host overlap, nor does the range that an incoming raft
//! snapshot reserves, but for regions that end with its installation (`absorb`). Everything that creates, splits or replaces a region goes through here first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use braid_proto::key::KeyRange;
use braid_proto::pb::Region;
use bytes::Bytes;

use crate::handle::PeerHandle;

/// The regions of a host.
#[derive(Default)]
pub struct RegionTable {
    regions: HashMap<u64, Slot>,
    /// Initialised regions by their first key.
    by_start: BTreeMap<Bytes, u64>,
    /// Ranges that raft snapshots are about to bring, and those of destroyed peers until they are empty, by region.
    reserved: HashMap<u64, KeyRange>,
}

struct Slot {
    /// The handle's own, as far as it stays as it is.
    region: Arc<Region>,
    handle: PeerHandle,
}

impl RegionTable {
    /// The peer of `region`, if it is initialised.
    pub fn get(&self, region: u64) -> Option<&PeerHandle> {
        self.regions.get(&region).map(|slot| &slot.handle)
    }

    /// The peer whose region holds `key`.
    pub fn at(&self, key: &[u8]) -> Option<&PeerHandle> {
        let (_, id) =
            self.by_start.range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key))).next_back()?;
        let slot = &self.regions[id];
        slot.region.range().contains(key).then_some(&slot.handle)
    }

    /// All peers in key order.
    pub fn handles(&self) -> impl Iterator<Item = &PeerHandle> {
        self.by_start.values().map(|id| &self.regions[id].handle)
    }

    /// A region other than `except` that holds, or will hold, keys of `range`.
    pub fn overlapping(&self, range: &KeyRange, except: u64) -> Option<u64> {
        self.overlapping_but(range, except, |_| false)
    }

    /// The same, but for regions here that make way for it.
    pub fn overlapping_but(&self, range: &KeyRange, except: u64, yields: impl Fn(u64) -> bool) -> Option<u64> {
        // Regions do not overlap each other, so only the last one that starts before `range` and those inside count.
        let before = self.by_start.range::<Bytes, _>(..=&range.start).next_back();
        let inside = self.by_start.range::<Bytes, _>(&range.start..);
        let held =
            before.into_iter().chain(inside.take_while(|(start, _)| range.end.is_empty() || **start < range.end));
        let mut held = held.map(|(_, id)| *id);
        let counts = |id: u64| id != except && self.regions[&id].region.range().overlaps(range) && !yields(id);
        held.find(|id| counts(*id)).or_else(|| {
            let mut reserved = self.reserved.iter();
            reserved.find(|(id, held)| **id != except && held.overlaps(range)).map(|(id, _)| *id)
        })
    }

    /// Puts a region in, or what it has become. Panics where it would overlap: the caller has asked under the same lock.
    pub fn put(&mut self, region: Region, handle: PeerHandle) {
        if let Some(old) = self.regions.remove(&region.id) {
            self.by_start.remove(&old.region.start);
        }
        if let Some(other) = self.overlapping(&region.range(), region.id) {
            panic!("r{} would overlap r{other} on this host", region.id);
        }
        self.by_start.insert(region.start.clone(), region.id);
        let shared = Some(handle.region()).filter(|shared| **shared == region);
        self.regions.insert(region.id, Slot { region: shared.unwrap_or_else(|| Arc::new(region)), handle });
    }

    /// Takes a region out.
    pub fn remove(&mut self, region: u64) {
        if let Some(slot) = self.regions.remove(&region) {
            self.by_start.remove(&slot.region.start);
        }
    }

    /// The ranges of all regions that hold keys of `range`.
    pub fn ranges_in(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.by_start.values().map(|id| self.regions[id].region.range()).filter(|held| held.overlaps(range)).collect()
    }

    /// Keeps `range` free for a raft snapshot of `region`, or until the data of a destroyed peer is deleted. False: somebody else is there.
    pub fn reserve(&mut self, region: u64, range: KeyRange) -> bool {
        self.reserve_over(region, range, &[])
    }

    /// The same, over regions that end before the reservation does.
    pub fn reserve_over(&mut self, region: u64, range: KeyRange, ending: &[u64]) -> bool {
        if self.overlapping_but(&range, region, |id| ending.contains(&id)).is_some() {
            return false;
        }
        self.reserved.insert(region, range);
        true
    }

    /// Whether a raft snapshot of `region` is on its way in, or old data of it on its way out.
    pub fn is_reserved(&self, region: u64) -> bool {
        self.reserved.contains_key(&region)
    }

    /// Ends a reservation.
    pub fn release(&mut self, region: u64) {
        self.reserved.remove(&region);
    }

    /// Hosts that share a region with `host`.
    pub fn neighbours(&self, host: u64) -> HashSet<u64> {
        let peers = self.regions.values().flat_map(|slot| &slot.region.peers);
        peers.map(|peer| peer.store_id).filter(|store| *store != host).collect()
    }

    /// How many regions there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.regions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u64, start: &'static str, end: &'static str) -> Region {
        Region { id, start: start.into(), end: end.into(), ..Default::default() }
    }

    fn table() -> RegionTable {
        let mut table = RegionTable::default();
        for region in [region(1, "b", "d"), region(2, "d", "f"), region(3, "k", "")] {
            table.put(region.clone(), PeerHandle::detached(&region));
        }
        table
    }

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    #[test]
    fn keys_find_their_region() {
        let table = table();
        let at = |key: &str| table.at(key.as_bytes()).map(|handle| handle.region().id);
        assert_eq!(
            [at("a"), at("b"), at("dz"), at("f"), at("k"), at("zz")],
            [None, Some(1), Some(2), None, Some(3), Some(3)]
        );
    }

    #[test]
    fn overlaps_are_seen_from_every_side() {
        let mut table = table();
        assert_eq!(table.overlapping(&range("a", "b"), 9), None);
        assert_eq!(table.overlapping(&range("a", "c"), 9), Some(1));
        assert_eq!(table.overlapping(&range("c", "c1"), 9), Some(1));
        assert_eq!(table.overlapping(&range("c", "e"), 1), Some(2));
        assert_eq!(table.overlapping(&range("f", "k"), 9), None);
        assert_eq!(table.overlapping(&range("f", ""), 9), Some(3));
        assert_eq!(table.overlapping(&range("z", ""), 9), Some(3));
        assert!(table.reserve(9, range("f", "h")));
        assert!(!table.reserve(10, range("g", "k")));
        table.release(9);
        assert!(table.reserve(10, range("g", "k")));
    }

    #[test]
    fn a_split_keeps_the_table_tight() {
        let mut table = table();
        table.put(region(3, "k", "p"), PeerHandle::detached(&region(3, "k", "p")));
        table.put(region(4, "p", ""), PeerHandle::detached(&region(4, "p", "")));
        assert_eq!(table.handles().map(|handle| handle.region().id).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(table.len(), 4);
    }

    #[test]
    #[should_panic(expected = "would overlap")]
    fn an_overlap_cannot_be_put_in() {
        table().put(region(5, "a", "c"), PeerHandle::detached(&region(5, "a", "c")));
    }
}
