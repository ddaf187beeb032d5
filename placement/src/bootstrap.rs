//! The first regions of a cluster: which there are, and on which stores.
//!
//! Pure. The leader's shell allocates the ids, commits the result, and creates the peers.

use std::collections::BTreeMap;

use braid_proto::id::StoreId;
use braid_proto::pb::{Peer, Region, RegionEpoch, Store};
use bytes::Bytes;
use consistent_hash_ring::{Ring, RingBuilder};

/// Points of each store on the ring: enough that shares differ by some per cent, few enough to build in microseconds.
pub(crate) const VNODES: usize = 128;

/// What the first regions are made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Internal keys at which the key space is cut, in order.
    pub split_keys: Vec<Bytes>,
    /// Replicas of each region.
    pub replicas: usize,
    /// Address of the store in the placement leader's own process: it leads the first region, so that numbers and
    /// writes of a small cluster meet in one process.
    pub own_addr: String,
}

/// How many ids the first regions take: one a region and one a peer.
pub fn ids_needed(plan: &Plan) -> u64 {
    let regions = plan.split_keys.len() as u64 + 1;
    regions * (1 + plan.replicas as u64)
}

/// How many of the regions' stores are still missing; 0: it can begin.
pub fn stores_missing(plan: &Plan, stores: usize) -> usize {
    plan.replicas.saturating_sub(stores)
}

/// The first regions, with ids from `first_id` on. The store named first in a region's peers shall lead it.
///
/// # Panics
/// With fewer stores than replicas, or none.
pub fn first_regions(plan: &Plan, stores: &[Store], first_id: u64) -> Vec<Region> {
    assert!(plan.replicas >= 1 && stores_missing(plan, stores.len()) == 0, "{plan:?} on {} stores", stores.len());
    let mut stores: Vec<&Store> = stores.iter().collect();
    stores.sort_unstable_by_key(|store| store.id);
    let ring: Ring<u64> = RingBuilder::default().vnodes(VNODES).nodes_iter(stores.iter().map(|s| s.id)).build();
    let own = stores.iter().find(|store| store.peer_addr == plan.own_addr).map(|store| store.id);
    let mut ids = first_id..;
    let mut next_id = || ids.next().expect("ids do not run out");
    let mut led = BTreeMap::<u64, usize>::new();
    let regions = bounds(&plan.split_keys).into_iter().enumerate().map(|(position, (start, end))| {
        let id = next_id();
        let mut chosen = choose(&ring, &stores, id, plan.replicas);
        // The first region follows placement's leader, also against the ring's preference; the others go to whoever
        // leads least so far.
        let leader = match own.filter(|_| position == 0) {
            Some(own) if chosen.contains(&own) => own,
            Some(own) => {
                chosen.pop();
                chosen.push(own);
                own
            }
            None => {
                let least = chosen.iter().min_by_key(|store| (led.get(*store).copied().unwrap_or(0), **store));
                *least.expect("at least one replica")
            }
        };
        *led.entry(leader).or_default() += 1;
        chosen.sort_unstable_by_key(|store| (*store != leader, *store));
        let peers = chosen.into_iter().map(|store_id| Peer::voter(next_id(), store_id)).collect();
        Region { id, start, end, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), peers }
    });
    regions.collect()
}

/// Whether `store` is to create a peer of `region` only after the others: it campaigns at once.
pub fn leads_first(region: &Region, store: StoreId) -> bool {
    region.peers.first().is_some_and(|peer| peer.store_id == store.0)
}

/// The stores that the ring prefers for a region; all of them where there are no more than replicas.
fn choose(ring: &Ring<u64>, stores: &[&Store], region: u64, replicas: usize) -> Vec<u64> {
    if stores.len() == replicas {
        return stores.iter().map(|store| store.id).collect();
    }
    ring.replicas(spread(region)).take(replicas).copied().collect()
}

