//! Members begin the group together, and one that has lost its folder never speaks as the peer it was.

use std::sync::atomic::Ordering;

use braid_proto::pb::JoinRequest;
use braid_proto::pb::members_server::Members as _;

use super::recovery::{allocate, same_state};
use super::*;

impl Group {
    /// Three members with folders that nobody has used, of whom these get no answers from the others.
    async fn start_anew(deaf: &[u64]) -> Self {
        let mut group = Self::start(3).await;
        for id in 1..=3 {
            group.kill(id).await;
            group.lose_folder(id);
        }
        deaf.iter().for_each(|id| group.net.deafen(*id));
        for id in 1..=3 {
            group.open(id).await;
        }
        group
    }

    /// The peers of the group, as its leader has them: member, peer, whether it votes.
    async fn peers(&self) -> Vec<(u64, u64, bool)> {
        let region = self.leader().await.host.handle(REGION).expect("it leads").region();
        region.peers.iter().map(|peer| (peer.store_id, peer.id, !peer.learner)).collect()
    }

    /// Gives a member that does not run an empty folder.
    fn lose_folder(&mut self, id: u64) {
        assert!(!self.members.contains_key(&id), "it runs");
        self.dirs.insert(id, TempDir::new().expect("a folder"));
    }

    async fn votes_as(&self, id: u64) -> u64 {
        eventually("the member votes", async || {
            let peers = self.peers().await;
            let here = self.members[&id].host.handle(REGION)?.peer();
            peers.contains(&(id, here.id, true)).then_some(here.id)
        })
        .await
    }

    /// A member that does not lead.
    async fn follower(&self) -> u64 {
        self.leader().await;
        (1..=3).find(|id| self.members.get(id).is_some_and(|member| !member.leads())).expect("two do not lead")
    }
}

impl Placement {
    fn members(&self) -> MembersService {
        MembersService::new(Arc::clone(&self.shared))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_begins_when_the_last_member_is_there() {
    let mut group = Group::start(3).await;
    for id in 1..=3 {
        group.kill(id).await;
        group.lose_folder(id);
    }
    for id in [1, 2] {
        group.open(id).await;
    }
    // Long enough for two of three to begin and elect, if they could.
    tokio::time::sleep(group.tuning.timing.election() * 5).await;
    for id in [1, 2] {
        let member = &group.members[&id];
        assert!(member.host.handle(REGION).is_none() && !member.leads(), "n{id} has begun without n3");
    }
    group.open(3).await;
    group.all_begin().await;
    assert_eq!(group.peers().await, [(1, 1, true), (2, 2, true), (3, 3, true)]);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_there_at_the_beginning_begins_late_with_the_same_folder() {
    let mut group = Group::start_anew(&[3]).await;
    let begun = |id: u64| group.members[&id].host.handle(REGION).is_some();
    eventually("two that begin", async || (begun(1) && begun(2)).then_some(())).await;
    assert!(!begun(3), "nobody answers it");
    group.kill(3).await;
    group.net.heal();
    allocate(&group, 1).await;
    group.open(3).await;
    assert_eq!(group.votes_as(3).await, 3, "it is the peer it would have been");
    same_state(&group, 3).await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_has_lost_its_peer_is_a_lost_folder() {
    let mut group = Group::start(3).await;
    group.leader().await;
    let lost = group.follower().await;
    group.kill(lost).await;
    let dir = group.dirs[&lost].path();
    for part in ["kv", "log", "snap", "IDENT"] {
        let part = dir.join(part);
        if part.is_dir() { std::fs::remove_dir_all(part) } else { std::fs::remove_file(part) }.expect("removed");
    }
    group.open(lost).await;
    assert!(group.votes_as(lost).await > 3);
    same_state(&group, lost).await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_its_folder_takes_part_anew_again_and_again() {
    let mut group = Group::start(3).await;
    let mut known = Vec::new();
    for round in 0..3 {
        allocate(&group, 1).await;
        let lost = group.follower().await;
        group.kill(lost).await;
        group.lose_folder(lost);
        group.open(lost).await;
        let peer = group.votes_as(lost).await;
        assert!(peer > 3 && !known.contains(&peer), "round {round}: peer {peer} after {known:?}");
        known.push(peer);
        same_state(&group, lost).await;
        assert_eq!(group.peers().await.len(), 3);
    }
    assert!(group.net.snapshots.load(Ordering::Acquire) >= 3, "the state came from the others");
    // It counts: with one of the others it is a majority, and it can lead.
    let last = group.follower().await;
    let leader = group.leader().await.id();
    group.kill(leader).await;
    allocate(&group, 1).await;
    same_state(&group, last).await;
    // Folders with a new peer are like any other.
    group.open(leader).await;
    group.kill(last).await;
    group.open(last).await;
    same_state(&group, last).await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_its_folder_takes_part_anew() {
    let mut group = Group::start(3).await;
    allocate(&group, 5).await;
    let lost = group.leader().await.id();
    group.kill(lost).await;
    group.lose_folder(lost);
    group.open(lost).await;
    assert!(group.votes_as(lost).await > 3);
    same_state(&group, lost).await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_second_majority_with_a_member_that_has_forgotten() {
    let mut group = Group::start(3).await;
    group.leader().await;
    // Whatever is decided now, one of the two who decide forgets it, and the other one is away.
    let behind = group.follower().await;
    group.net.isolate(behind);
    let ids = allocate(&group, 7).await;
    let lost = group.leader().await.id();
    let away = (1..=3).find(|id| *id != lost && *id != behind).expect("three members");
    group.kill(lost).await;
    group.kill(away).await;
    group.net.heal();
    group.lose_folder(lost);
    group.open(lost).await;
    tokio::time::sleep(group.tuning.timing.election() * 10).await;
    let leads = |id: &u64| group.members[id].leads();
    assert!(![lost, behind].iter().any(leads), "a majority of one that forgot and one that never knew");
    group.open(away).await;
    assert!(allocate(&group, 1).await >= ids + 7, "ids are not given twice");
    assert!(group.votes_as(lost).await > 3);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_takes_part_cannot_be_replaced() {
    let mut group = Group::start(3).await;
    let follower = group.follower().await;
    let before = group.peers().await;
    let request = JoinRequest { cluster_id: CLUSTER.0, member_id: follower, peer_id: 0 };
    let answer = group.leader().await.members().join(Request::new(request)).await.expect("answered").into_inner();
    assert!(answer.waits.contains("takes part as peer"), "{answer:?}");
    assert_eq!(group.peers().await, before);
    let stranger = JoinRequest { cluster_id: 1, ..request };
    assert!(group.leader().await.members().join(Request::new(stranger)).await.is_err());
    group.stop_all().await;
}
