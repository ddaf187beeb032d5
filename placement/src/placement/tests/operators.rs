//! Operators' orders against stores that refuse, move and lose answers.

use braid_proto::id::StoreId;
use braid_proto::pb::admin_server::Admin as _;
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{
    AdminSplitRequest, AdminSplitResponse, AdminTransferLeaderRequest, Busy, DiskFull, RegionListRequest, RegionState,
    StoreListRequest,
};

use super::*;

/// One member and three stores whose first regions have leaders.
async fn running() -> (Group, AdminService, [u64; 3]) {
    let group = Group::start(1).await;
    let leader = group.leader().await;
    let mut ids = [0; 3];
    for (store, id) in (1..).zip(&mut ids) {
        *id = leader.register(newcomer(&format!("n{store}"))).await.store_id;
    }
    let begun = async || {
        report(&group, &ids).await;
        leader.status().await.bootstrapped.then_some(())
    };
    eventually("the cluster has begun", begun).await;
    let admin = AdminService::new(Arc::clone(&leader.shared));
    (group, admin, ids)
}

async fn report(group: &Group, stores: &[u64]) {
    for store in stores {
        group.leader().await.beat(group.stores.full_beat(*store)).await;
    }
}

async fn split(admin: &AdminService, key: &'static [u8]) -> AdminSplitResponse {
    let request = AdminSplitRequest { key: Bytes::from_static(key), ..Default::default() };
    admin.region_split(Request::new(request)).await.expect("answered").into_inner()
}

async fn transfer(admin: &AdminService, region: u64, to: u64) -> String {
    let request = AdminTransferLeaderRequest { region_id: region, to_store: to };
    admin.region_transfer_leader(Request::new(request)).await.expect("answered").into_inner().failed
}

async fn regions(admin: &AdminService) -> Vec<RegionState> {
    let answer = admin.region_list(Request::new(RegionListRequest::default())).await.expect("answered");
    answer.into_inner().regions
}

fn region(state: &RegionState) -> Region {
    state.report.as_ref().and_then(|report| report.region.clone()).expect("a region")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_makes_both_halves_known_at_once() {
    let (mut group, admin, ids) = running().await;
    let answer = split(&admin, b"\x20k").await;
    assert_eq!(answer.failed, "");
    let (left, right) = (answer.left.expect("left"), answer.right.expect("right"));
    assert_eq!((&left.start[..], &left.end[..], &right.end[..]), (&b"\x20g"[..], &b"\x20k"[..], &b"\x20p"[..]));
    let listed = regions(&admin).await;
    assert_eq!(listed.len(), 4);
    assert_eq!(region(&listed[2]), right);
    assert_eq!(listed[1].leader_store, listed[2].leader_store);
    report(&group, &ids).await;
    assert_eq!(regions(&admin).await.len(), 4);

    let same = split(&admin, b"\x20k").await.failed;
    assert!(same.contains("starts at that key already; there is nothing to split"), "{same}");
    for outside in [&b""[..], b"\x20", b"\x10abc"] {
        let outside = split(&admin, outside).await.failed;
        assert!(outside.contains("key of user data"), "{outside}");
    }
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_follows_leaders_and_epochs_that_placement_has_not_heard_of() {
    let (mut group, admin, ids) = running().await;
    // The leader moved and the region was split, and nobody has told placement.
    let known = regions(&admin).await[1].clone();
    let id = region(&known).region_id();
    let to = ids.into_iter().find(|store| *store != known.leader_store).expect("another store");
    let moved = group.stores.transfer_unheard(id, to);
    assert_ne!(moved, known.leader_store);
    group.stores.split_unheard(id, b"\x20m", 9_000);
    group.stores.refuse_next_split(Reason::Busy(Busy { what: "another split".into(), retry_after_ms: 1 }));
    let answer = split(&admin, b"\x20k").await;
    assert_eq!(answer.failed, "");
    assert_eq!(answer.right.map(|right| right.end), Some(Bytes::from_static(b"\x20m")));
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_whose_answer_was_lost_is_recognised() {
    let (mut group, admin, ids) = running().await;
    group.stores.lose_next_split_answer();
    let mut order = Box::pin(split(&admin, b"\x20k"));
    let mut beats = tokio::time::interval(Duration::from_millis(20));
    let answer = loop {
        tokio::select! {
            answer = &mut order => break answer,
            _ = beats.tick() => report(&group, &ids).await,
        }
    };
    assert_eq!(answer.failed, "");
    assert_eq!(answer.right.map(|right| right.start), Some(Bytes::from_static(b"\x20k")));
    assert_eq!(answer.left.map(|left| left.end), Some(Bytes::from_static(b"\x20k")));
    report(&group, &ids).await;
    assert_eq!(regions(&admin).await.len(), 4);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_get_better_fails_at_once() {
    let (mut group, admin, _) = running().await;
    group.stores.refuse_next_split(Reason::DiskFull(DiskFull {}));
    let failed = split(&admin, b"\x20k").await.failed;
    assert!(failed.contains("disk is full"), "{failed}");
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_to_a_store_with_a_voter_and_nowhere_else() {
    let (mut group, admin, ids) = running().await;
    let known = regions(&admin).await[0].clone();
    let id = region(&known).id;
    for to in ids {
        assert_eq!(transfer(&admin, id, to).await, "");
        assert_eq!(group.stores.leader_of(RegionId(id)), to);
        assert_eq!(regions(&admin).await[0].leader_store, to);
    }
    let unknown = transfer(&admin, id, 4_000).await;
    assert!(unknown.contains("there is no store s4000"), "{unknown}");
    let elsewhere = group.leader().await.register(newcomer("n4")).await.store_id;
    let elsewhere = transfer(&admin, id, elsewhere).await;
    assert!(elsewhere.contains("holds no peer of"), "{elsewhere}");
    let region = transfer(&admin, 5_000, ids[0]).await;
    assert!(region.contains("no region r5000"), "{region}");
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_are_listed_with_what_they_say() {
    let (mut group, admin, ids) = running().await;
    let listed = admin.store_list(Request::new(StoreListRequest {})).await.expect("answered").into_inner().stores;
    let stores: Vec<_> =
        listed.iter().filter_map(|state| state.store.as_ref().map(|store| StoreId(store.id))).collect();
    assert_eq!(stores, ids.map(StoreId));
    assert!(listed.iter().all(|state| state.state == "up" && state.seconds_since_heartbeat < 5), "{listed:?}");
    group.stop_all().await;
}
