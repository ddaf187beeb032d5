//! Stores die, come back, come back empty, and are emptied.

use braid_proto::id::{RegionId, StoreId};

use super::sim::{Faults, config, labels};
use super::*;
use crate::schedule::{Kind, Load, StoreState};

fn even(stores: u64, regions: usize, seed: u64) -> Sim {
    let mut sim = Sim::new(config(), seed);
    for id in 1..=stores {
        sim.add_store(id, labels(&[("zone", format!("z{}", id % 3))]), 1.0);
    }
    sim.add_regions(regions, |sim, at| {
        let chosen = crate::schedule::preference::preferred(sim.driver.view(), RegionId(at as u64 + 1), 3);
        (chosen.iter().map(|store| store.0).collect(), 16 << 20, Load::default())
    });
    sim.run_to_rest(500);
    sim.counts = super::sim::Counts::default();
    sim
}

#[test]
fn schedule_rebuilds_the_replicas_of_a_dead_store_and_uses_it_again() {
    let mut sim = even(6, 600, 3);
    let held = sim.driver.view().store(StoreId(2)).unwrap().replicas.len();
    sim.kill(2);
    for _ in 0..25 {
        sim.tick();
    }
    assert_eq!(sim.counts.copies, 0, "it may still come back");
    assert_eq!(
        sim.said(Kind::Repair),
        "s2 may still come back: replicas are rebuilt after 30 s of silence (store-down-seconds-max)"
    );
    sim.run_to_rest(800);
    sim.check_replicas(3);
    assert!(sim.driver.view().store(StoreId(2)).unwrap().replicas.is_empty());
    assert!((held..held + held / 4).contains(&sim.counts.copies), "{held} lost, {:?}", sim.counts);
    for news in sim.regions.values() {
        let zones: std::collections::BTreeSet<u64> = news.region.peers.iter().map(|peer| peer.store_id % 3).collect();
        assert_eq!(zones.len(), 3, "two replicas in one zone: {:?}", news.region);
    }
    sim.revive(2);
    sim.run_to_rest(800);
    let again = sim.driver.view().store(StoreId(2)).unwrap().replicas.len();
    assert!(again.abs_diff(held) <= held / 8, "{again} replicas instead of {held}");
}

#[test]
fn schedule_lets_a_store_be_that_comes_back_in_time() {
    let mut sim = even(4, 200, 4);
    sim.kill(3);
    (0..20).for_each(|_| sim.tick());
    sim.revive(3);
    sim.run_to_rest(200);
    assert_eq!(sim.counts.copies, 0);
    let led: Vec<usize> = sim.driver.view().stores().map(|store| store.leaders.len()).collect();
    assert!(led.iter().all(|led| (48..=52).contains(led)), "leaders are even again: {led:?}");
}

#[test]
fn schedule_replaces_a_wiped_store_by_the_new_one_that_it_is() {
    let mut sim = even(3, 150, 5);
    sim.kill(1);
    sim.driver.view_mut().set_state(StoreId(1), StoreState::Removed);
    (0..10).for_each(|_| sim.tick());
    assert_eq!(sim.counts.copies, 0, "no store takes the third replica");
    assert!(sim.said(Kind::Repair).contains("no store takes a replica"), "{}", sim.said(Kind::Repair));
    sim.add_store(4, labels(&[("zone", "z1".into())]), 1.0);
    sim.run_to_rest(400);
    sim.check_replicas(3);
    assert_eq!(sim.counts.copies, 150);
}

#[test]
fn schedule_survives_deaths_and_returns_in_any_order() {
    for seed in 1..=5 {
        let mut sim = even(7, 100, seed);
        sim.faults = Faults { order_lost: 10, order_refused: 60, copy_stuck: 40 };
        for _ in 0..6 {
            // At most two are dead at once, for long enough or not.
            let dead: Vec<u64> = (1..=7).filter(|id| !sim.is_live(*id)).collect();
            match dead.len() {
                2 => sim.revive(dead[0]),
                _ => {
                    let live: Vec<u64> = (1..=7).filter(|id| sim.is_live(*id)).collect();
                    let victim = live[sim.dice.roll(live.len())];
                    sim.kill(victim);
                }
            }
            let ticks = sim.dice.roll(70);
            (0..ticks).for_each(|_| sim.tick());
        }
        let dead: Vec<u64> = (1..=7).filter(|id| !sim.is_live(*id)).collect();
        dead.into_iter().for_each(|id| sim.revive(id));
        sim.run_to_rest(3_000);
        sim.check_whole();
        sim.check_replicas(3);
    }
}

