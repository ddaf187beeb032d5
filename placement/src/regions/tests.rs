//! The region map, report by report.

use braid_proto::pb::{Peer, RegionEpoch};

use super::*;

fn region(id: u64, start: &'static str, end: &'static str, version: u64) -> Region {
    let peer = |store_id| Peer::voter(id * 10 + store_id, store_id);
    Region {
        id,
        start: start.into(),
        end: end.into(),
        epoch: Some(RegionEpoch { conf_ver: 1, version }),
        peers: vec![peer(1), peer(2)],
    }
}

/// Led by the peer on s2.
fn report(id: u64, start: &'static str, end: &'static str, version: u64, term: u64) -> RegionReport {
    let region = Some(region(id, start, end, version));
    RegionReport { leader_peer: id * 10 + 2, region, term, approximate_keys: 7, ..Default::default() }
}

/// `r1 [a, c)`, as routes say it.
fn routes(map: &RegionMap, key: &str, limit: usize) -> Vec<String> {
    let text = |region: &Region| {
        let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
        format!("{} [{}, {})", region.region_id(), text(&region.start), text(&region.end))
    };
    map.routes(key.as_bytes(), limit).iter().filter_map(|route| route.region.as_ref().map(text)).collect()
}

#[test]
fn a_split_replaces_the_parents_range_whoever_reports_first_and_leaves_no_hole() {
    for child_first in [true, false] {
        let mut map = RegionMap::default();
        assert_eq!(map.take(report(1, "", "", 1, 5)), Taken::New);
        let (left, right) = (report(1, "", "m", 2, 5), report(2, "m", "", 2, 6));
        let (first, second) = if child_first { (right, left) } else { (left, right) };
        assert_eq!(map.take(first), Taken::New);
        if child_first {
            assert_eq!(routes(&map, "", 10), ["r1 [, m)", "r2 [m, )"], "what is left of the parent stays");
        }
        assert_eq!(map.take(second), Taken::New);
        assert_eq!(routes(&map, "", 10), ["r1 [, m)", "r2 [m, )"]);
        assert_eq!(map.take(report(1, "", "", 1, 9)), Taken::Stale, "an old leader of the parent");
        assert_eq!(routes(&map, "z", 10), ["r2 [m, )"]);
    }
}

#[test]
fn what_is_left_of_an_older_region_lies_before_or_after_the_newer_one() {
    let mut map = RegionMap::default();
    map.take(report(1, "b", "y", 1, 1));
    map.take(report(2, "p", "y", 2, 1));
    assert_eq!(routes(&map, "b", 10), ["r1 [b, p)", "r2 [p, y)"]);
    map.take(report(3, "b", "e", 3, 1));
    assert_eq!(routes(&map, "b", 10), ["r3 [b, e)", "r1 [e, p)", "r2 [p, y)"]);
    map.take(report(4, "g", "h", 4, 1));
    assert_eq!(routes(&map, "b", 10), ["r3 [b, e)", "r1 [e, g)", "r4 [g, h)"], "[h, p) waits for its region's report");
    map.take(report(5, "a", "z", 9, 1));
    assert_eq!(routes(&map, "b", 10), ["r5 [a, z)"]);
    assert_eq!(map.len(), 1);
}

#[test]
fn older_terms_and_epochs_are_refused() {
    let mut map = RegionMap::default();
    map.take(report(1, "a", "c", 3, 7));
    assert_eq!(map.take(report(1, "a", "c", 3, 6)), Taken::Stale);
    assert_eq!(map.take(report(1, "a", "z", 2, 9)), Taken::Stale);
    assert_eq!(map.take(report(2, "b", "z", 3, 9)), Taken::Stale, "an equal version cannot overlap");
    assert_eq!(map.take(report(1, "a", "c", 3, 7)), Taken::New, "the same again changes nothing");
    assert_eq!(map.take(RegionReport::default()), Taken::Stale, "a report without a region");
    assert_eq!(map.take(report(4, "x", "w", 9, 9)), Taken::Stale, "a region without keys");
    assert_eq!(map.len(), 1);
}

#[test]
fn routes_begin_with_the_region_that_holds_the_key_and_end_at_a_hole() {
    let mut map = RegionMap::default();
    for (id, start, end) in [(1, "a", "c"), (2, "c", "f"), (3, "h", "")] {
        map.take(report(id, start, end, 1, 1));
    }
    assert_eq!(routes(&map, "b", 9), ["r1 [a, c)", "r2 [c, f)"]);
    assert_eq!(routes(&map, "b", 1), ["r1 [a, c)"]);
    assert!(routes(&map, "g", 9).is_empty(), "nobody has reported [f, h)");
    assert!(routes(&map, "", 9).is_empty());
    assert_eq!(map.at(b"zz").map(|known| known.region.id), Some(3));
    assert_eq!(map.routes(b"d", 1)[0].leader_store, 2);
}

