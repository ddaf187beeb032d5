//! What a store says of the regions that it leads: each again when it has changed, and the idle ones cost nothing.
//!
//! A heartbeat looks at regions that are on the list of those with news (`region::Busy`), at those that were busy or unwell
//! when it looked last, and at a few of the others in turn: what only raft knows, as that a follower went silent, puts nobody on
//! the list. Rates are coarse and sizes may be off by a few per cent, so that a region that goes on as before is not told of
//! again ([`braid_store_core::load`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use braid_proto::id::RegionId;
use braid_proto::pb::{Region, RegionReport};
use braid_store_core::load::{Rates, about, steady};

use crate::machine::Regions;
use crate::region::{RegionPeer, Shared};

/// Of the regions that nothing is known to have happened to, one in so many is looked at each time, and at least so many.
const TURNS: usize = 8;
const TURN_MIN: usize = 64;
/// Rates below these are none.
const OPS_LEAST: u64 = 4;
const BYTES_LEAST: u64 = 1_024;
/// Sizes may be off by so much, however small.
const BYTES_SLACK: u64 = 256 << 10;
const KEYS_SLACK: u64 = 256;
/// Bytes written after which a size is measured again: so many, or this part of it.
const MEASURE_BYTES: u64 = 512 << 10;
const MEASURE_SHARE: u64 = 64;
/// Milliseconds after which it is measured again in any case: compaction makes regions smaller without a write.
const MEASURE_MS: u64 = 600_000;

/// What placement knows of the regions that are led here.
#[derive(Default)]
pub struct Reports {
    told: HashMap<RegionId, Told>,
    /// Looked at every time.
    watched: HashSet<RegionId>,
    /// The others, looked at in turn.
    turns: VecDeque<RegionId>,
    looked: usize,
}

struct Told {
    report: RegionReport,
    /// What the size was when it was measured, how much had been written then, and when that was.
    bytes: u64,
    keys: u64,
    written: u64,
    measured: u64,
}

impl Reports {
    /// How many regions were looked at the last time.
    #[cfg(test)]
    pub fn looked(&self) -> usize {
        self.looked
    }

    /// How many regions this store leads, as of the last look.
    pub fn led(&self) -> usize {
        self.told.len()
    }

    /// What has changed since the last time; everything if `full`.
    pub fn gather(&mut self, regions: &Regions, shared: &Shared, full: bool) -> Vec<RegionReport> {
        if full {
            self.told.clear();
            self.watched.clear();
            shared.busy.news();
            return regions.all().iter().filter_map(|region| self.look(region, shared)).collect();
        }
        let mut due: HashSet<RegionId> = shared.busy.news().into_iter().collect();
        due.extend(&self.watched);
        if self.turns.is_empty() {
            self.turns.extend(self.told.keys());
        }
        let turn = self.turns.len().min(TURN_MIN.max(self.told.len().div_ceil(TURNS)));
        due.extend(self.turns.drain(..turn));
        self.looked = due.len();
        metrics::gauge!("braid_store_regions_looked_at").set(self.looked as f64);
        due.into_iter().filter_map(|id| self.look_at(id, regions.get(id), shared)).collect()
    }

    fn look_at(&mut self, id: RegionId, region: Option<Arc<RegionPeer>>, shared: &Shared) -> Option<RegionReport> {
        match region {
            Some(region) => self.look(&region, shared),
            None => {
                self.forget(id);
                None
            }
        }
    }

    /// The region's report, if it differs from what was told.
    fn look(&mut self, region: &RegionPeer, shared: &Shared) -> Option<RegionReport> {
        // Before anything is looked at: what happens from now on is for the next time.
        region.taken();
        let id = region.id();
        let Some(mut report) = region.handle().report() else {
            self.forget(id);
            return None;
        };
        let now = shared.now();
        let rates = region.load().fold(now);
        let written = region.load().written();
        let known = self.told.remove(&id);
        let mut next = match known {
            Some(known) if !known.is_outdated(&report, written, now) => known,
            _ => {
                let (bytes, keys) = region.data().approximate_size();
                let report = known.map(|known| known.report).unwrap_or_default();
                Told { report, bytes, keys, written, measured: now }
            }
        };
        let told = &next.report;
        report.approximate_bytes = about(told.approximate_bytes, next.bytes, BYTES_SLACK);
        report.approximate_keys = about(told.approximate_keys, next.keys, KEYS_SLACK);
        report.ops_per_second = steady(told.ops_per_second, rates.ops(), OPS_LEAST);
        report.written_per_second = steady(told.written_per_second, rates.bytes(), BYTES_LEAST);
        if is_watched(&report, rates) {
            self.watched.insert(id);
        } else {
            self.watched.remove(&id);
        }
        let news = (next.report != report).then(|| report.clone());
        next.report = report;
        self.told.insert(id, next);
        news
    }

    fn forget(&mut self, id: RegionId) {
        self.told.remove(&id);
        self.watched.remove(&id);
    }
}

impl Told {
    /// Whether the size must be measured again.
    fn is_outdated(&self, report: &RegionReport, written: u64, now: u64) -> bool {
        let range = |region: &Option<Region>| region.as_ref().map(Region::range);
        written.wrapping_sub(self.written) > MEASURE_BYTES.max(self.bytes / MEASURE_SHARE)
            || now.saturating_sub(self.measured) > MEASURE_MS
            || range(&report.region) != range(&self.report.region)
    }
}

/// Whether its report is going to change, by itself or because of a change of peers.
fn is_watched(report: &RegionReport, rates: Rates) -> bool {
    let moving = report.ops_per_second > 0 || report.written_per_second > 0;
    let waking = rates.ops() > 0 || rates.bytes() >= BYTES_LEAST / 4;
    let unwell = !report.down_peers.is_empty() || !report.catching_up.is_empty();
    let changing = |region: &Region| region.peers.iter().any(|peer| peer.learner || peer.changing);
    moving || waking || unwell || report.region.as_ref().is_some_and(changing)
}

#[cfg(test)]
mod tests;