#[test]
fn schedule_leaves_a_region_without_quorum_alone_and_says_so() {
    let mut sim = even(5, 40, 6);
    sim.kill(1);
    sim.kill(2);
    (0..40).for_each(|_| sim.tick());
    let without = sim.regions.values().filter(|news| !news.leader.is_valid()).count();
    assert!(without > 0, "some regions have two of three replicas on the dead stores");
    (0..200).for_each(|_| sim.tick());
    assert!(sim.said(Kind::Repair).contains("has lost its quorum, 1 of 3 voters"), "{}", sim.said(Kind::Repair));
    sim.revive(1);
    sim.run_to_rest(600);
    sim.check_replicas(3);
}

#[test]
fn schedule_drains_a_store_to_nothing_with_progress_and_fills_it_again() {
    let mut sim = even(5, 300, 7);
    let now_ms = sim.now_ms;
    sim.driver.view_mut().set_draining(StoreId(4), true, now_ms);
    let total = sim.driver.drain_progress(StoreId(4)).unwrap();
    assert!(total.replicas_total > 100 && total.replicas_moved == 0 && total.leaders_total > 40, "{total:?}");
    let mut last = total;
    let mut led_while_moving = 0;
    for _ in 0..400 {
        sim.tick();
        let progress = sim.driver.drain_progress(StoreId(4)).unwrap();
        assert!(progress.leaders_moved >= last.leaders_moved, "{progress:?} after {last:?}");
        if progress.replicas_moved > 0 {
            led_while_moving = led_while_moving.max(progress.leaders_total - progress.leaders_moved);
        }
        last = progress;
        if last.is_done() {
            break;
        }
    }
    assert!(last.is_done() && last.leaders_moved == last.leaders_total, "{last:?}");
    assert!(led_while_moving < total.leaders_total, "leaders go first");
    sim.run_to_rest(300);
    assert_eq!(sim.said(Kind::Drain), "s4 is empty and can be removed");
    sim.check_replicas(3);
    sim.driver.view_mut().set_draining(StoreId(4), false, now_ms);
    sim.run_to_rest(500);
    assert!(sim.driver.view().store(StoreId(4)).unwrap().replicas.len() > 100);
}

#[test]
fn schedule_says_why_a_drain_cannot_end() {
    let mut sim = even(3, 30, 8);
    let now_ms = sim.now_ms;
    sim.driver.view_mut().set_draining(StoreId(2), true, now_ms);
    sim.run_to_rest(200);
    assert!(sim.driver.view().store(StoreId(2)).unwrap().leaders.is_empty());
    assert!(sim.said(Kind::Drain).contains("no store takes a replica of"), "{}", sim.said(Kind::Drain));
    assert_eq!(sim.counts.copies, 0);
}

#[test]
fn schedule_follows_a_change_of_the_number_of_replicas() {
    let mut sim = even(6, 60, 9);
    let mut five = config();
    five.replicas = 5;
    sim.driver.configure(five).unwrap();
    sim.run_to_rest(500);
    sim.check_replicas(5);
    sim.driver.configure(config()).unwrap();
    sim.run_to_rest(500);
    sim.check_replicas(3);
    let mut one = config();
    one.replicas = 1;
    sim.driver.configure(one.clone()).unwrap();
    sim.run_to_rest(500);
    sim.check_replicas(1);
    // With one replica nobody can lead while it moves but the two ends of the move.
    let now_ms = sim.now_ms;
    sim.driver.view_mut().set_draining(StoreId(1), true, now_ms);
    sim.run_to_rest(500);
    sim.check_replicas(1);
    assert!(sim.driver.drain_progress(StoreId(1)).unwrap().is_done());
}
