//! Limits, priorities and history.

use braid_proto::id::PeerId;
use braid_proto::pb::{Peer, Region, RegionEpoch};

use super::*;
use crate::schedule::plan::By;
use crate::schedule::scheduler::Kind;
use crate::schedule::view::RegionNews;

fn view(regions: u64) -> View {
    let mut view = View::new(Vec::new());
    (1..=6).for_each(|id| view.put_store(StoreId(id), Default::default(), 1.0));
    for id in 1..=regions {
        let peers = (1..=3).map(|store_id| Peer::voter(id * 10 + store_id, store_id)).collect();
        let (start, end) = (format!("{id:04}").into(), format!("{:04}", id + 1).into());
        let epoch = Some(RegionEpoch { conf_ver: 1, version: 1 });
        let region = Region { id, start, end, epoch, peers };
        view.take(RegionNews { region, leader: PeerId(id * 10 + 1), bytes: 64 << 20, ..RegionNews::default() }, 0);
    }
    view
}

fn moving(view: &View, region: u64, to: u64, priority: Priority) -> Plan {
    let plan = Plan::replace(view.region(RegionId(region)).unwrap(), StoreId(3), StoreId(to), None).unwrap();
    plan.because(By::Scheduler(Kind::Replicas), priority, "a test".to_owned())
}

#[test]
fn schedule_keeps_to_one_operator_a_region_and_lets_the_more_urgent_one_go_first() {
    let (mut view, config, mut operators) = (view(3), Config::default(), Operators::default());
    let plan = moving(&view, 1, 4, Priority::Balance);
    let refused = operators.start(plan.clone(), &mut view, &config, 0).unwrap_err();
    assert_eq!(refused, "ids for new peers are still being fetched; try again in a moment");
    assert_eq!(operators.ids_wanted(0), IDS_AT_HAND);
    operators.feed_ids(1_000, operators.ids_wanted(0));
    operators.start(plan.clone(), &mut view, &config, 0).unwrap();
    assert_eq!(operators.ids_wanted(0), 0);
    assert!(operators.start(plan, &mut view, &config, 0).unwrap_err().contains("o1 is under way on r1"));
    let repair = moving(&view, 1, 5, Priority::Repair);
    operators.start(repair, &mut view, &config, 5).unwrap();
    let ended = operators.history().next().unwrap();
    assert_eq!(ended.outcome.to_string(), "replaced: o2 is more urgent and took its place");
    assert_eq!(view.region(RegionId(1)).unwrap().goal.as_ref().unwrap().stores, [1, 2, 5].map(StoreId));
    assert!(operators.cancel(RegionId(1), "an operator", &mut view, &config, 6));
    assert!(!operators.cancel(RegionId(1), "an operator", &mut view, &config, 6));
    assert!(view.region(RegionId(1)).unwrap().goal.is_none());
    assert_eq!(view.stores().map(|store| store.receiving + store.sending).sum::<usize>(), 0);
}

#[test]
fn schedule_gives_a_region_later_ids_than_its_peers_have() {
    let (mut view, config, mut operators) = (view(2), Config::default(), Operators::default());
    operators.feed_ids(20, IDS_AT_HAND);
    let newest = {
        let mut news = view.region(RegionId(1)).unwrap().news.clone();
        news.region.peers.iter_mut().for_each(|peer| peer.id += 5_000);
        news.leader = PeerId(news.region.peers[0].id);
        view.take(news, 0);
        view.region(RegionId(1)).unwrap().newest_peer()
    };
    assert_eq!((operators.ids_wanted(0), operators.ids_wanted(newest)), (0, IDS_AT_HAND));
    // The ones that were fetched first may come last.
    operators.feed_ids(6_000, IDS_AT_HAND);
    operators.feed_ids(5_000, 4);
    assert_eq!(operators.ids_wanted(newest), 0);
    let (one, other) = (moving(&view, 2, 4, Priority::Balance), moving(&view, 1, 5, Priority::Balance));
    let mut added = |plan: Plan| {
        let id = operators.start(plan, &mut view, &config, 0).unwrap();
        let steps = &operators.under_way(id).unwrap().plan.steps;
        steps
            .iter()
            .find_map(|step| if let Step::AddLearner { peer, .. } = step { Some(peer.0) } else { None })
            .unwrap()
    };
    assert_eq!([added(one), added(other)], [24, 6_000]);
}