/// Ids of regions are neighbours; the ring's own hash would put them close together. The same on every machine and in
/// every version (splitmix64's last step).
pub(crate) fn spread(id: u64) -> u64 {
    let mixed = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn bounds(split_keys: &[Bytes]) -> Vec<(Bytes, Bytes)> {
    let starts = std::iter::once(Bytes::new()).chain(split_keys.iter().cloned());
    let ends = split_keys.iter().cloned().chain(std::iter::once(Bytes::new()));
    starts.zip(ends).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn stores(count: u64) -> Vec<Store> {
        (1..=count).map(|id| Store { id, peer_addr: format!("s{id}"), ..Default::default() }).collect()
    }

    fn plan(split_keys: &[&'static str], replicas: usize) -> Plan {
        let split_keys = split_keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
        Plan { split_keys, replicas, own_addr: "s2".into() }
    }

    #[test]
    fn the_regions_cover_everything_with_ids_of_their_own() {
        let plan = plan(&["g", "p"], 3);
        let regions = first_regions(&plan, &stores(3), 10);
        let ranges: Vec<_> = regions.iter().map(|r| (&r.start[..], &r.end[..])).collect();
        assert_eq!(ranges, [(&b""[..], &b"g"[..]), (b"g", b"p"), (b"p", b"")]);
        let ids: BTreeSet<u64> = regions.iter().flat_map(|r| r.peers.iter().map(|p| p.id).chain([r.id])).collect();
        assert_eq!(ids, (10..10 + ids_needed(&plan)).collect());
    }

    #[test]
    fn the_first_region_is_led_where_placement_leads_and_the_others_are_spread() {
        let regions = first_regions(&plan(&["b", "c", "d", "e", "f"], 3), &stores(3), 1);
        let leaders: Vec<u64> = regions.iter().map(|r| r.peers[0].store_id).collect();
        assert_eq!(leaders[0], 2);
        for store in 1..=3 {
            assert_eq!(leaders.iter().filter(|leader| **leader == store).count(), 2, "{leaders:?}");
        }
        assert!(leads_first(&regions[0], StoreId(2)));
    }

    #[test]
    fn with_more_stores_than_replicas_the_ring_chooses_distinct_ones() {
        let regions = first_regions(&plan(&["b", "c", "d", "e", "f", "g", "h"], 3), &stores(7), 1);
        for region in &regions {
            let chosen: BTreeSet<u64> = region.peers.iter().map(|p| p.store_id).collect();
            assert_eq!(chosen.len(), 3);
        }
        let used: BTreeSet<u64> = regions.iter().flat_map(|r| r.peers.iter().map(|p| p.store_id)).collect();
        assert!(used.len() > 4, "the regions are spread: {used:?}");
    }

    #[test]
    fn the_first_region_is_on_the_leaders_store_even_if_the_ring_prefers_others() {
        for first_id in 1..40 {
            let regions = first_regions(&plan(&["m"], 3), &stores(9), first_id);
            let chosen: BTreeSet<u64> = regions[0].peers.iter().map(|p| p.store_id).collect();
            assert_eq!((regions[0].peers[0].store_id, chosen.len()), (2, 3), "{:?}", regions[0]);
        }
    }

    #[test]
    fn the_order_in_which_stores_are_listed_does_not_matter() {
        let mut listed = stores(7);
        let regions = first_regions(&plan(&["b", "c", "d"], 3), &listed, 1);
        listed.reverse();
        assert_eq!(first_regions(&plan(&["b", "c", "d"], 3), &listed, 1), regions);
    }

    #[test]
    fn adding_a_store_moves_few_regions() {
        let regions: Vec<u64> = (1..=1_000).collect();
        let ring = |count| -> Ring<u64> { RingBuilder::default().vnodes(VNODES).nodes_iter(1..=count).build() };
        let (before, after) = (ring(9), ring(10));
        let stays = |region: &&u64| before.replicas(spread(**region)).next() == after.replicas(spread(**region)).next();
        let stayed = regions.iter().filter(stays).count();
        assert!((850..950).contains(&stayed), "about one in ten moves: {stayed}");
    }

    #[test]
    fn it_waits_for_as_many_stores_as_replicas() {
        assert_eq!(stores_missing(&plan(&[], 3), 1), 2);
        assert_eq!(stores_missing(&plan(&[], 3), 4), 0);
    }
}
