//! The end of stores: removed by an administrator, or replaced by one of the same name with an empty folder.

use braid_proto::id::StoreId;
use braid_proto::pb::MovePeer;
use braid_proto::pb::region_plan_request::Plan as Wanted;

use super::scheduling::{World, paused};
use super::*;

/// Longer than it takes until a store counts as silent.
async fn silence() {
    tokio::time::sleep(crate::presence::DISCONNECTED + Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_store_is_rebuilt_at_once_and_refused_for_ever() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let store = world.ids[0];
    let alive = world.remove(store, true).await;
    assert!(alive.contains("is up and holds") && alive.contains("store drain"), "{alive}");
    let unknown = world.remove(9_999, false).await;
    assert!(unknown.contains("there is no store s9999"), "{unknown}");
    world.group.stores.take_down(store);
    let silent = async |world: &World| (world.store(store).await.state == "disconnected").then_some(());
    world.until("the store is silent", silent).await;
    assert_eq!(world.remove(store, false).await, "");
    assert_eq!(world.store(store).await.state, "removed");
    let again = world.remove(store, false).await;
    assert!(again.contains("has been removed"), "{again}");
    assert_eq!(world.schedule(&[], &["repair"], &[]).await, "");
    let rebuilt = async |world: &World| (world.group.stores.held(store) == 0).then_some(());
    world.until("its replicas are elsewhere", rebuilt).await;

    world.group.stores.bring_back(store);
    let beat = world.group.beat(world.group.stores.full_beat(store)).await;
    assert!(
        beat.failed.contains("has been removed from the cluster") && beat.failed.contains("empty folder"),
        "{}",
        beat.failed
    );
    let register = RegisterStoreRequest { store_id: store, cluster_id: CLUSTER.0, ..newcomer("n1") };
    let register = world.group.register(register).await;
    assert!(register.failed.contains("never comes back"), "{}", register.failed);
    // Other stores are not told of it any more, and its name is free.
    let other = world.group.beat(world.group.stores.full_beat(world.ids[1])).await;
    assert!(other.stores.iter().all(|known| known.id != store));
    let anew = world.group.register(newcomer("n1")).await;
    assert!(anew.failed.is_empty() && !world.ids.contains(&anew.store_id), "{anew:?}");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_not_removed_while_regions_need_it_unless_it_must_be() {
    let mut world = World::start(1, 3, paused).await;
    world.until_ready().await;
    for store in [world.ids[0], world.ids[1]] {
        world.group.stores.take_down(store);
    }
    silence().await;
    world.beat_all().await;
    let needed = world.remove(world.ids[0], false).await;
    assert!(needed.contains("would have no quorum") && needed.contains("--force"), "{needed}");
    let health = world.health().await;
    assert!(health.contains("error: 12 regions have no quorum of voters that are well"), "{health}");
    assert!(health.contains("1 stores are in service, 3 replicas of a region need as many"), "{health}");
    assert_eq!(world.remove(world.ids[0], true).await, "");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_its_folder_takes_the_place_of_its_old_self_but_not_of_one_that_lives() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let old = world.ids[0];
    // The old store speaks while the newcomer asks.
    let leader = world.group.leader().await;
    let mut ask = Box::pin(leader.register(newcomer("n1")));
    let refused = loop {
        tokio::select! {
            answer = &mut ask => break answer.failed,
            () = tokio::time::sleep(Duration::from_millis(50)) => world.beat_all().await,
        }
    };
    drop(ask);
    assert!(refused.contains("is up and has the name n1; two stores need two names"), "{refused}");
    let known = RegisterStoreRequest { store_id: world.ids[1], cluster_id: CLUSTER.0, ..newcomer("n1") };
    let renamed = world.group.register(known).await.failed;
    assert!(renamed.contains("the name n1 belongs to"), "{renamed}");

    world.group.stores.take_down(old);
    let answer = world.group.register(newcomer("n1")).await;
    assert_eq!(answer.failed, "");
    assert!(!world.ids.contains(&answer.store_id));
    assert_eq!(world.store(old).await.state, "removed");
    world.ids.push(answer.store_id);
    assert_eq!(world.schedule(&[], &["repair"], &[]).await, "");
    let rebuilt = async |world: &World| (world.group.stores.held(old) == 0).then_some(());
    world.until("its replicas are elsewhere", rebuilt).await;
    assert!(world.group.stores.all_have(3));
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_told_of_a_removed_peer_it_never_asked_about() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let region = world.group.stores.regions()[3].clone();
    let to = *world.ids.iter().find(|id| region.peer_on(StoreId(**id)).is_none()).expect("a store without it");
    let peer = region.peers[1];
    let move_peer = MovePeer { region_id: region.id, from_store: peer.store_id, to_store: to };
    let operator = world.plan(Wanted::MovePeer(move_peer)).await.expect("begun");
    assert_eq!(world.until_ended(operator.id).await.state, "done");
    let told = async || {
        let answer = world.group.beat(world.group.stores.full_beat(peer.store_id)).await;
        answer.gone.first().copied()
    };
    let gone = eventually("the store is told", told).await;
    assert_eq!((gone.region_id, gone.peer_id), (region.id, peer.id));
    let now = world.group.stores.regions()[3].region_epoch();
    assert_eq!(gone.epoch.unwrap_or_default().conf_ver + 1, now.conf_ver, "what has applied more has seen its removal");
    world.group.stop_all().await;
}
