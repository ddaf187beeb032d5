//! Loads of different shapes end up spread: sequential keys, one hot prefix, uniform keys.

use braid_proto::id::{RegionId, StoreId};

use super::sim::config;
use super::*;
use crate::schedule::{Config, Kind, Load};

fn ops(sim: &Sim) -> Vec<u64> {
    sim.driver.view().stores().map(|store| store.held.ops).collect()
}

/// The largest share of a store, as a multiple of the mean.
fn peak(amounts: &[u64]) -> f64 {
    let mean = amounts.iter().sum::<u64>() as f64 / amounts.len() as f64;
    amounts.iter().copied().max().unwrap_or(0) as f64 / mean
}

fn few(config: Config, stores: u64, regions: usize, load: impl Fn(usize) -> Load) -> Sim {
    let mut sim = Sim::new(config, 11);
    sim.add_stores(1..=stores);
    sim.add_regions(regions, |_, at| (vec![1, 2, 3], 10 << 20, load(at)));
    sim
}

#[test]
fn schedule_spreads_one_hot_prefix() {
    let hot = |at| if at == 5 { Load { ops: 24_000, written: 24 << 20 } } else { Load { ops: 20, written: 9_000 } };
    let mut sim = few(config(), 6, 30, hot);
    sim.run_to_rest(2_000);
    sim.check_whole();
    sim.check_replicas(3);
    assert!(sim.counts.splits >= 4, "{:?}", sim.counts);
    assert!(peak(&ops(&sim)) < 1.35, "operations by store: {:?}", ops(&sim));
    let written: Vec<u64> = sim.driver.view().stores().map(|store| store.held.written).collect();
    assert!(peak(&written) < 1.5, "bytes written by store: {written:?}");
    assert!(sim.counts.copies < 250, "{:?}", sim.counts);
}

#[test]
fn schedule_splits_no_region_for_a_load_that_one_store_bears_well() {
    let warm = |ops| move |at| Load { ops: if at == 5 { ops } else { 0 }, written: 0 };
    let splits = |ops| {
        let mut sim = few(config(), 6, 30, warm(ops));
        sim.run_to_rest(2_000);
        sim.counts.splits
    };
    let least = config().split_ops / 8;
    assert_eq!(splits(least - 1), 0);
    assert!(splits(least) > 0);
}

#[test]
fn schedule_spreads_a_uniform_load() {
    let mut sim = few(config(), 6, 240, |_| Load { ops: 300, written: 1 << 20 });
    sim.run_to_rest(1_500);
    sim.check_replicas(3);
    assert!(peak(&ops(&sim)) < 1.1, "operations by store: {:?}", ops(&sim));
    let held: Vec<u64> = sim.driver.view().stores().map(|store| store.held.bytes).collect();
    assert!(peak(&held) < 1.1, "bytes by store: {held:?}");
    assert_eq!(sim.counts.splits, 0);
    // Three stores of three were full, and half of that moves.
    assert!((300..=400).contains(&sim.counts.copies), "{:?}", sim.counts);
}

#[test]
fn schedule_spreads_sequential_keys() {
    let mut sim = few(config(), 5, 1, |_| Load::default());
    let tail = |sim: &Sim| sim.regions.values().find(|news| news.region.end.is_empty()).unwrap().region.region_id();
    for _ in 0..400 {
        // 12 MiB a tick, all of it at the end of the key space.
        let id = tail(&sim);
        sim.change(id, |news| {
            news.bytes += 12 << 20;
            news.keys += 12 << 10;
            news.load = Load { ops: 3_000, written: 12 << 20 };
        });
        sim.tick();
        let still: Vec<RegionId> = sim
            .regions
            .iter()
            .filter(|(other, news)| **other != tail(&sim) && news.load.ops > 0)
            .map(|(id, _)| *id)
            .collect();
        still.into_iter().for_each(|id| sim.change(id, |news| news.load = Load::default()));
    }
    let id = tail(&sim);
    sim.change(id, |news| news.load = Load::default());
    sim.run_to_rest(1_500);
    sim.check_whole();
    sim.check_replicas(3);
    assert!(sim.regions.len() > 30, "{} regions", sim.regions.len());
    assert!(sim.regions.values().all(|news| news.bytes < config().split_bytes));
    let held: Vec<u64> = sim.driver.view().stores().map(|store| store.held.bytes).collect();
    assert!(peak(&held) < 1.1, "bytes by store: {held:?}");
}

#[test]
fn schedule_merges_small_neighbours_from_different_stores_and_does_not_split_them_again() {
    let mut sim = Sim::new(config(), 12);
    sim.add_stores(1..=5);
    sim.add_regions(300, |sim, _| {
        let first = sim.dice.roll(5) as u64;
        let second = (first + 1 + sim.dice.roll(2) as u64) % 5;
        let third = (second + 1) % 5;
        let third = if third == first { (second + 2) % 5 } else { third };
        (vec![first + 1, second + 1, third + 1], 1 << 20, Load::default())
    });
    sim.run_to_rest(6_000);
    sim.check_whole();
    sim.check_replicas(3);
    assert!(sim.regions.len() <= 60, "{} regions are left; {}", sim.regions.len(), sim.said(Kind::Merge));
    assert_eq!(sim.counts.merges, 300 - sim.regions.len());
    assert_eq!(sim.counts.splits, 0);
    assert_eq!(sim.regions.values().map(|news| news.bytes).sum::<u64>(), 300 << 20, "nothing lost or doubled");
}

#[test]
fn schedule_scatters_the_regions_that_an_operator_names() {
    let mut sim = few(config(), 6, 60, |_| Load::default());
    // Even in all, so that only the wish moves something: the named ones lie on three stores.
    [Kind::Replicas, Kind::Leaders].into_iter().for_each(|kind| sim.driver.pause(kind));
    let named: Vec<RegionId> = (1..=24).map(RegionId).collect();
    let moves = sim.driver.scatter(&named).unwrap().moving;
    assert!(moves >= 16, "{moves} regions are to move");
    sim.run_to_rest(500);
    assert_eq!(sim.said(Kind::Scatter), "nobody wants regions scattered");
    for store in 1..=6 {
        let store = sim.driver.view().store(StoreId(store)).unwrap();
        let held = named.iter().filter(|id| store.replicas.contains(id)).count();
        let led = named.iter().filter(|id| store.leaders.contains(id)).count();
        assert!((11..=13).contains(&held) && (3..=5).contains(&led), "{} holds {held} and leads {led}", store.id);
    }
    assert!(sim.driver.scatter(&[RegionId(4_711)]).is_err());
}