#[test]
fn schedule_limits_copies_to_and_from_a_store_and_keeps_one_place_for_repair() {
    let (mut view, mut config, mut operators) = (view(12), Config::default(), Operators::default());
    (config.snapshots_receiving_max, config.snapshots_sending_max, config.move_bytes_per_second) = (2, 4, 0);
    operators.feed_ids(1_000, IDS_AT_HAND);
    let mut start = |region, to, priority| {
        let plan = moving(&view, region, to, priority);
        operators.start(plan, &mut view, &config, 0)
    };
    start(1, 4, Priority::Balance).unwrap();
    assert_eq!(
        start(2, 4, Priority::Balance).unwrap_err(),
        "s4 receives 1 replicas, as many as it may (snapshots-receiving-max)"
    );
    start(2, 4, Priority::Repair).unwrap();
    assert_eq!(
        start(3, 4, Priority::Repair).unwrap_err(),
        "s4 receives 2 replicas, as many as it may (snapshots-receiving-max)"
    );
    start(3, 5, Priority::Balance).unwrap();
    start(4, 6, Priority::Balance).unwrap();
    assert_eq!(
        start(5, 5, Priority::Repair).unwrap_err(),
        "s1 sends 4 replicas, as many as it may (snapshots-sending-max)"
    );
}

#[test]
fn schedule_paces_the_bytes_that_a_store_receives() {
    let (mut view, mut config, mut operators) = (view(3), Config::default(), Operators::default());
    config.move_bytes_per_second = 32 << 20;
    operators.feed_ids(1_000, IDS_AT_HAND);
    let plan = moving(&view, 1, 4, Priority::Balance);
    operators.start(plan, &mut view, &config, 0).unwrap();
    let plan = moving(&view, 2, 4, Priority::Balance);
    let refused = operators.start(plan.clone(), &mut view, &config, 1_900).unwrap_err();
    assert_eq!(refused, "s4 has received as much as it may (move-bytes-per-second), for 1 s more");
    operators.start(plan, &mut view, &config, 2_000).unwrap();
}

#[test]
fn schedule_remembers_only_the_last_operators_and_lets_failed_regions_rest() {
    let (mut view, mut config, mut operators) = (view(1), Config::default(), Operators::default());
    config.history_max = 3;
    operators.feed_ids(1_000, IDS_AT_HAND);
    for round in 1..=5 {
        let plan = moving(&view, 1, 4, Priority::Admin);
        let id = operators.start(plan, &mut view, &config, 1_000_000).unwrap();
        operators.refused(id, "the disk is full", &mut view, &config, 1_000_000);
        let rest = view.region(RegionId(1)).unwrap().rest_until_ms - 1_000_000;
        assert_eq!(rest, config.failed_rest_ms << (round - 1));
    }
    let region = view.region(RegionId(1)).unwrap();
    assert!(region.rests(Priority::Repair, 1_000_001) && !region.is_free(1_000_001));
    let ids: Vec<u64> = operators.history().map(|ended| ended.operator.id.0).collect();
    assert_eq!(ids, [5, 4, 3]);
    assert_eq!(operators.history().next().unwrap().outcome.to_string(), "failed: the disk is full");
}

#[test]
fn schedule_does_not_let_a_failed_balance_hold_up_a_repair() {
    let (mut view, config, mut operators) = (view(1), Config::default(), Operators::default());
    operators.feed_ids(1_000, IDS_AT_HAND);
    let plan = moving(&view, 1, 4, Priority::Balance);
    let id = operators.start(plan, &mut view, &config, 1_000).unwrap();
    operators.refused(id, "the target did not take over", &mut view, &config, 1_000);
    let region = view.region(RegionId(1)).unwrap();
    assert!(!region.is_free(2_000) && region.rests(Priority::Balance, 2_000) && !region.rests(Priority::Repair, 2_000));
    assert!(region.is_free(1_000 + config.failed_rest_ms));
}

#[test]
fn new_peers_have_later_ids_than_those_that_the_region_has() {
    let (mut view, config, mut operators) = (view(1), Config::default(), Operators::default());
    operators.feed_ids(5, 3);
    operators.feed_ids(1_000, 3);
    assert_eq!(operators.take_ids(7), None);
    let newest = view.region(RegionId(1)).unwrap().peers().iter().map(|peer| peer.id).max();
    assert_eq!(newest, Some(13));
    operators.start(moving(&view, 1, 4, Priority::Balance), &mut view, &config, 0).unwrap();
    assert_eq!(operators.take_ids(2), Some(vec![1_001, 1_002]), "5 to 7 are passed over, 1000 is the new peer's");
}
