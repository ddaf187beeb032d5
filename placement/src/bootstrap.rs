//! The first regions of a cluster: which there are, and on which stores.
//!
//! Pure. The leader's shell allocates the ids, commits the result, and creates the peers. Stores are chosen as the
//! schedulers choose them, so that nothing has to move once these look: by labels first, then by weight and the ring.

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::pb::{Peer, Region, RegionEpoch};
use bytes::Bytes;

use crate::schedule::{Config, RegionNews, View, choose};

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

/// The first regions, with ids from `first_id` on, on the stores of `view`, which knows no regions yet. The first one is
/// led by `own` if that is one of them. The store named first in a region's peers shall lead it.
///
/// # Panics
/// With fewer stores than replicas, or none.
pub fn first_regions(plan: &Plan, mut view: View, config: &Config, own: Option<StoreId>, first_id: u64) -> Vec<Region> {
    let stores = view.stores().count();
    assert!(plan.replicas >= 1 && stores_missing(plan, stores) == 0, "{plan:?} on {stores} stores");
    let mut ids = first_id..;
    let mut next_id = || ids.next().expect("ids do not run out");
    let mut regions = Vec::with_capacity(plan.split_keys.len() + 1);
    for (position, (start, end)) in bounds(&plan.split_keys).into_iter().enumerate() {
        let id = next_id();
        // The first region follows placement's leader, also against labels and ring: it is one of the places they go by.
        let own = own.filter(|own| position == 0 && view.store(*own).is_some());
        let mut chosen = Vec::from_iter(own);
        while chosen.len() < plan.replicas {
            let next = choose::first(&view, config, RegionId(id), &chosen);
            chosen.push(next.expect("there are as many stores as replicas"));
        }
        let leader = own.unwrap_or_else(|| least_leading(&view, &chosen));
        chosen.sort_unstable_by_key(|store| (*store != leader, *store));
        let peers = chosen.into_iter().map(|store| Peer::voter(next_id(), store.0)).collect();
        let region = Region { id, start, end, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), peers };
        let leader = PeerId(region.peers[0].id);
        // So that the next one goes where less is.
        view.take(RegionNews { region: region.clone(), leader, ..RegionNews::default() }, 0);
        regions.push(region);
    }
    regions
}

/// Of these stores the one that leads least for its weight.
fn least_leading(view: &View, chosen: &[StoreId]) -> StoreId {
    let stores = chosen.iter().filter_map(|id| view.store(*id));
    let least = stores.min_by(|a, b| a.led().total_cmp(&b.led()).then(a.id.cmp(&b.id)));
    least.expect("at least one replica").id
}

