//! The orders in which schedulers look at regions, kept with every report, so that nobody walks through all of them.

use std::collections::{BTreeMap, BTreeSet};

use braid_proto::id::RegionId;
use bytes::Bytes;

use super::region::RegionView;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Index {
    /// By first key.
    pub by_start: BTreeMap<Bytes, RegionId>,
    /// By bytes.
    pub by_bytes: BTreeSet<(u64, RegionId)>,
    /// By keys.
    pub by_keys: BTreeSet<(u64, RegionId)>,
    /// By operations per second; those without any are absent.
    pub by_ops: BTreeSet<(u64, RegionId)>,
    /// By bytes written per second; those without any are absent.
    pub by_written: BTreeSet<(u64, RegionId)>,
    /// By number of voters.
    pub by_voters: BTreeMap<usize, BTreeSet<RegionId>>,
    /// By how close their peers are.
    pub by_crowding: BTreeMap<u64, BTreeSet<RegionId>>,
    /// Those that are not calm.
    pub unwell: BTreeSet<RegionId>,
    /// Operations per second of all.
    pub ops: u64,
    /// Bytes written per second of all, each region counted once.
    pub written: u64,
}

impl Index {
    pub(super) fn add(&mut self, region: &RegionView) {
        let (id, news) = (region.id(), &region.news);
        self.by_start.insert(news.region.start.clone(), id);
        self.by_bytes.insert((news.bytes, id));
        self.by_keys.insert((news.keys, id));
        if news.load.ops > 0 {
            self.by_ops.insert((news.load.ops, id));
        }
        if news.load.written > 0 {
            self.by_written.insert((news.load.written, id));
        }
        self.by_voters.entry(region.voters().count()).or_default().insert(id);
        self.by_crowding.entry(region.crowding).or_default().insert(id);
        if !region.is_calm() {
            self.unwell.insert(id);
        }
        self.ops += news.load.ops;
        self.written += news.load.written;
    }

    pub(super) fn remove(&mut self, region: &RegionView) {
        let (id, news) = (region.id(), &region.news);
        // After a split both halves may have been known under one first key for a moment; the newer one keeps it.
        if self.by_start.get(&news.region.start) == Some(&id) {
            self.by_start.remove(&news.region.start);
        }
        self.by_bytes.remove(&(news.bytes, id));
        self.by_keys.remove(&(news.keys, id));
        self.by_ops.remove(&(news.load.ops, id));
        self.by_written.remove(&(news.load.written, id));
        take(&mut self.by_voters, region.voters().count(), id);
        take(&mut self.by_crowding, region.crowding, id);
        self.unwell.remove(&id);
        self.ops -= news.load.ops;
        self.written -= news.load.written;
    }
}

fn take<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<RegionId>>, key: K, id: RegionId) {
    if let Some(set) = sets.get_mut(&key) {
        set.remove(&id);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}

/// The members of a set from a point on, that the seed says, and then from the beginning: each once. Schedulers that
/// look at only some of many regions see others at another time.
pub fn around(set: &BTreeSet<RegionId>, seed: u64) -> impl Iterator<Item = RegionId> + '_ {
    let first = set.first().map_or(0, |id| id.0);
    let last = set.last().map_or(0, |id| id.0);
    let from = RegionId(first + seed % (last - first + 1));
    set.range(from..).chain(set.range(..from)).copied()
}
