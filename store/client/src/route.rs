//! Which region holds which keys, as far as this process has heard. Pure: facts in, answers out.
//!
//! - A region replaces whatever it overlaps, unless something it overlaps is newer: a larger version, or for the same
//!   region a larger (version, conf_ver). Old news, from a slow store or from placement, is dropped.
//! - Leaders are hints. A store's own word comes in by [`Route::follow`]; placement's word, which is older, is taken
//!   only where no hint is left.
//! - Nothing here is ever trusted: stores compare the epoch by equality and refuse with what is true.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use braid_proto::id::{RegionId, StoreId};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Peer, Region, RegionEpoch};
use bytes::Bytes;
use tokio::sync::Notify;

/// One region as this process knows it, and who is said to lead it.
#[derive(Debug)]
pub struct Route {
    /// Its id.
    pub region: RegionId,
    /// Epoch that requests carry.
    pub epoch: RegionEpoch,
    /// Internal keys it holds.
    pub range: KeyRange,
    /// Its replicas.
    pub peers: Vec<Peer>,
    /// Store id of the leader; 0: nobody knows.
    leader: AtomicU64,
    /// Wakes requests that wait for a newer route or another leader.
    changed: Notify,
}

impl Route {
    pub(crate) fn new(region: Region, leader: StoreId) -> Self {
        Self {
            region: region.region_id(),
            epoch: region.region_epoch(),
            range: KeyRange { start: region.start, end: region.end },
            peers: region.peers,
            leader: AtomicU64::new(leader.0),
            changed: Notify::new(),
        }
    }

    /// Store that is said to lead.
    pub fn leader(&self) -> Option<StoreId> {
        let leader = StoreId(self.leader.load(Ordering::Relaxed));
        leader.is_valid().then_some(leader)
    }

    /// Takes a hint; whoever waits for one is woken.
    pub fn follow(&self, leader: StoreId) {
        if self.leader.swap(leader.0, Ordering::Relaxed) != leader.0 {
            self.changed.notify_waiters();
        }
    }

    /// `store` does not lead or cannot be reached: it is no hint any more.
    pub fn forget_leader(&self, store: StoreId) {
        // If someone has followed another hint meanwhile, that one stays.
        _ = self.leader.compare_exchange(store.0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Waits until the route or its leader changes, at most for `pause`.
    pub async fn wait(&self, pause: Duration) {
        _ = tokio::time::timeout(pause, self.changed.notified()).await;
    }

    fn newness(&self) -> (u64, u64) {
        (self.epoch.version, self.epoch.conf_ver)
    }
}

/// A range cut at the boundaries of regions.
#[derive(Debug)]
pub enum Pieces {
    /// Each region of the range with its part of it, in key order. Empty for an empty range.
    Known(Vec<(Arc<Route>, KeyRange)>),
    /// No region is known to hold this key of the range.
    Unknown(Bytes),
}

/// The regions that are known, disjoint, by first key.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: BTreeMap<Bytes, Arc<Route>>,
}

impl RouteTable {
    /// The region that holds `key`.
    pub fn find(&self, key: &[u8]) -> Option<&Arc<Route>> {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let (_, route) = self.routes.range::<[u8], _>(upto).next_back()?;
        route.range.contains(key).then_some(route)
    }

    /// Cuts `range` at the boundaries of regions.
    pub fn pieces(&self, range: &KeyRange) -> Pieces {
        let mut pieces = Vec::new();
        let mut rest = range.clone();
        while !rest.is_empty() {
            let Some(route) = self.find(&rest.start) else { return Pieces::Unknown(rest.start) };
            let piece = rest.intersect(&route.range);
            let end = piece.end.clone();
            pieces.push((Arc::clone(route), piece));
            if end.is_empty() {
                break;
            }
            rest.start = end;
        }
        Pieces::Known(pieces)
    }

    /// Learns of a region, and of its leader if `leader` is valid. False: something newer is known already.
    pub fn learn(&mut self, region: Region, leader: StoreId) -> bool {
        let route = Route::new(region, leader);
        let overlapped: Vec<Arc<Route>> = self.overlapping(&route.range).cloned().collect();
        if let [known] = &overlapped[..]
            && known.region == route.region
            && known.newness() == route.newness()
        {
            if known.leader().is_none() && leader.is_valid() {
                known.follow(leader);
            }
            return true;
        }
        let is_older = |known: &Arc<Route>| match known.region == route.region {
            true => known.newness() < route.newness(),
            false => known.epoch.version <= route.epoch.version,
        };
        if route.range.is_empty() || !overlapped.iter().all(is_older) {
            return false;
        }
        for known in &overlapped {
            self.routes.remove(&known.range.start);
            route.inherit_leader(known);
        }
        self.routes.insert(route.range.start.clone(), Arc::new(route));
        overlapped.iter().for_each(|known| known.changed.notify_waiters());
        true
    }

    /// How many regions are known.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    fn overlapping(&self, range: &KeyRange) -> impl Iterator<Item = &Arc<Route>> {
        let first = self.find(&range.start).map_or(&range.start, |route| &route.range.start).clone();
        let end = range.end.clone();
        let from = (Bound::Included(&first[..]), Bound::Unbounded);
        let after = self.routes.range::<[u8], _>(from).map(|(_, route)| route);
        after.take_while(move |route| end.is_empty() || route.range.start < end)
    }
}

impl Route {
    /// The leader of an older epoch most likely still leads, if it is still there; and both halves of a split.
    fn inherit_leader(&self, older: &Route) {
        let Some(leader) = older.leader() else { return };
        if self.leader().is_none() && self.peers.iter().any(|peer| peer.store_id == leader.0) {
            self.leader.store(leader.0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
