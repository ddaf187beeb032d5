//! Why nothing moves: what passes, what stays as it is, and who is not chosen.

use std::collections::BTreeMap;

use braid_proto::id::{RegionId, StoreId};

use super::sim::{Sim, config, labels};
use crate::schedule::choose;
use crate::schedule::{Config, Kind, Load, Plan, Priority, Proposal, StoreState};

const MIB: u64 = 1 << 20;

/// Regions of one replica on s1, and nothing on the other stores.
fn lopsided(stores: u64, regions: usize, mib: u64) -> Sim {
    let mut sim = Sim::new(Config { replicas: 1, ..config() }, 1);
    sim.add_stores(1..=stores);
    sim.add_regions(regions, |_, _| (vec![1], mib * MIB, Load::default()));
    sim.driver.feed_ids(1_000_000, 100);
    sim
}

fn proposal(sim: &Sim, kind: Kind) -> Proposal {
    sim.driver.propose(kind, sim.now_ms)
}

fn waits(proposal: &Proposal, why: &str) {
    assert!(proposal.waits && proposal.plans.is_empty() && proposal.said.contains(why), "{proposal:?} lacks {why:?}");
}

fn stays(proposal: &Proposal, why: &str) {
    assert!(proposal.stays && !proposal.wants() && proposal.said.contains(why), "{proposal:?} lacks {why:?}");
}

#[test]
fn schedule_says_which_bytes_nothing_can_move() {
    let sim = lopsided(2, 1, 90);
    stays(&proposal(&sim, Kind::Replicas), "of 1 regions on s1 that were looked at, 1 too large to make it less");
    let leaders = proposal(&sim, Kind::Leaders);
    assert!(!leaders.wants() && !leaders.stays && leaders.said.contains("one leader more or less"), "{leaders:?}");

    let mut sim = lopsided(2, 8, 10);
    stays(&proposal(&sim, Kind::Leaders), "no region led by s1 has a replica that could lead");
    assert!(!proposal(&sim, Kind::Replicas).plans.is_empty());
    sim.driver.view_mut().set_space(StoreId(2), 1_000 * MIB, 950 * MIB, 50 * MIB);
    stays(&proposal(&sim, Kind::Replicas), "8 without room, as s2 has no space above its reserve of 10 %");
}

#[test]
fn schedule_says_what_passes_that_keeps_regions_where_they_are() {
    let mut sim = lopsided(2, 4, 10);
    let now_ms = sim.now_ms;
    for id in 1..=4 {
        sim.driver.view_mut().failed(RegionId(id), Priority::Balance, 7_000, now_ms);
    }
    waits(&proposal(&sim, Kind::Replicas), "rests for 7 s, because 1 operators on it have failed");
    sim.now_ms += 7_000;
    assert!(!proposal(&sim, Kind::Replicas).plans.is_empty());
    sim.driver.view_mut().set_silence(StoreId(2), 3_100);
    waits(&proposal(&sim, Kind::Replicas), "s2 has not been heard for 3 s");
    sim.driver.view_mut().set_silence(StoreId(2), 900);
    assert!(!proposal(&sim, Kind::Replicas).plans.is_empty());
    for id in 1..=4 {
        sim.driver.view_mut().lose_leader(RegionId(id));
    }
    waits(&proposal(&sim, Kind::Replicas), "no leader of r");
}

#[test]
fn schedule_names_the_limit_at_which_plans_wait() {
    let mut sim = lopsided(3, 9, 10);
    sim.driver.configure(Config { operators_max: 2, ..sim.driver.config().clone() }).unwrap();
    let plans = proposal(&sim, Kind::Replicas).plans;
    assert_eq!(sim.driver.refuses(&plans, sim.now_ms), None);
    assert_eq!(sim.driver.refuses(&[], sim.now_ms), None);
    sim.driver.start(plans[0].clone(), sim.now_ms).unwrap();
    let plans = proposal(&sim, Kind::Replicas).plans;
    let why = sim.driver.refuses(&plans, sim.now_ms).expect("one operator of two, and repair has the other");
    assert_eq!(
        why,
        "1 operators are under way, as many as may be (operators-max is 2, of which repair keeps a part to itself)"
    );
}

/// Three replicas each, on s1, s2 and s3.
fn three(regions: usize, zones: &[&str]) -> Sim {
    let mut sim = Sim::new(config(), 1);
    for (id, zone) in (1..).zip(zones) {
        let labels = if zone.is_empty() { BTreeMap::new() } else { labels(&[("zone", (*zone).to_owned())]) };
        sim.add_store(id, labels, 1.0);
    }
    sim.add_regions(regions, |_, at| {
        let first = at as u64 % 3;
        ([first, first + 1, first + 2].map(|store| store % 3 + 1).to_vec(), 20 * MIB, Load::default())
    });
    sim
}

