//! From any start every scheduler together comes to rest: a bounded number of moves, everything even, labels respected.

use super::sim::{Faults, config, labels};
use super::*;
use crate::schedule::{Kind, Load, View, choose};

fn random_start(seed: u64, regions: usize, faults: Faults) -> Sim {
    let mut sim = Sim::new(config(), seed);
    sim.faults = faults;
    let (stores, zones, racks) = (3 + sim.dice.roll(7) as u64, 1 + sim.dice.roll(4), 1 + sim.dice.roll(3));
    for id in 1..=stores {
        let zone = format!("z{}", sim.dice.roll(zones));
        let rack = format!("r{}", sim.dice.roll(racks));
        let weight = [0.5, 1.0, 1.0, 2.0][sim.dice.roll(4)];
        sim.add_store(id, labels(&[("zone", zone), ("rack", rack), ("host", format!("h{id}"))]), weight);
    }
    sim.add_regions(regions, |sim, _| {
        // Most on few stores, so that there is something to do.
        let mut on: Vec<u64> = Vec::new();
        while on.len() < 3 {
            let store = 1 + sim.dice.roll(stores as usize).min(sim.dice.roll(stores as usize)) as u64;
            if !on.contains(&store) {
                on.push(store);
            }
        }
        let bytes = (4 + sim.dice.roll(64) as u64) << 20;
        let ops = if sim.dice.one_in(30) { 1_000 + sim.dice.roll(3_000) as u64 } else { sim.dice.roll(40) as u64 };
        (on, bytes, Load { ops, written: ops * 900 })
    });
    sim
}

/// No pair of stores could be brought closer by any move of replicas that labels allow.
fn check_even(view: &View, tolerance: f64, seed: u64) {
    let (mean, mut left) = (choose::mean_fill(view), 0);
    for from in view.in_service() {
        for to in view.in_service() {
            if from.fill() - to.fill() <= tolerance * mean {
                continue;
            }
            let could = from.replicas.iter().filter_map(|id| view.region(*id)).filter(|region| {
                let staying: Vec<_> = region.voter_stores().into_iter().filter(|id| *id != from.id).collect();
                region.peers().iter().all(|peer| peer.store_id != to.id.0)
                    && view.crowding_added(&staying, to.id) <= view.crowding_added(&staying, from.id)
                    && from.fill() - to.fill() >= region.weight_bytes() as f64 * (1.0 / from.weight + 1.0 / to.weight)
                    && !crate::schedule::hot::is_hot(view, &config(), region)
            });
            left += could.count();
        }
    }
    assert_eq!(left, 0, "seed {seed}: moves are left that would make stores more even");
}

fn check_labels(sim: &Sim, seed: u64) {
    let view = sim.driver.view();
    for region in view.regions() {
        let voters = region.voter_stores();
        for from in &voters {
            let staying: Vec<_> = voters.iter().filter(|store| *store != from).copied().collect();
            let now = view.crowding_added(&staying, *from);
            let better =
                view.in_service().find(|to| !voters.contains(&to.id) && view.crowding_added(&staying, to.id) < now);
            assert!(better.is_none(), "seed {seed}: {} could be further apart", region.id());
        }
    }
}

fn comes_to_rest(seed: u64, regions: usize, faults: Faults) {
    let mut sim = random_start(seed, regions, faults);
    sim.run_to_rest(3_000);
    sim.check_whole();
    sim.check_replicas(3);
    check_labels(&sim, seed);
    check_even(sim.driver.view(), config().balance_tolerance, seed);
    let counts = sim.counts;
    if faults.order_lost == 0 {
        // All replicas are put somewhere at most twice on average: once for labels, once for bytes and load.
        assert!(counts.copies <= regions * 3 * 2, "seed {seed}: {counts:?}");
        assert!(counts.transfers <= regions * 4, "seed {seed}: {counts:?}");
    }
    // At rest it stays at rest, though schedulers look at other regions each time.
    for _ in 0..100 {
        sim.tick();
    }
    assert_eq!(sim.counts, counts, "seed {seed}");
}

#[test]
fn schedule_comes_to_rest_from_any_start() {
    for seed in 1..=8 {
        comes_to_rest(seed, 100, Faults::default());
    }
}

#[test]
fn schedule_comes_to_rest_though_orders_are_lost_refused_and_repeated() {
    let faults = Faults { order_lost: 8, order_refused: 40, copy_stuck: 25 };
    for seed in 101..=104 {
        comes_to_rest(seed, 80, faults);
    }
}

#[test]
fn schedule_does_the_same_for_the_same_seed() {
    let run = || {
        let mut sim = random_start(7, 150, Faults { order_lost: 10, order_refused: 50, copy_stuck: 30 });
        sim.run_to_rest(3_000);
        (sim.counts, sim.now_ms, sim.regions)
    };
    assert_eq!(run(), run());
}

#[test]
fn schedule_says_why_it_does_nothing() {
    let mut sim = Sim::new(config(), 1);
    sim.add_stores(1..=3);
    sim.add_regions(9, |_, at| {
        let first = at as u64 % 3;
        ([first, first + 1, first + 2].map(|store| store % 3 + 1).to_vec(), 20 << 20, Load::default())
    });
    sim.run_to_rest(100);
    assert_eq!(sim.counts, super::sim::Counts::default());
    assert_eq!(sim.said(Kind::Replicas), "s1 and s3 differ by 0.0 % in bytes, less than the 5 % tolerance");
    assert_eq!(sim.said(Kind::Leaders), "s1 and s3 differ by 0.0 % in leaders, less than the 5 % tolerance");
    assert_eq!(sim.said(Kind::Repair), "every region has its 3 replicas");
    assert_eq!(sim.said(Kind::Drain), "no store is being drained");
    assert_eq!(sim.said(Kind::Labels), "no store has a label zone or rack or host");
    assert!(sim.said(Kind::Merge).starts_with("9 regions on 3 stores are few enough"), "{}", sim.said(Kind::Merge));
    for (kind, said) in sim.driver.said() {
        assert!(!said.text.is_empty(), "{kind} says nothing");
    }
    sim.driver.pause(Kind::Replicas);
    sim.add_stores(4..=4);
    sim.run_to_rest(100);
    assert_eq!((sim.counts.copies, sim.said(Kind::Replicas)), (0, "paused".to_owned()));
    sim.driver.resume(Kind::Replicas);
    sim.run_to_rest(200);
    assert!(sim.counts.copies > 0);
}