/// Whether `store` is to create a peer of `region` only after the others: it campaigns at once.
pub fn leads_first(region: &Region, store: StoreId) -> bool {
    region.peers.first().is_some_and(|peer| peer.store_id == store.0)
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
    use std::collections::{BTreeMap, BTreeSet};

    use consistent_hash_ring::{Ring, RingBuilder};

    use super::*;

    fn plan(split_keys: &[&'static str], replicas: usize) -> Plan {
        let split_keys = split_keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
        Plan { split_keys, replicas, own_addr: String::new() }
    }

    /// Stores s1, s2, ... with their labels and weights.
    fn labelled(stores: &[(&[(&str, &str)], f64)]) -> View {
        let mut view = View::new(["zone", "rack"].map(str::to_owned).to_vec());
        for (id, (labels, weight)) in (1..).zip(stores) {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            view.put_store(StoreId(id), labels, *weight);
        }
        view
    }

    fn stores(count: usize) -> View {
        labelled(&vec![(&[][..], 1.0); count])
    }

    /// Led by s2 where placement leads.
    fn first_regions(plan: &Plan, view: View, first_id: u64) -> Vec<Region> {
        super::first_regions(plan, view, &Config::default(), Some(StoreId(2)), first_id)
    }

    fn many(replicas: usize) -> Plan {
        let split_keys = (1..60_u8).map(|at| Bytes::from(vec![at])).collect();
        Plan { split_keys, replicas, own_addr: String::new() }
    }

    #[test]
    fn the_regions_cover_everything_with_ids_of_their_own() {
        let plan = plan(&["g", "p"], 3);
        let regions = first_regions(&plan, stores(3), 10);
        let ranges: Vec<_> = regions.iter().map(|r| (&r.start[..], &r.end[..])).collect();
        assert_eq!(ranges, [(&b""[..], &b"g"[..]), (b"g", b"p"), (b"p", b"")]);
        let ids: BTreeSet<u64> = regions.iter().flat_map(|r| r.peers.iter().map(|p| p.id).chain([r.id])).collect();
        assert_eq!(ids, (10..10 + ids_needed(&plan)).collect());
    }

    #[test]
    fn the_first_region_is_led_where_placement_leads_and_the_others_are_spread() {
        let regions = first_regions(&plan(&["b", "c", "d", "e", "f"], 3), stores(3), 1);
        let leaders: Vec<u64> = regions.iter().map(|r| r.peers[0].store_id).collect();
        assert_eq!(leaders[0], 2);
        for store in 1..=3 {
            assert_eq!(leaders.iter().filter(|leader| **leader == store).count(), 2, "{leaders:?}");
        }
        assert!(leads_first(&regions[0], StoreId(2)));
    }

    #[test]
    fn with_more_stores_than_replicas_the_ring_chooses_distinct_ones() {
        let regions = first_regions(&plan(&["b", "c", "d", "e", "f", "g", "h"], 3), stores(7), 1);
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
            let regions = first_regions(&plan(&["m"], 3), stores(9), first_id);
            let chosen: BTreeSet<u64> = regions[0].peers.iter().map(|p| p.store_id).collect();
            assert_eq!((regions[0].peers[0].store_id, chosen.len()), (2, 3), "{:?}", regions[0]);
        }
    }

    #[test]
    fn the_replicas_of_a_region_are_in_different_zones_and_racks_from_the_beginning() {
        let place = |zone, rack| vec![("zone", zone), ("rack", rack)];
        let places = [("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "1"), ("c", "1"), ("c", "1")];
        let labels: Vec<Vec<(&str, &str)>> = places.iter().map(|(zone, rack)| place(*zone, *rack)).collect();
        let stores: Vec<(&[(&str, &str)], f64)> = labels.iter().map(|labels| (&labels[..], 1.0)).collect();
        for region in first_regions(&many(3), labelled(&stores), 1) {
            let zones: BTreeSet<&str> = region.peers.iter().map(|peer| places[peer.store_id as usize - 1].0).collect();
            assert_eq!(zones.len(), 3, "{region:?}");
        }
        // Five replicas in three zones: as few as can be in one, and there in different racks.
        for region in first_regions(&many(5), labelled(&stores), 1) {
            let places: Vec<_> = region.peers.iter().map(|peer| places[peer.store_id as usize - 1]).collect();
            for zone in ["a", "b", "c"] {
                let racks: Vec<&str> =
                    places.iter().filter(|(other, _)| *other == zone).map(|(_, rack)| *rack).collect();
                let different: BTreeSet<&&str> = racks.iter().collect();
                assert!(racks.len() <= 2 && (zone == "c" || different.len() == racks.len()), "{region:?}");
            }
        }
    }

    #[test]
    fn schedulers_find_nothing_to_move_after_the_beginning() {
        let zones = ["a", "b", "c", "a", "b", "c"].map(|zone| [("zone", zone)]);
        let stores: Vec<(&[(&str, &str)], f64)> = zones.iter().map(|labels| (&labels[..], 1.0)).collect();
        let (regions, mut view) = (first_regions(&many(3), labelled(&stores), 1), labelled(&stores));
        for region in regions {
            let leader = PeerId(region.peers[0].id);
            view.take(RegionNews { region, leader, ..RegionNews::default() }, 0);
        }
        let config = Config { balance_tolerance: 0.1, leader_tolerance: 0.1, ..Config::default() };
        for kind in crate::schedule::Kind::ALL {
            let proposal = kind.propose(&view, &config, 1_000_000);
            assert!(!proposal.wants() && !proposal.stays, "{kind}: {}", proposal.said);
        }
    }

    #[test]
    fn heavier_stores_get_more_from_the_beginning() {
        let stores = [(&[][..], 1.0), (&[][..], 1.0), (&[][..], 1.0), (&[][..], 1.0), (&[][..], 2.0)];
        let mut held = BTreeMap::<u64, usize>::new();
        for region in first_regions(&many(3), labelled(&stores), 1) {
            region.peers.iter().for_each(|peer| *held.entry(peer.store_id).or_default() += 1);
        }
        assert!((28..=32).contains(&held[&1]) && held[&5] >= 55, "{held:?}");
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
