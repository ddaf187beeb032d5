//! Pure tests of what merges make of regions.

use braid_proto::pb::Peer;

use super::*;

fn epoch(conf_ver: u64, version: u64) -> RegionEpoch {
    RegionEpoch { conf_ver, version }
}

fn region(id: u64, start: &'static str, end: &'static str, at: RegionEpoch) -> Region {
    let peers = (1..=3).map(|store| Peer::voter(id * 10 + store, store)).collect();
    Region { id, start: start.into(), end: end.into(), epoch: Some(at), peers }
}

fn left() -> Region {
    region(1, "", "m", epoch(3, 7))
}

fn right() -> Region {
    region(2, "m", "", epoch(5, 4))
}

fn freeze(source: &Region, target: &Region) -> Freeze {
    let RegionEpoch { conf_ver, version } = source.region_epoch();
    Freeze { conf_ver, version, target: Some(target.clone()) }
}

fn merge(target: &Region, source: &Region) -> Merge {
    Merge { epoch: target.epoch, source: Some(source.clone()) }
}

#[test]
fn the_target_takes_in_its_left_or_its_right_neighbour() {
    for (target, source, version) in [(left(), right(), 8), (right(), left(), 9)] {
        let (source, state) = frozen(&source, None, &freeze(&source, &target)).unwrap();
        assert_eq!(state, Frozen { target: target.region_id(), epoch: target.region_epoch() });
        let whole = merged(&target, None, &merge(&target, &source)).unwrap();
        assert_eq!((&whole.start[..], &whole.end[..]), (&b""[..], &b""[..]));
        assert_eq!(whole.region_epoch(), RegionEpoch { version, ..target.region_epoch() });
        assert_eq!((whole.id, &whole.peers), (target.id, &target.peers));
    }
    let (a, b) = (region(1, "b", "d", epoch(1, 1)), region(2, "d", "f", epoch(1, 9)));
    let whole = merged(&a, None, &merge(&a, &b)).unwrap();
    assert_eq!((&whole.start[..], &whole.end[..]), (&b"b"[..], &b"f"[..]));
    assert_eq!(whole.region_epoch(), epoch(1, 10));
    let whole = merged(&b, None, &merge(&b, &a)).unwrap();
    assert_eq!((&whole.start[..], &whole.end[..]), (&b"b"[..], &b"f"[..]));
}

#[test]
fn a_freeze_raises_the_version_and_keeps_the_rest() {
    let (source, _) = frozen(&left(), None, &freeze(&left(), &right())).unwrap();
    assert_eq!(source, Region { epoch: Some(epoch(3, 8)), ..left() });
}

#[test]
fn what_does_not_fit_is_refused() {
    let joint = |mut region: Region| {
        region.peers[0].changing = true;
        region
    };
    let learner = |mut region: Region| {
        region.peers[2].learner = true;
        region
    };
    let elsewhere = |mut region: Region| {
        region.peers[2].store_id = 4;
        region
    };
    let fewer = |mut region: Region| {
        region.peers.pop();
        region
    };
    let pairs = [
        (left(), left()),
        (left(), joint(right())),
        (joint(left()), right()),
        (left(), learner(right())),
        (learner(left()), right()),
        (left(), elsewhere(right())),
        (left(), fewer(right())),
        (fewer(left()), right()),
        (left(), Region { start: "n".into(), ..right() }),
        (Region { end: "k".into(), ..left() }, right()),
        // Empty bounds are the ends of everything, and no border.
        (
            Region { end: "".into(), start: "n".into(), ..left() },
            Region { end: "m".into(), start: "".into(), ..right() },
        ),
        (Region { peers: Vec::new(), ..left() }, Region { peers: Vec::new(), ..right() }),
    ];
    for (source, target) in pairs {
        assert!(frozen(&source, None, &freeze(&source, &target)).is_err(), "{source:?} into {target:?}");
        assert!(merged(&target, None, &merge(&target, &source)).is_err(), "{source:?} into {target:?}");
    }
    for wrong in
        [Freeze { version: 6, ..freeze(&left(), &right()) }, Freeze { conf_ver: 4, ..freeze(&left(), &right()) }]
    {
        assert!(frozen(&left(), None, &wrong).is_err());
    }
    assert!(frozen(&left(), None, &Freeze { target: None, ..freeze(&left(), &right()) }).is_err());
    assert!(frozen(&left(), None, &freeze(&left(), &Region { epoch: None, ..right() })).is_err());
}

