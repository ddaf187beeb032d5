//! Which changes are made of which regions, and that raft makes the same of them.

use raft::eraftpb::Snapshot;
use raft::storage::MemStorage;
use raft::{Config, RawNode};

use super::*;

fn region(peers: &[Peer]) -> Region {
    let epoch = Some(RegionEpoch { conf_ver: 4, version: 2 });
    Region { id: 1, epoch, peers: peers.to_vec(), ..Region::default() }
}

fn three() -> Region {
    region(&[Peer::voter(11, 1), Peer::voter(12, 2), Peer::voter(13, 3), Peer::learner(14, 4)])
}

fn voters(promote: &[u64], demote: &[u64]) -> PeerChange {
    let stores = |ids: &[u64]| ids.iter().copied().map(StoreId).collect();
    PeerChange::Voters { promote: stores(promote), demote: stores(demote) }
}

fn after(region: &Region, change: &PeerChange) -> Region {
    changed(region, &resolve(region, change).unwrap()).unwrap()
}

/// What raft makes of `change`, starting from the configuration of `region`.
fn in_raft(region: &Region, change: &Change) -> ConfState {
    let storage = MemStorage::new();
    storage.wl().apply_snapshot(snapshot(region)).unwrap();
    let config = Config { id: 11, ..Config::default() };
    let mut node = RawNode::new(&config, storage, &slog::Logger::root(slog::Discard, slog::o!())).unwrap();
    let conf_change = conf_change(change);
    assert_ne!(conf_change.enter_joint(), Some(true), "the leader leaves, not raft");
    sorted(node.apply_conf_change(&conf_change).unwrap())
}

fn snapshot(region: &Region) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = 5;
    snapshot.mut_metadata().term = 5;
    snapshot.mut_metadata().set_conf_state(conf_state(&region.peers));
    snapshot
}

fn sorted(mut state: ConfState) -> ConfState {
    state.voters.sort_unstable();
    state.learners.sort_unstable();
    state.voters_outgoing.sort_unstable();
    state.learners_next.sort_unstable();
    state
}

#[test]
fn raft_and_the_region_agree_on_every_step() {
    let mut region = region(&[Peer::voter(11, 1), Peer::voter(12, 2), Peer::voter(13, 3)]);
    let steps = [
        Some(PeerChange::AddLearner(Peer::voter(14, 4))),
        Some(PeerChange::AddLearner(Peer::learner(15, 5))),
        Some(voters(&[4], &[])),
        Some(voters(&[], &[4])),
        Some(voters(&[4, 5], &[2, 3])),
        None,
        Some(PeerChange::Remove(StoreId(2))),
        Some(PeerChange::Remove(StoreId(3))),
        Some(voters(&[], &[4, 5])),
        None,
    ];
    for step in steps {
        let change = step.as_ref().map_or_else(|| leave(&region), |change| resolve(&region, change).unwrap());
        let next = changed(&region, &change).unwrap();
        assert_eq!(in_raft(&region, &change), sorted(conf_state(&next.peers)), "{step:?}");
        assert_eq!(next.region_epoch().conf_ver, region.region_epoch().conf_ver + 1);
        assert_eq!(next.region_epoch().version, region.region_epoch().version);
        let (context, data) = encode(&change);
        assert_eq!(decode(&context, &data), Ok(change));
        region = next;
    }
    let left = [Peer::voter(11, 1), Peer::learner(14, 4), Peer::learner(15, 5)];
    assert_eq!(region.peers, left);
}

#[test]
fn a_change_of_several_voters_counts_both_sets() {
    let joint = after(&three(), &voters(&[4], &[3]));
    assert!(joint.is_joint());
    assert_eq!(joint.peers[3], Peer { changing: true, ..Peer::voter(14, 4) });
    assert_eq!(joint.peers[2], Peer { changing: true, ..Peer::learner(13, 3) });
    let state = conf_state(&joint.peers);
    assert_eq!((&state.voters[..], &state.voters_outgoing[..]), (&[11, 12, 14][..], &[11, 12, 13][..]));
    assert_eq!((state.learners.len(), &state.learners_next[..]), (0, &[13][..]));
    assert!(joint.peers.iter().all(votes));
}

#[test]
fn wrong_changes_change_nothing() {
    let three = three();
    for wrong in [
        PeerChange::AddLearner(Peer::learner(15, 4)),
        PeerChange::AddLearner(Peer::learner(14, 5)),
        PeerChange::AddLearner(Peer::learner(0, 5)),
        PeerChange::AddLearner(Peer::learner(15, 0)),
        PeerChange::Remove(StoreId(1)),
        PeerChange::Remove(StoreId(9)),
        voters(&[], &[]),
        voters(&[1], &[]),
        voters(&[4, 4], &[]),
        voters(&[4], &[4]),
        voters(&[], &[4]),
        voters(&[], &[1, 2, 3]),
        voters(&[9], &[]),
    ] {
        assert!(resolve(&three, &wrong).is_err(), "{wrong:?}");
    }
    let change = resolve(&three, &PeerChange::Remove(StoreId(4))).unwrap();
    for stale in [
        Change { conf_ver: 3, ..change.clone() },
        Change { version: 3, ..change.clone() },
        Change { leave: true, ..change.clone() },
        Change { promote: vec![14], ..change.clone() },
        leave(&three),
    ] {
        assert!(changed(&three, &stale).is_err(), "{stale:?}");
    }
    let joint = after(&three, &voters(&[4], &[3]));
    assert!(resolve(&joint, &PeerChange::AddLearner(Peer::learner(15, 5))).is_err());
    assert!(resolve(&joint, &voters(&[], &[2])).is_err());
}
