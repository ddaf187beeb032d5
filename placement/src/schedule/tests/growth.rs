//! How much moves when a store is added, and how evenly regions lie then.

use std::collections::BTreeMap;

use braid_proto::id::{RegionId, StoreId};

use super::sim::{config, labels};
use super::*;
use crate::schedule::preference::preferred;
use crate::schedule::{Load, View};

const REGIONS: u64 = 10_000;

fn placed(stores: u64, zones: u64) -> Vec<Vec<StoreId>> {
    let mut view = View::new(vec!["zone".to_owned()]);
    for id in 1..=stores {
        let zone = if zones == 0 { BTreeMap::new() } else { labels(&[("zone", format!("z{}", id % zones))]) };
        view.put_store(StoreId(id), zone, 1.0);
    }
    (1..=REGIONS).map(|region| preferred(&view, RegionId(region), 3)).collect()
}

fn moved(from: u64, to: u64, zones: u64) -> (f64, f64) {
    let (before, after) = (placed(from, zones), placed(to, zones));
    let gone = |(before, after): (&Vec<StoreId>, &Vec<StoreId>)| {
        before.iter().filter(|store| !after.contains(store)).count() as u64
    };
    let moved: u64 = before.iter().zip(&after).map(gone).sum();
    let newest = after.iter().flatten().filter(|store| store.0 == to).count() as f64;
    (moved as f64 / (REGIONS * 3) as f64, newest / (REGIONS * 3) as f64)
}

#[test]
fn schedule_prefers_other_stores_for_few_replicas_when_one_is_added() {
    for (from, to, zones) in [(3, 4, 0), (10, 11, 0), (9, 10, 3)] {
        let (moved, newest) = moved(from, to, zones);
        let least = 1.0 / to as f64;
        println!(
            "ring, {from} -> {to} stores, {zones} zones: {:.2} % of replicas move, the new store prefers {:.2} %, least possible for even {:.2} %",
            moved * 100.0,
            newest * 100.0,
            least * 100.0
        );
        // Nothing moves between old stores but what labels and second choices bring along.
        assert!(moved <= newest * 1.25 + 0.01, "{moved} moved, {newest} of it to the new store");
        assert!(moved < least * 1.5, "{moved} of all moved");
    }
}

#[test]
fn schedule_moves_close_to_the_least_possible_when_a_store_is_added() {
    for (from, regions) in [(3, 600), (10, 600)] {
        let mut sim = Sim::new(config(), 21);
        sim.add_stores(1..=from);
        sim.add_regions(regions, |sim, at| {
            let chosen = preferred(sim.driver.view(), RegionId(at as u64 + 1), 3);
            (chosen.iter().map(|store| store.0).collect(), 16 << 20, Load::default())
        });
        sim.run_to_rest(1_000);
        sim.counts = super::sim::Counts::default();
        sim.add_stores(from + 1..=from + 1);
        sim.run_to_rest(2_000);
        let (replicas, least) = (regions as f64 * 3.0, 1.0 / (from + 1) as f64);
        let moved = sim.counts.copies as f64 / replicas;
        println!(
            "schedulers, {from} -> {} stores: {:.2} % of replicas moved, least possible for even {:.2} %",
            from + 1,
            moved * 100.0,
            least * 100.0
        );
        assert!(moved <= least * 1.05, "{moved} moved");
        let held = sim.driver.view().store(StoreId(from + 1)).unwrap().replicas.len() as f64 / replicas;
        assert!(held >= least * 0.94, "the new store holds {held}");
    }
}

#[test]
fn schedule_gives_heavier_stores_more() {
    let mut sim = Sim::new(config(), 22);
    for (id, weight) in [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 0.5), (6, 1.0), (7, 1.0)] {
        sim.add_store(id, BTreeMap::new(), weight);
    }
    sim.add_regions(400, |_, at| {
        (vec![at as u64 % 3 + 1, (at as u64 + 1) % 3 + 1, (at as u64 + 2) % 3 + 1], 16 << 20, Load::default())
    });
    sim.run_to_rest(1_500);
    let held = |id| sim.driver.view().store(StoreId(id)).unwrap().replicas.len() as f64;
    let led = |id| sim.driver.view().store(StoreId(id)).unwrap().leaders.len() as f64;
    assert!(
        (1.8..2.2).contains(&(held(4) / held(1))) && (0.4..0.6).contains(&(held(5) / held(1))),
        "{} {} {}",
        held(1),
        held(4),
        held(5)
    );
    assert!((1.8..2.2).contains(&(led(4) / led(1))), "{} {}", led(1), led(4));
}
