//! Where the regions are, as their leaders report it. Memory of the placement leader; a new one learns it anew.

use std::collections::BTreeMap;
use std::ops::Bound;

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::pb::{Region, RegionReport, RegionState, Route};
use bytes::Bytes;

/// Regions by their first key. They never overlap; holes are regions that nobody has reported yet.
#[derive(Debug, Default)]
pub struct RegionMap {
    by_start: BTreeMap<Bytes, RegionReport>,
    starts: BTreeMap<RegionId, Bytes>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is what the map says now.
    New,
    /// The map knows something newer about the region or a part of its range.
    Stale,
}

impl RegionMap {
    /// Takes a leader's report, unless something newer is known: a higher epoch of the same region, a higher term in
    /// the same epoch, or a region with a higher version over a part of its range.
    pub fn take(&mut self, report: RegionReport) -> Taken {
        let Some(region) = &report.region else { return Taken::Stale };
        let id = region.region_id();
        if self.get(id).is_some_and(|known| age(known) > age(&report)) {
            return Taken::Stale;
        }
        let version = region.region_epoch().version;
        let others: Vec<Bytes> = self
            .overlapping(region)
            .filter(|(_, other)| id_of(other) != id)
            .map(|(start, _)| start.clone())
            .collect();
        if others.iter().any(|start| version_of(&self.by_start[start]) >= version) {
            return Taken::Stale;
        }
        for start in others {
            if let Some(gone) = self.by_start.remove(&start) {
                self.starts.remove(&id_of(&gone));
            }
        }
        if let Some(start) = self.starts.insert(id, region.start.clone()) {
            self.by_start.remove(&start);
        }
        self.by_start.insert(region.start.clone(), report);
        Taken::New
    }

    /// The region `id`, if a leader has reported it.
    pub fn get(&self, id: RegionId) -> Option<&RegionReport> {
        self.starts.get(&id).and_then(|start| self.by_start.get(start))
    }

    /// The region that holds `key`.
    pub fn at(&self, key: &[u8]) -> Option<&RegionReport> {
        let (_, report) = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        report.region.as_ref().filter(|region| region.range().contains(key)).map(|_| report)
    }

    /// At most `limit` regions from the one that holds `key` on.
    pub fn routes(&self, key: &[u8], limit: usize) -> Vec<Route> {
        let first = self.at(key).and_then(|report| report.region.as_ref()).map(|region| region.start.clone());
        let start = first.unwrap_or_else(|| Bytes::copy_from_slice(key));
        self.by_start.range(start..).take(limit).map(|(_, report)| route(report)).collect()
    }

    /// The regions that share keys with `[start, end)`, in key order.
    pub fn list(&self, start: &Bytes, end: &Bytes) -> Vec<RegionState> {
        let range = Region { start: start.clone(), end: end.clone(), ..Default::default() };
        self.overlapping(&range)
            .map(|(_, report)| RegionState { leader_store: leader_store(report).0, report: Some(report.clone()) })
            .collect()
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    fn overlapping<'a>(&'a self, region: &Region) -> impl Iterator<Item = (&'a Bytes, &'a RegionReport)> + use<'a> {
        let range = region.range();
        let first = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(&range.start[..]))).next_back();
        let from = first.map_or(range.start.clone(), |(start, _)| start.clone());
        self.by_start
            .range(from..)
            .take_while({
                let end = range.end.clone();
                move |(start, _)| end.is_empty() || **start < end
            })
            .filter(move |(_, report)| report.region.as_ref().is_some_and(|other| other.range().overlaps(&range)))
    }
}

/// What makes one report of a region newer than another.
fn age(report: &RegionReport) -> (u64, u64, u64) {
    let epoch = report.region.as_ref().map(Region::region_epoch).unwrap_or_default();
    (epoch.version, epoch.conf_ver, report.term)
}

fn version_of(report: &RegionReport) -> u64 {
    age(report).0
}

fn id_of(report: &RegionReport) -> RegionId {
    report.region.as_ref().map_or(RegionId::INVALID, Region::region_id)
}

/// The store of the region's leader.
pub fn leader_store(report: &RegionReport) -> StoreId {
    let leader = report.region.as_ref().and_then(|region| region.peer(PeerId(report.leader_peer)));
    leader.map_or(StoreId::INVALID, |peer| StoreId(peer.store_id))
}

fn route(report: &RegionReport) -> Route {
    Route { region: report.region.clone(), leader_store: leader_store(report).0 }
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::{Peer, RegionEpoch};

    use super::*;

    fn report(id: u64, start: &'static str, end: &'static str, version: u64, term: u64) -> RegionReport {
        let region = Region {
            id,
            start: start.into(),
            end: end.into(),
            epoch: Some(RegionEpoch { conf_ver: 1, version }),
            peers: vec![Peer { id: id * 10 + 1, store_id: 1, learner: false }, Peer { id: id * 10 + 2, store_id: 2, learner: false }],
        };
        RegionReport { leader_peer: id * 10 + 2, region: Some(region), term, ..Default::default() }
    }

    fn ids(routes: &[Route]) -> Vec<u64> {
        routes.iter().filter_map(|route| route.region.as_ref().map(|region| region.id)).collect()
    }

    #[test]
    fn a_split_replaces_the_parents_range_whoever_reports_first() {
        for child_first in [true, false] {
            let mut map = RegionMap::default();
            assert_eq!(map.take(report(1, "", "", 1, 5)), Taken::New);
            let (left, right) = (report(1, "", "m", 2, 5), report(2, "m", "", 2, 6));
            let reports = if child_first { [right, left] } else { [left, right] };
            for report in reports {
                assert_eq!(map.take(report), Taken::New);
            }
            assert_eq!(ids(&map.routes(b"", 10)), [1, 2]);
            assert_eq!(map.take(report(1, "", "", 1, 9)), Taken::Stale, "an old leader of the parent");
            assert_eq!(map.at(b"z").map(id_of), Some(RegionId(2)));
        }
    }

    #[test]
    fn older_terms_and_epochs_are_refused() {
        let mut map = RegionMap::default();
        map.take(report(1, "a", "c", 3, 7));
        assert_eq!(map.take(report(1, "a", "c", 3, 6)), Taken::Stale);
        assert_eq!(map.take(report(1, "a", "z", 2, 9)), Taken::Stale);
        assert_eq!(map.take(report(1, "a", "c", 3, 7)), Taken::New, "the same again changes nothing");
        assert_eq!(map.len(), 1);
    }

    #[test]
    fn routes_begin_with_the_region_that_holds_the_key_and_name_its_leader() {
        let mut map = RegionMap::default();
        for (id, start, end) in [(1, "a", "c"), (2, "c", "f"), (3, "h", "")] {
            map.take(report(id, start, end, 1, 1));
        }
        assert_eq!(ids(&map.routes(b"b", 2)), [1, 2]);
        assert_eq!(ids(&map.routes(b"g", 10)), [3], "nobody has reported [f, h)");
        assert_eq!(map.at(b"g").map(id_of), None);
        assert_eq!(map.routes(b"d", 1)[0].leader_store, 2);
        assert_eq!(map.list(&"b".into(), &"d".into()).len(), 2);
        assert_eq!(map.list(&"".into(), &"".into()).len(), 3);
    }
}