#[test]
fn schedule_says_which_labels_and_which_space_are_missing() {
    let sim = three(6, &["a", "a", "b"]);
    let said = proposal(&sim, Kind::Labels);
    assert!(!said.wants() && !said.stays && said.said.contains("(2 places by zone for 3 replicas)"), "{said:?}");
    let sim = three(6, &["a", "b", ""]);
    let said = proposal(&sim, Kind::Labels).said;
    assert!(said.ends_with("; s3 without a label zone count as one place"), "{said}");
    let mut sim = three(6, &["a", "a", "b", "c"]);
    assert!(!proposal(&sim, Kind::Labels).plans.is_empty());
    sim.driver.view_mut().set_space(StoreId(4), 100 * MIB, 95 * MIB, 5 * MIB);
    stays(&proposal(&sim, Kind::Labels), "closer together than need be: s4 has no space above its reserve of 10 %");
}

#[test]
fn schedule_says_for_which_silent_stores_and_resting_regions_repair_and_drains_wait() {
    let mut sim = three(3, &["", "", "", ""]);
    let now_ms = sim.now_ms;
    sim.driver.view_mut().set_state(StoreId(2), StoreState::Down { since_ms: now_ms });
    waits(&proposal(&sim, Kind::Repair), "s2 may still come back: replicas are rebuilt after 30 s of silence");
    sim.now_ms += 31_000;
    assert!(!proposal(&sim, Kind::Repair).plans.is_empty());
    let now_ms = sim.now_ms;
    for id in 1..=3 {
        sim.driver.view_mut().failed(RegionId(id), Priority::Repair, 9_000, now_ms);
    }
    waits(&proposal(&sim, Kind::Repair), "3 regions wait, the first one: r1 rests for 9 s");
    sim.driver.view_mut().set_state(StoreId(2), StoreState::Up);
    assert_eq!(proposal(&sim, Kind::Repair).said, "every region has its 3 replicas");
    sim.driver.view_mut().set_draining(StoreId(3), true, now_ms);
    waits(&proposal(&sim, Kind::Drain), "rests for 9 s");
}

#[test]
fn schedule_chooses_no_store_that_has_missed_heartbeats() {
    let mut sim = three(3, &["", "", "", "", ""]);
    let region = sim.driver.view().region(RegionId(1)).unwrap().clone();
    let staying = [StoreId(1), StoreId(2)];
    for silent in [4, 5] {
        sim.driver.view_mut().set_silence(StoreId(4), if silent == 4 { 2_600 } else { 0 });
        sim.driver.view_mut().set_silence(StoreId(5), if silent == 5 { 2_600 } else { 0 });
        let target = choose::target(sim.driver.view(), sim.driver.config(), &region, &staying).unwrap();
        assert_ne!(target, StoreId(silent));
    }
    let next = choose::next_leader(sim.driver.view(), &region, StoreId(1)).unwrap();
    sim.driver.view_mut().set_silence(next, 2_600);
    let other = choose::next_leader(sim.driver.view(), &region, StoreId(1)).unwrap();
    assert_ne!(other, next);
    sim.driver.view_mut().set_silence(other, 2_600);
    assert_eq!(choose::next_leader(sim.driver.view(), &region, StoreId(1)), None);
}

#[test]
fn schedule_gives_up_a_transfer_to_a_store_that_is_gone() {
    let mut sim = three(3, &["", "", ""]);
    let region = sim.driver.view().region(RegionId(1)).unwrap();
    let to = *region.voter_stores().iter().find(|store| **store != region.leader_store()).unwrap();
    let (id, _) = sim.driver.start(Plan::transfer(region, to), sim.now_ms).unwrap();
    sim.driver.view_mut().set_state(to, StoreState::Disconnected { since_ms: sim.now_ms - 5_001 });
    sim.tick();
    let ended = sim.driver.operators().ended(id).expect("it does not wait for its time");
    assert_eq!(ended.outcome.to_string(), format!("failed: {to}, which was to lead, is not up"));
}

#[test]
fn schedule_says_what_scattering_does() {
    let ids = |count: u64| (1..=count).map(RegionId).collect::<Vec<_>>();
    let mut sim = three(3, &["", "", ""]);
    let one = sim.driver.scatter(&ids(1)).unwrap();
    assert_eq!(one.moving, 0);
    assert!(one.said.starts_with("r1 stays where it is, on s1, s2, s3, led by s1: "), "{}", one.said);
    assert!(one.said.contains("3 stores are in service for 3 replicas, so that only leaders can move"), "{}", one.said);
    let all = sim.driver.scatter(&ids(3)).unwrap();
    assert!(all.moving == 0 && all.said.starts_with("all 3 regions stay where they are"), "{all:?}");
    assert_eq!(sim.driver.scatter(&[]).unwrap().said, "there is no region in this range");

    let mut sim = three(9, &["", "", "", "", "", ""]);
    let all = sim.driver.scatter(&ids(9)).unwrap();
    assert!(all.moving > 0 && all.said.starts_with("of 9 regions "), "{all:?}");
    // Asked again before anything has begun: the same, not nothing.
    assert_eq!(sim.driver.scatter(&ids(9)).unwrap(), all);
}
