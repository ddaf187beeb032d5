//! What one store has said on the stream that is open to it.

use braid_proto::id::RegionId;
use braid_proto::pb::StoreFrontier;
use rustc_hash::{FxHashMap, FxHashSet};

/// The stream from one store, as far as frontiers go.
#[derive(Debug, Default)]
pub struct Stream {
    /// How many frontiers have come since it was opened.
    pub count: u64,
    /// The last one; of every followed region that is not in `lower`.
    pub frontier: i64,
    /// Regions that lag.
    pub lower: FxHashMap<RegionId, i64>,
    /// Follows that are still told the past.
    pub late: FxHashMap<u64, i64>,
    /// Groups to which the next frontier matters. May name groups to which it does not any more.
    pub hot: FxHashSet<u64>,
    /// Highest revision that somebody waits for.
    wanted: i64,
    /// Highest revision that the store was asked for.
    nudged: i64,
    /// No frontier has come since.
    outstanding: bool,
}

impl Stream {
    /// The last frontier of what is followed in a region under the name `follow`.
    pub fn frontier_of(&self, region: RegionId, follow: u64) -> i64 {
        let of_region = self.lower.get(&region).copied().unwrap_or(self.frontier);
        self.late.get(&follow).map_or(of_region, |late| of_region.min(*late))
    }

    /// Takes a frontier. Returns what to ask for next: one question at a time, so that those that wait share it.
    pub fn take(&mut self, frontier: &StoreFrontier) -> Option<i64> {
        self.count += 1;
        self.frontier = frontier.revision;
        self.lower.clear();
        self.lower.extend(frontier.lower.iter().map(|lower| (RegionId(lower.region_id), lower.revision)));
        self.late.clear();
        self.late.extend(frontier.catching_up.iter().map(|late| (late.id, late.revision)));
        self.outstanding = false;
        self.ask()
    }

    /// Somebody waits for `revision`. Returns what to ask for now.
    pub fn want(&mut self, revision: i64) -> Option<i64> {
        self.wanted = self.wanted.max(revision);
        self.ask()
    }

    /// As [`Stream::want`], for a follow that no earlier question covered.
    pub fn want_anew(&mut self, revision: i64) -> i64 {
        self.wanted = self.wanted.max(revision);
        (self.nudged, self.outstanding) = (self.wanted, true);
        self.wanted
    }

    /// The stream has ended; another begins. Groups still want its frontiers.
    pub fn reset(&mut self) {
        let hot = std::mem::take(&mut self.hot);
        *self = Self { hot, ..Self::default() };
    }

    fn ask(&mut self) -> Option<i64> {
        if self.outstanding || self.wanted <= self.nudged || self.wanted <= self.frontier {
            return None;
        }
        (self.nudged, self.outstanding) = (self.wanted, true);
        Some(self.wanted)
    }
}