#[test]
fn lists_hold_what_shares_keys_with_the_range() {
    let mut map = RegionMap::default();
    for (id, start, end) in [(1, "a", "c"), (2, "c", "f"), (3, "h", "")] {
        map.take(report(id, start, end, 1, 1));
    }
    let list = |start: &'static str, end: &'static str| -> Vec<u64> {
        let states = map.list(&start.into(), &end.into());
        states.iter().filter_map(|state| state.report.as_ref()?.region.as_ref().map(|region| region.id)).collect()
    };
    assert_eq!(list("", ""), [1, 2, 3]);
    assert_eq!(list("b", "d"), [1, 2]);
    assert_eq!(list("c", "d"), [2]);
    assert_eq!(list("f", "h"), [0; 0]);
    assert_eq!(list("", "a"), [0; 0]);
    assert_eq!(list("g", ""), [3]);
    let state = &map.list(&"a".into(), &"b".into())[0];
    assert_eq!((state.leader_store, state.report.as_ref().map(|report| report.approximate_keys)), (2, Some(7)));
}

#[test]
fn the_first_regions_stand_in_until_leaders_report() {
    let mut map = RegionMap::begin_with([region(1, "", "m", 1), region(2, "m", "", 1)]);
    assert_eq!(map.leaderless().len(), 2);
    assert_eq!(map.routes(b"a", 1)[0].leader_store, 0);
    map.take(report(3, "g", "m", 2, 1));
    assert_eq!(routes(&map, "", 9), ["r1 [, g)", "r3 [g, m)", "r2 [m, )"]);
    map.take(report(1, "", "g", 2, 4));
    assert_eq!(map.leaderless().len(), 1);
}

#[test]
fn refusals_teach_regions_and_leaders() {
    let mut map = RegionMap::default();
    map.take(report(1, "", "", 1, 5));
    assert_eq!(map.learn(region(1, "", "m", 2)), Taken::New);
    assert_eq!(map.learn(region(2, "m", "", 2)), Taken::New);
    assert_eq!(map.get(RegionId(1)).map(Known::leader_store), Some(StoreId(2)), "the leader stays");
    assert_eq!(map.get(RegionId(2)).map(Known::leader_store), Some(StoreId::INVALID));
    map.learn_leader(RegionId(2), PeerId(21));
    assert_eq!(map.get(RegionId(2)).map(Known::leader_store), Some(StoreId(1)));
    assert_eq!(map.learn(region(1, "", "", 1)), Taken::Stale);
    assert_eq!(map.learn(region(1, "", "m", 2)), Taken::Stale, "nothing new");
    assert_eq!(map.take(report(2, "m", "", 2, 1)), Taken::New, "a report is better than a hint");
}

#[test]
fn a_store_that_said_everything_leads_nothing_else() {
    let mut map = RegionMap::default();
    map.take(report(1, "", "m", 1, 5));
    map.take(report(2, "m", "", 1, 5));
    map.leads_only(StoreId(2), &HashSet::from([RegionId(2)]));
    map.leads_only(StoreId(1), &HashSet::new());
    assert_eq!(map.get(RegionId(1)).map(Known::leader_store), Some(StoreId::INVALID));
    assert_eq!(map.get(RegionId(2)).map(Known::leader_store), Some(StoreId(2)));
}

#[test]
fn a_peer_is_gone_only_if_a_store_has_said_so_in_this_leaders_time() {
    let lonely = |region_id, peer_id, conf_ver| LonelyPeer {
        region_id,
        peer_id,
        epoch: Some(RegionEpoch { conf_ver, version: 1 }),
    };
    let mut map = RegionMap::begin_with([region(1, "", "m", 1), region(2, "m", "", 1)]);
    assert!(!map.is_gone(&lonely(1, 99, 0)), "what the cluster began with is not what there is");
    let mut changed = report(1, "", "m", 1, 5);
    changed.region.as_mut().unwrap().epoch = Some(RegionEpoch { conf_ver: 4, version: 1 });
    let member = changed.region.as_ref().unwrap().peers[0].id;
    assert_eq!(map.take(changed), Taken::New);
    assert!(map.is_gone(&lonely(1, 99, 3)) && map.is_gone(&lonely(1, 99, 0)));
    assert!(!map.is_gone(&lonely(1, 99, 4)), "it may know more than this leader");
    assert!(!map.is_gone(&lonely(1, member, 0)), "it is a member");
    assert!(!map.is_gone(&lonely(3, 99, 0)), "nothing is known of that region");
    // Cut and merged: only who is covered by another one has ended.
    map.take(report(4, "f", "m", 2, 5));
    assert!(!map.is_gone(&lonely(2, 99, 0)) && !map.is_gone(&lonely(1, 99, 4)));
    let mut left = report(1, "", "f", 2, 5);
    left.region.as_mut().unwrap().epoch = Some(RegionEpoch { conf_ver: 4, version: 2 });
    map.take(left);
    map.take(report(4, "f", "", 3, 5));
    assert!(map.is_gone(&lonely(2, 99, 50)), "its keys are in another region");
    assert!(!map.is_gone(&lonely(4, member, 50)) && !map.is_gone(&lonely(1, member, 50)));
}
