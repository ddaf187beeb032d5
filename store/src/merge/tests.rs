use braid_proto::pb::Peer;

use super::*;

fn region(id: u64, start: &'static str, end: &'static str, (conf_ver, version): (u64, u64)) -> Region {
    Region {
        id,
        start: start.into(),
        end: end.into(),
        epoch: Some(RegionEpoch { conf_ver, version }),
        peers: (1..=3).map(|store| Peer::voter(10 * id + store, store)).collect(),
    }
}

#[test]
fn only_neighbours_on_the_same_voters_are_merged() {
    let (left, right) = (region(1, "", "m", (1, 2)), region(2, "m", "", (1, 2)));
    assert_eq!(check(&left, &right), Ok(()));
    assert_eq!(check(&right, &left), Ok(()));
    let wrong = |change: &dyn Fn(&mut Region)| {
        let mut other = right.clone();
        change(&mut other);
        check(&left, &other).unwrap_err()
    };
    assert!(wrong(&|other| other.id = 1).contains("with itself"));
    assert!(wrong(&|other| other.start = "n".into()).contains("not neighbours"));
    assert!(wrong(&|other| other.peers[2].learner = true).contains("learner"));
    assert!(wrong(&|other| other.peers[2].changing = true).contains("change of its voters"));
    assert!(wrong(&|other| other.peers[2].store_id = 4).contains("different stores"));
    // Both reach to the end: their empty ends and starts do not meet.
    assert!(check(&region(1, "", "", (1, 2)), &region(2, "", "", (1, 2))).unwrap_err().contains("not neighbours"));
}

#[test]
fn only_a_newer_region_with_all_keys_has_taken_a_frozen_one() {
    let source = region(2, "m", "t", (1, 100));
    assert!(has_taken(&region(1, "", "t", (1, 101)), &source));
    assert!(has_taken(&region(9, "f", "", (1, 500)), &source), "whoever that one has gone into");
    assert!(!has_taken(&region(1, "", "t", (1, 100)), &source), "from before");
    assert!(!has_taken(&region(1, "", "s", (1, 101)), &source));
    assert!(!has_taken(&region(2, "m", "t", (1, 101)), &source), "itself, thawed");
}

#[test]
fn a_target_that_left_the_epoch_without_the_keys_disproves_the_merge() {
    let epoch = RegionEpoch { conf_ver: 4, version: 7 };
    let frozen = Frozen { target: RegionId(1), epoch };
    let source = region(2, "m", "t", (1, 8));
    let target = |id, conf_ver, version| region(id, "", "m", (conf_ver, version));
    assert!(disproves(&target(1, 4, 8), &frozen, &source), "given up, or split");
    assert!(disproves(&target(1, 5, 7), &frozen, &source), "other peers");
    assert!(disproves(&target(1, 9, 12), &frozen, &source));
    assert!(!disproves(&target(1, 4, 7), &frozen, &source), "it may still happen");
    assert!(!disproves(&target(1, 4, 6), &frozen, &source), "old news");
    assert!(!disproves(&target(3, 4, 8), &frozen, &source), "another region");
    assert!(!disproves(&region(1, "", "t", (4, 9)), &frozen, &source), "it has happened");
}

#[test]
fn ended_regions_are_found_through_several_merges_and_forgotten_in_order() {
    let peers = Peers::default();
    let ended = Ended::default();
    let told = |id| match ended.refusal(&peers, RegionId(id)).reason {
        Some(refused::Reason::EpochMismatch(mismatch)) => Some(mismatch.current[0].id),
        Some(refused::Reason::RegionNotFound(_)) => None,
        other => panic!("{other:?}"),
    };
    ended.insert(RegionId(3), region(2, "m", "", (1, 10)));
    ended.insert(RegionId(2), region(1, "", "", (1, 20)));
    assert_eq!((told(3), told(2), told(1)), (Some(1), Some(1), None));
    for id in 100..100 + ENDED_MAX as u64 - 1 {
        ended.insert(RegionId(id), region(1, "", "", (1, id)));
    }
    assert_eq!((told(3), told(2), told(100)), (None, Some(1), Some(1)));
}