#[test]
fn a_frozen_region_does_nothing_but_thaw() {
    let state = Some(Frozen { target: RegionId(2), epoch: epoch(5, 4) });
    assert!(frozen(&left(), state, &freeze(&left(), &right())).unwrap_err().contains("frozen"));
    assert!(merged(&left(), state, &merge(&left(), &right())).unwrap_err().contains("frozen"));
    assert!(bumped(&left(), state, &Bump { epoch: left().epoch }).unwrap_err().contains("frozen"));
    assert!(refuse_frozen(state).is_err() && refuse_frozen(None).is_ok());
}

#[test]
fn merge_and_bump_need_the_whole_epoch_and_rule_each_other_out() {
    let (target, source) = (left(), right());
    for other in [epoch(3, 6), epoch(3, 8), epoch(2, 7), epoch(4, 7)] {
        assert!(bumped(&target, None, &Bump { epoch: Some(other) }).is_err());
        assert!(merged(&target, None, &Merge { epoch: Some(other), ..merge(&target, &source) }).is_err());
    }
    let later = bumped(&target, None, &Bump { epoch: target.epoch }).unwrap();
    assert_eq!(later, Region { epoch: Some(epoch(3, 8)), ..target.clone() });
    assert!(merged(&later, None, &merge(&target, &source)).is_err());
    let whole = merged(&target, None, &merge(&target, &source)).unwrap();
    assert!(bumped(&whole, None, &Bump { epoch: target.epoch }).is_err());
}

#[test]
fn only_a_target_that_has_moved_on_without_it_thaws_a_region() {
    let (source, state) = frozen(&left(), None, &freeze(&left(), &right())).unwrap();
    let proof = |at: RegionEpoch| Thaw { proof: Some(Region { epoch: Some(at), ..right() }) };
    for (at, proves) in [
        (epoch(5, 4), false),
        (epoch(4, 4), false),
        (epoch(5, 3), false),
        (epoch(5, 5), true),
        (epoch(6, 4), true),
        (epoch(6, 3), true),
    ] {
        assert_eq!(thawed(&source, Some(state), &proof(at)).is_ok(), proves, "{at}");
    }
    let after = thawed(&source, Some(state), &proof(epoch(5, 5))).unwrap();
    assert_eq!(after, Region { epoch: Some(epoch(3, 9)), ..left() });
    assert!(thawed(&source, None, &proof(epoch(5, 5))).is_err());
    let whole = Region { start: "".into(), epoch: Some(epoch(5, 9)), ..right() };
    assert!(thawed(&source, Some(state), &Thaw { proof: Some(whole) }).unwrap_err().contains("taken it in"));
    let other = Region { id: 7, epoch: Some(epoch(9, 9)), ..right() };
    assert!(thawed(&source, Some(state), &Thaw { proof: Some(other) }).is_err());
    assert!(thawed(&source, Some(state), &Thaw { proof: None }).is_err());
}

#[test]
fn what_was_taken_in_is_remembered_up_to_a_bound() {
    assert_eq!(absorbed(vec![3], vec![5, 6], 4), [3, 5, 6, 4]);
    let many = absorbed((0..5000).collect(), vec![], 9999);
    assert_eq!((many.len(), many.first(), many.last()), (ABSORBED_MAX, Some(&905), Some(&9999)));
}
