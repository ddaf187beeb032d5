//! A young cluster: stores join, the first regions are made, once, whoever leads.

use std::collections::BTreeSet;

use braid_proto::pb::StoreStats;

use super::*;

/// Registers `n1` to `n<count>` and returns their ids.
async fn join(group: &Group, count: u64) -> Vec<u64> {
    let mut ids = Vec::new();
    for store in 1..=count {
        ids.push(group.register(newcomer(&format!("n{store}"))).await.store_id);
    }
    ids
}

/// Lets the stores report what they lead until placement has what it waits for.
async fn bootstrapped(group: &Group, stores: &[u64]) {
    let reported = async || {
        for store in stores {
            group.beat(group.stores.full_beat(*store)).await;
        }
        group.status().await.bootstrapped.then_some(())
    };
    eventually("every first region has a leader", reported).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_regions_wait_for_their_stores_and_are_created_with_the_leader_last() {
    let mut group = Group::start(3).await;
    let mut ids = join(&group, 2).await;
    let status = group.status().await;
    assert_eq!((status.bootstrapped, status.waiting_for.as_str()), (false, "2 of 3 stores have joined"));
    let routes = group.routes().await;
    assert_eq!((routes.routes.len(), routes.not_ready.as_str()), (0, "2 of 3 stores have joined"));
    ids.push(group.register(newcomer("n3")).await.store_id);
    bootstrapped(&group, &ids).await;

    let routes = group.routes().await;
    assert_eq!(routes.not_ready, "");
    let regions: Vec<Region> = routes.routes.iter().filter_map(|route| route.region.clone()).collect();
    let bounds: Vec<_> = regions.iter().map(|region| (&region.start[..], &region.end[..])).collect();
    assert_eq!(bounds, [(&b""[..], &b"\x20g"[..]), (b"\x20g", b"\x20p"), (b"\x20p", b"")]);
    let leaders: Vec<u64> = routes.routes.iter().map(|route| route.leader_store).collect();
    assert_eq!(leaders.iter().collect::<BTreeSet<_>>().len(), 3, "each store leads one: {leaders:?}");
    // Whoever planned it, region 1 is led in the planner's process; the others' peers were there before the leader's.
    let creations = group.stores.creations();
    for region in &regions {
        let told: Vec<u64> =
            creations.iter().filter(|(_, ids)| ids.contains(&region.id)).map(|(store, _)| *store).collect();
        assert_eq!(told.last(), Some(&region.peers[0].store_id), "{told:?}");
    }

    // The next leader neither plans nor creates anything, and knows the regions before anybody reports them.
    let created = group.stores.creations().len();
    let first = group.leader().await.id();
    group.kill(first).await;
    assert_eq!(group.routes().await.routes.len(), 3);
    bootstrapped(&group, &ids).await;
    assert_eq!(group.stores.creations().len(), created);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_does_not_keep_the_others_from_beginning() {
    let mut group = Group::start(1).await;
    group.config.replicas = 3;
    let ids = join(&group, 2).await;
    group.stores.take_down(ids[0] + 2);
    let third = group.register(newcomer("n3")).await.store_id;
    assert_eq!(third, ids[0] + 2);
    bootstrapped(&group, &ids).await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_takes_over_in_the_middle_goes_on() {
    let mut group = Group::start(3).await;
    let ids = join(&group, 3).await;
    eventually("stores are told", async || (!group.stores.creations().is_empty()).then_some(())).await;
    // Nobody has reported a leader when this one dies.
    let first = group.leader().await.id();
    group.kill(first).await;
    bootstrapped(&group, &ids).await;
    let regions: BTreeSet<u64> = group.stores.creations().into_iter().flat_map(|(_, regions)| regions).collect();
    assert_eq!(regions.len(), 3, "the same regions, not new ones");
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_join_and_under_which_id() {
    let mut group = Group::start(1).await;
    let leader = group.leader().await;
    let n1 = leader.register(newcomer("n1")).await;
    assert_eq!((n1.store_id, n1.header.map(|header| header.cluster_id)), (1, Some(CLUSTER.0)));
    assert_eq!(leader.register(newcomer("n1")).await.store_id, 1, "its answer was lost");
    let moved = RegisterStoreRequest { store_id: 1, peer_addr: "elsewhere:1".into(), ..newcomer("n1") };
    assert_eq!(leader.register(moved).await.store_id, 1);
    assert_eq!(
        leader.beat(StoreHeartbeatRequest { incarnation: 1, ..group.stores.full_beat(1) }).await.stores[0].peer_addr,
        "elsewhere:1"
    );

    let failed = async |request| leader.register(request).await.failed;
    let unknown = RegisterStoreRequest { store_id: 9, ..newcomer("n9") };
    assert!(failed(unknown).await.contains("no store s9; give the store an empty folder"));
    let foreign = RegisterStoreRequest { store_id: 1, cluster_id: 5, ..newcomer("n1") };
    assert!(failed(foreign).await.contains("belongs to cluster c5, this is cluster c77"));
    let nameless = RegisterStoreRequest { name: String::new(), ..newcomer("n9") };
    assert!(failed(nameless).await.contains("must say a name"));

    let beat = |store, incarnation, cluster_id| StoreHeartbeatRequest {
        incarnation,
        cluster_id,
        ..group.stores.full_beat(store)
    };
    assert!(leader.beat(beat(9, 1, CLUSTER.0)).await.failed.contains("s9"));
    assert!(leader.beat(beat(1, 1, 5)).await.failed.contains("c5"));
    assert_eq!(leader.beat(beat(1, 4, CLUSTER.0)).await.failed, "");
    assert!(leader.beat(beat(1, 3, CLUSTER.0)).await.failed.contains("started again since"));
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_do_not_lead_say_who_does() {
    let mut group = Group::start(3).await;
    let leader = group.leader().await.id();
    for member in group.members.values().filter(|member| member.id() != leader) {
        let refused =
            async || member.status().await.header.filter(|header| header.not_leader == format!("n{leader}:1"));
        let header = eventually("a follower knows its leader", refused).await;
        assert!(header.refused);
        assert_eq!(member.register(newcomer("n1")).await.store_id, 0);
        assert!(member.routes(b"").await.header.is_some_and(|header| header.refused));
    }
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_has_heard_more_than_was_given_out_stops_the_sequencer() {
    // H47, through a heartbeat: this cluster's placement was restored from a copy.
    let mut group = Group::start(1).await;
    let leader = group.leader().await;
    leader.register(newcomer("n1")).await;
    let heard = |heard_revision| StoreHeartbeatRequest {
        stats: Some(StoreStats { heard_revision, ..Default::default() }),
        ..group.stores.full_beat(1)
    };
    leader.beat(heard(1)).await;
    assert_eq!(leader.shared.office.status().behind, None);
    leader.beat(heard(50_000)).await;
    assert!(leader.status().await.waiting_for.contains("@50000"));
    group.stop_all().await;
}
