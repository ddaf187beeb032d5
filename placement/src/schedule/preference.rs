//! Which stores a region prefers, so that a store that joins or leaves moves close to the least possible data.
//!
//! Stores lie on a consistent-hash ring with as many points as their weight says; a region's stores come in the order in
//! which the ring names them, clockwise from the region's place. A store that joins is only put in between: the others keep
//! their order, so that also a choice by labels changes only for its sake. The order is a preference only: labels, space
//! and evenness go before it.

use braid_proto::id::{RegionId, StoreId};
use consistent_hash_ring::{Ring, RingBuilder};

use super::View;
use crate::bootstrap::{VNODES, spread};

/// Most points of one store: a weight far above the others' needs no finer ring.
const VNODES_MAX: f64 = 4_096.0;

/// See the module's page.
#[derive(Clone, Default)]
pub struct Preference {
    stores: Vec<(u64, usize)>,
    /// Ends of the stores' arcs on the ring, in order.
    arcs: Vec<(u64, StoreId)>,
}

impl std::fmt::Debug for Preference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preference").field("stores", &self.stores).finish_non_exhaustive()
    }
}

impl Preference {
    /// Makes the ring of these stores with their weights, if it is another one.
    pub fn set(&mut self, stores: impl Iterator<Item = (StoreId, f64)>) {
        let points = |weight: f64| (VNODES as f64 * weight).round().clamp(1.0, VNODES_MAX) as usize;
        let stores: Vec<(u64, usize)> = stores.map(|(id, weight)| (id.0, points(weight))).collect();
        if stores != self.stores {
            let ring: Ring<u64> = RingBuilder::default().weighted_nodes_iter(stores.iter().copied()).build();
            let arcs = ring.resident_ranges().map(|arc| (*arc.keys().end(), StoreId(*arc.node())));
            self.arcs = if ring.is_empty() { Vec::new() } else { arcs.collect() };
            self.stores = stores;
        }
    }

    /// All stores in the order in which a region prefers them.
    pub fn order(&self, region: RegionId) -> impl Iterator<Item = StoreId> + '_ {
        let place = spread(region.0);
        let from = self.arcs.partition_point(|(end, _)| *end < place);
        let clockwise = self.arcs[from..].iter().chain(&self.arcs[..from]);
        let mut named = Vec::with_capacity(self.stores.len());
        let first_time = clockwise.filter_map(move |(_, store)| {
            let first_time = !named.contains(store);
            first_time.then(|| named.push(*store)).map(|()| *store)
        });
        first_time.take(self.stores.len())
    }

    /// The place of a store in that order; past the end if it is not on the ring.
    pub fn rank(&self, region: RegionId, store: StoreId) -> usize {
        self.order(region).position(|other| other == store).unwrap_or(self.stores.len())
    }
}

/// The stores that a region's replicas prefer, spread by labels as far as can be: of the stores that crowd least with
/// those taken so far, the one that the ring names first. Only stores that accept something.
pub fn preferred(view: &View, region: RegionId, replicas: usize) -> Vec<StoreId> {
    let order: Vec<StoreId> = view
        .preference()
        .order(region)
        .filter(|id| view.store(*id).is_some_and(super::StoreView::is_in_service))
        .collect();
    let mut chosen: Vec<StoreId> = Vec::with_capacity(replicas);
    while chosen.len() < replicas.min(order.len()) {
        let left = order.iter().filter(|id| !chosen.contains(id));
        // The first of equals: the ring's order decides.
        let best = left.min_by_key(|id| view.crowding_added(&chosen, **id));
        chosen.extend(best);
    }
    chosen
}
