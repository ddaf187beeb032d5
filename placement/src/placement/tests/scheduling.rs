//! Clusters of stores that carry out what the schedulers order: they come to balance, repair, drain, keep labels; what
//! administrators set outlives leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use braid_proto::id::StoreId;
use braid_proto::pb::admin_server::Admin as _;
use braid_proto::pb::region_plan_request::Plan as Wanted;
use braid_proto::pb::split_region_request::By;
use braid_proto::pb::*;

use super::*;

/// A cluster of which all stores report all the time.
pub struct World {
    pub group: Group,
    pub ids: Vec<u64>,
}

/// Schedulers that look often and repeat soon.
fn lively(setup: &mut Setup) {
    setup.tick = Duration::from_millis(20);
    let config = &mut setup.defaults.config;
    (config.order_retry_ms, config.failed_rest_ms, config.load_settle_ms) = (300, 100, 0);
}

/// The same, but nothing begins before somebody resumes it.
pub fn paused(setup: &mut Setup) {
    lively(setup);
    setup.paused = Kind::ALL.map(|kind| kind.name().to_owned()).to_vec();
}

impl World {
    /// Three replicas of 12 regions.
    pub async fn start(members: u64, stores: usize, setup: fn(&mut Setup)) -> Self {
        let group = Group::start_with(members, |config, tuning| {
            tuning.setup = setup;
            config.split_keys = (0..11).map(|at| Bytes::from(vec![0x20, b'a' + at * 2])).collect();
        })
        .await;
        let mut world = Self { group, ids: Vec::new() };
        for number in 1..=3 {
            world.join(&format!("n{number}")).await;
        }
        let begun = async |world: &World| world.group.status().await.bootstrapped.then_some(());
        world.until("the cluster has begun", begun).await;
        for number in 4..=stores {
            world.join(&format!("n{number}")).await;
        }
        world
    }

    pub async fn join(&mut self, name: &str) -> u64 {
        let joined = self.group.register(newcomer(name)).await;
        assert_eq!(joined.failed, "");
        self.ids.push(joined.store_id);
        joined.store_id
    }

    pub async fn beat_all(&self) {
        for id in self.ids.iter().filter(|id| !self.group.stores.is_down(**id)) {
            self.group.beat(self.group.stores.full_beat(*id)).await;
        }
    }

    /// Lets the stores report until `look` sees what it looks for.
    pub async fn until<T>(&self, what: &str, look: impl AsyncFn(&World) -> Option<T>) -> T {
        let last = AtomicUsize::new(0);
        let seen = tokio::time::timeout(LIMIT, async {
            loop {
                self.beat_all().await;
                if let Some(seen) = look(self).await {
                    return seen;
                }
                last.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        match seen.await {
            Ok(seen) => seen,
            Err(_) => {
                let (balance, schedulers) = (self.balance().await, self.schedulers().await);
                let said: Vec<_> = schedulers.schedulers.iter().map(|one| (&one.name, &one.said)).collect();
                let operators = self.operators(false).await;
                panic!("not seen in {LIMIT:?}, {last:?} rounds: {what}\n{balance:?}\n{said:#?}\n{operators:#?}")
            }
        }
    }

    pub async fn admin(&self) -> AdminService {
        AdminService::new(Arc::clone(&self.group.leader().await.shared))
    }

    pub async fn balance(&self) -> BalanceResponse {
        self.admin().await.balance(Request::new(BalanceRequest {})).await.expect("answered").into_inner()
    }

    pub async fn until_balanced(&self) -> BalanceResponse {
        let balanced = async |world: &World| {
            let balance = world.balance().await;
            balance.balanced.then_some(balance)
        };
        self.until("balance", balanced).await
    }

    pub async fn schedulers(&self) -> SchedulerListResponse {
        let request = Request::new(SchedulerListRequest {});
        self.admin().await.scheduler_list(request).await.expect("answered").into_inner()
    }

    pub async fn store(&self, id: u64) -> StoreState {
        let request = Request::new(StoreListRequest {});
        let stores = self.admin().await.store_list(request).await.expect("answered").into_inner().stores;
        stores.into_iter().find(|state| state.store.as_ref().is_some_and(|store| store.id == id)).expect("listed")
    }

    pub async fn set_store(&self, request: StoreSetRequest) -> String {
        self.admin().await.store_set(Request::new(request)).await.expect("answered").into_inner().failed
    }

    pub async fn drain(&self, store_id: u64, drain: bool) -> String {
        self.set_store(StoreSetRequest { store_id, drain: Some(drain), ..Default::default() }).await
    }

    pub async fn remove(&self, store_id: u64, force: bool) -> String {
        let request = Request::new(StoreRemoveRequest { store_id, force });
        self.admin().await.store_remove(request).await.expect("answered").into_inner().failed
    }

    pub async fn schedule(&self, pause: &[&str], resume: &[&str], settings: &[(&str, &str)]) -> String {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = SchedulerSetRequest { pause: names(pause), resume: names(resume), settings };
        self.admin().await.scheduler_set(Request::new(request)).await.expect("answered").into_inner().failed
    }

    pub async fn plan(&self, plan: Wanted) -> Result<OperatorState, String> {
        let request = Request::new(RegionPlanRequest { plan: Some(plan) });
        let answer = self.admin().await.region_plan(request).await.expect("answered").into_inner();
        answer.operator.ok_or(answer.failed)
    }

    pub async fn operators(&self, ended: bool) -> Vec<OperatorState> {
        let request = Request::new(OperatorListRequest { ended, region_id: 0 });
        self.admin().await.operator_list(request).await.expect("answered").into_inner().operators
    }

    pub async fn until_ended(&self, id: u64) -> OperatorState {
        let ended = async |world: &World| {
            world.operators(true).await.into_iter().find(|one| one.id == id && one.state != "running")
        };
        self.until("the operator's end", ended).await
    }

    pub async fn health(&self) -> String {
        let answer = self.admin().await.health(Request::new(HealthRequest {})).await.expect("answered").into_inner();
        let texts = answer.findings.iter().map(|finding| format!("{}: {}", finding.severity, finding.text));
        texts.collect::<Vec<_>>().join("\n")
    }

    /// Whether the leader's schedulers have heard enough.
    pub async fn until_ready(&self) {
        let ready = async |world: &World| {
            let said = world.schedulers().await.schedulers;
            said.iter().all(|one| !one.said.contains("has not heard everything")).then_some(())
        };
        self.until("the schedulers are ready", ready).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_joins_gets_its_share_and_then_nothing_moves() {
    let mut world = World::start(1, 3, lively).await;
    world.until_balanced().await;
    assert_eq!(world.group.stores.changes(), 0, "three stores hold everything already");
    let fourth = world.join("n4").await;
    let moved = async |world: &World| (world.group.stores.held(fourth) >= 8).then_some(());
    world.until("the new store has its share", moved).await;
    let balance = world.until_balanced().await;
    assert!(balance.operators_done > 0 && balance.bytes_moved > 0, "{balance:?}");
    assert!(world.group.stores.all_have(3));
    let state = world.store(fourth).await;
    assert_eq!(state.replicas as usize, world.group.stores.held(fourth));
    assert!((8..=10).contains(&state.replicas) && state.leaders >= 2, "{state:?}");
    assert_eq!(world.health().await, "");
    let done = world.operators(true).await;
    assert!(done.iter().all(|one| one.state == "done" && one.at as usize == one.steps.len()), "{done:#?}");
    let changes = world.group.stores.changes();
    for _ in 0..20 {
        world.beat_all().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.group.stores.changes(), changes, "it is at rest");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_a_store_that_is_down_for_long_are_rebuilt_and_health_says_so_meanwhile() {
    let world = World::start(1, 4, lively).await;
    world.until_balanced().await;
    assert_eq!(world.schedule(&[], &[], &[("store-down-seconds-max", "6")]).await, "");
    let lost = world.ids[0];
    assert!(world.group.stores.held(lost) > 0);
    world.group.stores.take_down(lost);
    let told = async |world: &World| world.health().await.contains("have replicas that do not answer").then_some(());
    world.until("health tells of the replicas", told).await;
    let rebuilt =
        async |world: &World| (world.group.stores.held(lost) == 0 && world.group.stores.all_have(3)).then_some(());
    world.until("the replicas are elsewhere", rebuilt).await;
    let mut world = world;
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_drained_and_tells_how_far_it_is_and_why_it_waits() {
    let mut world = World::start(1, 4, lively).await;
    world.until_balanced().await;
    let store = world.ids[1];
    assert_eq!(world.schedule(&["all"], &[], &[]).await, "");
    assert_eq!(world.drain(store, true).await, "");
    let drain = world.store(store).await.drain.expect("it is drained");
    assert!(drain.replicas_at_start > 0 && drain.replicas_left == drain.replicas_at_start, "{drain:?}");
    assert!(drain.waits_for.contains("the drain scheduler is paused"), "{drain:?}");
    let health = world.health().await;
    assert!(health.contains("the drain of s") && health.contains("schedulers are paused: repair"), "{health}");
    let balance = world.balance().await;
    assert!(!balance.balanced && balance.waits_for.iter().any(|why| why.contains("drain is paused")), "{balance:?}");

    assert_eq!(world.schedule(&[], &["all"], &[]).await, "");
    let empty = async |world: &World| (world.store(store).await.replicas == 0).then_some(());
    world.until("the store is empty", empty).await;
    assert_eq!(world.group.stores.held(store), 0);
    assert!(world.group.stores.all_have(3));
    let drain = world.store(store).await.drain.expect("still drained");
    assert_eq!((drain.replicas_left, drain.leaders_left), (0, 0));
    let too_few = world.drain(world.ids[0], true).await;
    assert!(too_few.contains("there are 2 stores for 3 replicas of each region: add a store first"), "{too_few}");
    // It may come back into service.
    assert_eq!(world.drain(store, false).await, "");
    let back = async |world: &World| (world.group.stores.held(store) > 6).then_some(());
    world.until("it holds its share again", back).await;
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_administrators_set_outlives_a_leader() {
    let mut world = World::start(3, 4, lively).await;
    let store = world.ids[3];
    assert_eq!(
        world.schedule(&["hot", "repair"], &["merge"], &[("split-bytes", "128MiB"), ("hot-factor", "3")]).await,
        ""
    );
    assert_eq!(world.schedule(&[], &["hot"], &[("hot-factor", "")]).await, "");
    let labels = [("zone".to_owned(), "z4".to_owned())].into();
    let set = StoreSetRequest { store_id: store, labels, weight: Some(2.0), drain: None };
    assert_eq!(world.set_store(set).await, "");
    let first = world.group.leader().await.id();
    world.group.kill(first).await;
    let next = world.group.leader().await.id();
    assert_ne!(first, next);
    world.until_ready().await;
    let list = world.schedulers().await;
    let paused: Vec<&str> = list.schedulers.iter().filter(|one| one.paused).map(|one| one.name.as_str()).collect();
    assert_eq!(paused, ["repair"]);
    let setting = |name: &str| list.settings.iter().find(|setting| setting.name == name).cloned().expect("listed");
    assert_eq!(setting("split-bytes").value, (128 << 20).to_string());
    assert_eq!((setting("hot-factor").value, setting("hot-factor").default_value), ("2".into(), "2".into()));
    let state = world.store(store).await;
    assert_eq!(state.weight, 2.0);
    assert_eq!(state.store.expect("a store").labels["zone"], "z4");
    let missing = format!("placement member n{first} at n{first}:1 does not answer, 2 of 3 do");
    let told = async |world: &World| world.health().await.contains(&missing).then_some(());
    world.until("health misses the member", told).await;
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_waits_for_every_store_and_repairs_what_was_left_half_done() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let region = world.group.stores.regions()[0].clone();
    let free = *world.ids.iter().find(|id| region.peer_on(StoreId(**id)).is_none()).expect("a store without it");
    world.group.stores.leave_learner(region.region_id(), 777_777, free);
    world.group.stop(1).await;
    world.group.open(1).await;
    // All but one store report: nobody acts, and nothing can be ordered.
    let (silent, talking) = world.ids.split_last().expect("four stores");
    for id in talking {
        world.group.beat(world.group.stores.full_beat(*id)).await;
    }
    let wanted = Wanted::AddPeer(AddPeer { region_id: region.id, store_id: free });
    let early = world.plan(wanted).await.expect_err("too early");
    assert!(early.contains("has not heard everything yet"), "{early}");
    assert_eq!(world.schedule(&[], &["repair"], &[]).await, "");
    assert_eq!(world.group.stores.changes(), 0);
    world.group.beat(world.group.stores.full_beat(*silent)).await;
    let repaired = async |world: &World| world.group.stores.all_have(3).then_some(());
    world.until("the learner is gone", repaired).await;
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_kept_apart_by_the_labels_that_an_operator_sets() {
    let mut world = World::start(1, 4, lively).await;
    let zones: BTreeMap<u64, &str> = world.ids.iter().copied().zip(["a", "a", "b", "c"]).collect();
    for (store_id, zone) in &zones {
        let labels = [("dc".to_owned(), (*zone).to_owned())].into();
        assert_eq!(world.set_store(StoreSetRequest { store_id: *store_id, labels, ..Default::default() }).await, "");
    }
    assert_eq!(world.schedule(&[], &[], &[("location-labels", "dc")]).await, "");
    let apart = async |world: &World| {
        let spread = |region: &Region| {
            let zones: BTreeSet<&str> = region.peers.iter().map(|peer| zones[&peer.store_id]).collect();
            zones.len() == 3
        };
        world.group.stores.regions().iter().all(spread).then_some(())
    };
    world.until("no region has two replicas in one place", apart).await;
    world.until_balanced().await;
    assert!(apart(&world).await.is_some() && world.group.stores.all_have(3));
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_split_merge_and_move_what_an_administrator_names() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let region = world.group.stores.regions()[4].clone();
    let request = AdminSplitRequest { region_id: region.id, by: By::Size as i32, ..Default::default() };
    let answer = world.admin().await.region_split(Request::new(request)).await.expect("answered").into_inner();
    assert_eq!(answer.failed, "");
    let (left, right) = (answer.left.expect("left"), answer.right.expect("right"));
    assert_eq!((left.id, &left.start, &right.end), (region.id, &region.start, &region.end));
    assert_eq!(left.end, right.start);

    let merge = Wanted::Merge(MergeInto { region_id: right.id, target_id: left.id });
    world.beat_all().await;
    let operator = world.plan(merge).await.expect("begun");
    assert_eq!((operator.by.as_str(), operator.region_id), ("admin", right.id));
    assert_eq!(world.until_ended(operator.id).await.state, "done");
    let merged = world.group.stores.regions();
    assert_eq!((merged.len(), &merged[4].end), (12, &region.end));
    // Its peers are gone for good; others of the same id are not.
    let lonely = |region_id, peer_id, conf_ver| LonelyPeer {
        region_id,
        peer_id,
        epoch: Some(RegionEpoch { conf_ver, version: 1 }),
    };
    let (member, mut beat) = (left.peers[0], world.group.stores.full_beat(world.ids[0]));
    beat.lonely = vec![
        lonely(right.id, right.peers[0].id, 1),
        lonely(left.id, member.id, 0),
        lonely(left.id, 999, 0),
        lonely(left.id, 999, 50),
        lonely(123_456, 999, 0),
    ];
    let gone: Vec<(u64, u64)> =
        world.group.beat(beat).await.gone.iter().map(|peer| (peer.region_id, peer.peer_id)).collect();
    assert_eq!(gone, [(right.id, right.peers[0].id), (left.id, 999)]);

    let free = *world.ids.iter().find(|id| left.peer_on(StoreId(**id)).is_none()).expect("a store without it");
    let from = world.group.stores.leader_of(left.region_id());
    let move_peer = Wanted::MovePeer(MovePeer { region_id: left.id, from_store: from, to_store: free });
    let operator = world.plan(move_peer).await.expect("begun");
    assert_eq!(world.until_ended(operator.id).await.state, "done");
    let moved = world.group.stores.regions()[4].clone();
    assert!(moved.peer_on(StoreId(free)).is_some() && moved.peer_on(StoreId(from)).is_none(), "{moved:?}");
    assert_eq!(world.group.stores.leader_of(left.region_id()), free);

    world.group.stores.know_no_merges();
    let (one, other) = (world.group.stores.regions()[0].id, world.group.stores.regions()[1].id);
    world.beat_all().await;
    let operator = world.plan(Wanted::Merge(MergeInto { region_id: one, target_id: other })).await.expect("begun");
    let ended = world.until_ended(operator.id).await;
    assert_eq!(ended.state, "failed");
    assert!(ended.said.contains("runs a version that cannot do this"), "{}", ended.said);
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scattered_regions_spread_over_all_stores_and_operators_can_be_cancelled() {
    let mut world = World::start(1, 5, paused).await;
    world.until_ready().await;
    let admin = world.admin().await;
    let scatter = admin.scatter(Request::new(ScatterRequest::default())).await.expect("answered").into_inner();
    assert_eq!(scatter.failed, "");
    assert!(scatter.regions > 0);
    let balance = world.balance().await;
    assert!(!balance.balanced, "{balance:?}");
    world.group.stores.refuse_changes(Some("the disk is busy"));
    assert_eq!(world.schedule(&[], &["scatter"], &[]).await, "");
    let failed = async |world: &World| {
        let all = world.operators(true).await;
        all.into_iter().find(|one| one.state == "failed" && one.by == "scatter")
    };
    let failed = world.until("refusals end operators", failed).await;
    assert!(failed.said.contains("the disk is busy"), "{failed:?}");
    world.group.stores.refuse_changes(None);
    let again = admin.scatter(Request::new(ScatterRequest::default())).await.expect("answered").into_inner();
    assert_eq!(again.failed, "");
    let spread = async |world: &World| {
        let held: Vec<usize> = world.ids.iter().map(|id| world.group.stores.held(*id)).collect();
        (held.iter().all(|held| (7..=8).contains(held)) && world.group.stores.all_have(3)).then_some(())
    };
    world.until("every store has its part", spread).await;

    // An operator that waits for its store stands until somebody cancels it.
    assert_eq!(world.schedule(&["scatter"], &[], &[]).await, "");
    let region = world.group.stores.regions()[0].clone();
    let (from, to) =
        (region.peers[0].store_id, *world.ids.iter().find(|id| region.peer_on(StoreId(**id)).is_none()).unwrap());
    let leader = world.group.stores.leader_of(region.region_id());
    world.group.stores.take_down(leader);
    let wanted = Wanted::MovePeer(MovePeer { region_id: region.id, from_store: from, to_store: to });
    let operator = world.plan(wanted).await.expect("begun");
    let list = async |request: RegionListRequest| {
        let listed = world.admin().await.region_list(Request::new(request)).await.expect("answered");
        listed.into_inner().regions
    };
    let one = list(RegionListRequest { region_id: region.id, ..Default::default() }).await;
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].operator.as_ref().map(|one| (one.id, one.state.as_str())), Some((operator.id, "running")));
    let here = list(RegionListRequest { store_id: to, ..Default::default() }).await;
    assert_eq!(here.len(), world.group.stores.held(to));
    assert_eq!(list(RegionListRequest { store_id: to, limit: 2, ..Default::default() }).await.len(), 2);
    let busy = world.plan(wanted).await.expect_err("busy");
    assert!(busy.contains(&format!("o{} is under way", operator.id)), "{busy}");
    let admin = world.admin().await;
    let cancelled = admin.operator_cancel(Request::new(OperatorCancelRequest { region_id: region.id })).await.unwrap();
    assert_eq!(cancelled.into_inner().cancelled, 1);
    let none = admin.operator_cancel(Request::new(OperatorCancelRequest { region_id: region.id })).await.unwrap();
    assert!(none.into_inner().failed.contains("no operator is under way"));
    assert_eq!(world.until_ended(operator.id).await.state, "cancelled");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_by_hand_takes_along_what_an_earlier_plan_left() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let regions = world.group.stores.regions();
    let (source, target) = (regions[0].clone(), regions[1].clone());
    let free = |region: &Region| {
        *world.ids.iter().find(|id| region.peer_on(StoreId(**id)).is_none()).expect("a store without it")
    };
    let merge = Wanted::Merge(MergeInto { region_id: source.id, target_id: target.id });
    let back = Wanted::Merge(MergeInto { region_id: target.id, target_id: source.id });
    world.group.stores.leave_learner(source.region_id(), 777_777, free(&source));
    let heard = async |world: &World| {
        let one = RegionListRequest { region_id: source.id, ..Default::default() };
        let listed = world.admin().await.region_list(Request::new(one)).await.expect("answered").into_inner().regions;
        let region = listed[0].report.as_ref().and_then(|report| report.region.as_ref());
        region.is_some_and(|region| region.peers.len() == 4).then_some(())
    };
    world.until("placement has heard of the learner", heard).await;
    let why = world.plan(back).await.expect_err("a learner is in the way");
    assert!(why.contains(&format!("r{} has a learner left over on s{}", source.id, free(&source))), "{why}");
    let operator = world.plan(merge).await.expect("begun");
    assert_eq!(world.until_ended(operator.id).await.state, "done");
    let left = world.group.stores.regions();
    assert_eq!(left.len(), regions.len() - 1);
    assert!(left.iter().all(|region| region.id != source.id), "{left:?}");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_orders_are_refused_with_what_would_do() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let region = world.group.stores.regions()[0].clone();
    let far = world.group.stores.regions()[7].id;
    let (id, held) = (region.id, region.peers[0].store_id);
    let free = *world.ids.iter().find(|id| region.peer_on(StoreId(**id)).is_none()).expect("a store without it");
    let cases = [
        (Wanted::AddPeer(AddPeer { region_id: 9_999, store_id: free }), "no region r9999; `braid admin region list`"),
        (Wanted::AddPeer(AddPeer { region_id: id, store_id: 9_999 }), "there is no store s9999"),
        (Wanted::AddPeer(AddPeer { region_id: id, store_id: held }), "holds a peer of"),
        (Wanted::RemovePeer(RemovePeer { region_id: id, store_id: free }), "holds no peer of"),
        (Wanted::MovePeer(MovePeer { region_id: id, from_store: free, to_store: free }), "holds no peer of"),
        (Wanted::MovePeer(MovePeer { region_id: id, from_store: held, to_store: held }), "holds a peer of"),
        (Wanted::Merge(MergeInto { region_id: id, target_id: far }), "is no neighbour of"),
        (Wanted::Merge(MergeInto { region_id: id, target_id: id }), "is no neighbour of"),
    ];
    for (plan, text) in cases {
        let failed = world.plan(plan).await.expect_err("refused");
        assert!(failed.contains(text), "{failed:?} lacks {text:?}");
    }
    // As long as repair would undo it at once.
    assert_eq!(world.schedule(&[], &["repair"], &[]).await, "");
    let more = world.plan(Wanted::AddPeer(AddPeer { region_id: id, store_id: free })).await.expect_err("refused");
    assert!(more.contains("the repair scheduler would take another one away again"), "{more}");
    let fewer =
        world.plan(Wanted::RemovePeer(RemovePeer { region_id: id, store_id: held })).await.expect_err("refused");
    assert!(fewer.contains("would have 2 of 3 replicas"), "{fewer}");

    let wrong = world.schedule(&["reparr"], &[], &[]).await;
    assert!(wrong.contains("there is no scheduler reparr; there are repair, labels"), "{wrong}");
    let wrong = world.schedule(&["hot"], &["hot"], &[]).await;
    assert!(wrong.contains("paused and resumed at once"), "{wrong}");
    let wrong = world.schedule(&[], &[], &[("merge-bytes", "90MiB")]).await;
    assert!(wrong.contains("at most a quarter"), "{wrong}");
    let wrong = world.schedule(&[], &[], &[("merge", "90MiB")]).await;
    assert!(wrong.contains("there is no setting merge"), "{wrong}");

    let wrong = world.drain(9_999, true).await;
    assert!(wrong.contains("there is no store s9999"), "{wrong}");
    let set = |weight, label: Option<(&str, &str)>| StoreSetRequest {
        store_id: held,
        weight,
        labels: label.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        ..Default::default()
    };
    let wrong = world.set_store(set(Some(0.0), None)).await;
    assert!(wrong.contains("a weight of 0 is not possible"), "{wrong}");
    let wrong = world.set_store(set(Some(f64::NAN), None)).await;
    assert!(wrong.contains("is not possible"), "{wrong}");
    let wrong = world.set_store(set(None, Some(("", "x")))).await;
    assert!(wrong.contains("a label needs a name"), "{wrong}");
    let wrong = world.set_store(set(None, Some(("zone", "a,b")))).await;
    assert!(wrong.contains("is not possible"), "{wrong}");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_can_move_is_named_and_not_waited_for() {
    let mut world = World::start(1, 3, lively).await;
    world.until_balanced().await;
    let heavy = world.ids[0];
    assert_eq!(world.set_store(StoreSetRequest { store_id: heavy, weight: Some(2.0), ..Default::default() }).await, "");
    // Leaders follow the weight; replicas cannot, as each of three stores holds one of each region.
    let led = async |world: &World| (world.store(heavy).await.leaders >= 5).then_some(());
    world.until("the heavy store leads more", led).await;
    let balance = world.until_balanced().await;
    assert_eq!((balance.bytes_to_move, &balance.waits_for[..]), (0, &[][..]), "{balance:?}");
    let named = balance.stays.iter().any(|line| {
        line.starts_with("balance-replicas: ") && line.contains(&format!("12 with a replica on s{heavy} already"))
    });
    assert!(named, "{balance:?}");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_under_way_and_paused_schedulers_are_what_is_waited_for() {
    let mut world = World::start(1, 4, lively).await;
    world.until_balanced().await;
    assert_eq!(world.schedule(&["all"], &[], &[]).await, "");
    let list = world.schedulers().await.schedulers;
    let said = |name: &str| list.iter().find(|one| one.name == name).expect("listed").said.clone();
    assert!(
        said("merge").starts_with("merge is paused, as in every new cluster; `braid admin scheduler resume merge`"),
        "{}",
        said("merge")
    );
    assert!(
        said("repair").starts_with("repair is paused; `braid admin scheduler resume repair`"),
        "{}",
        said("repair")
    );

    // Its leader does not answer, so that it stands at its first step.
    let region = world.group.stores.regions()[0].clone();
    let to = *world.ids.iter().find(|id| region.peer_on(StoreId(**id)).is_none()).expect("a store without it");
    let leader = world.group.stores.leader_of(region.region_id());
    let from = region.peers.iter().find(|peer| peer.store_id != leader).expect("a follower").store_id;
    world.group.stores.take_down(leader);
    let wanted = Wanted::MovePeer(MovePeer { region_id: region.id, from_store: from, to_store: to });
    let operator = world.plan(wanted).await.expect("begun");
    let balance = world.balance().await;
    let line = format!("o{} on r{} by admin, under way for ", operator.id, region.id);
    let named = balance.waits_for.iter().find(|why| why.starts_with(&line)).expect("it is waited for");
    assert!(named.contains(" s, is at step 1 of 3 for ") && named.contains(": add learner "), "{named}");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scattering_one_region_says_why_nothing_is_to_be_moved() {
    let mut world = World::start(1, 3, paused).await;
    world.until_ready().await;
    let region = world.group.stores.regions()[2].clone();
    let request = ScatterRequest { region_ids: vec![region.id], ..Default::default() };
    let answer = world.admin().await.scatter(Request::new(request)).await.expect("answered").into_inner();
    assert_eq!((answer.failed.as_str(), answer.regions), ("", 0));
    assert!(answer.said.starts_with(&format!("r{} stays where it is, on s", region.id)), "{}", answer.said);
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_has_just_died_is_given_nothing_though_it_counts_as_up() {
    let mut world = World::start(1, 4, paused).await;
    world.until_ready().await;
    let region = world.group.stores.regions()[0].clone();
    let dead = *world.ids.iter().find(|id| region.peer_on(StoreId(**id)).is_none()).expect("a store without it");
    world.group.stores.take_down(dead);
    tokio::time::sleep(Duration::from_millis(2_700)).await;
    world.beat_all().await;
    assert_eq!(world.store(dead).await.state, "up");
    let wanted =
        Wanted::MovePeer(MovePeer { region_id: region.id, from_store: region.peers[1].store_id, to_store: dead });
    let refused = world.plan(wanted).await.expect_err("refused");
    assert!(refused.starts_with(&format!("s{dead} has not been heard for 2 s")), "{refused}");
    world.group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_counts_as_caught_up_whatever_its_predecessor_said() {
    let mut world = World::start(1, 3, paused).await;
    world.until_ready().await;
    let region = world.group.stores.regions()[2].clone();
    let leader = world.group.stores.leader_of(region.region_id());
    let others: Vec<&Peer> = region.peers.iter().filter(|peer| peer.store_id != leader).collect();
    let mut beat = world.group.stores.full_beat(leader);
    let report = beat.leaders.iter_mut().find(|report| report.region.as_ref().is_some_and(|led| led.id == region.id));
    report.expect("it is led there").catching_up = others.iter().map(|peer| peer.id).collect();
    world.group.beat(beat).await;
    let transfer = AdminTransferLeaderRequest { region_id: region.id, to_store: others[0].store_id };
    let moved =
        world.admin().await.region_transfer_leader(Request::new(transfer)).await.expect("answered").into_inner();
    assert_eq!(moved.failed, "");
    let remove = Wanted::RemovePeer(RemovePeer { region_id: region.id, store_id: leader });
    let refused = world.plan(remove).await.expect_err("one of the two that would be left has not caught up");
    assert!(
        refused.contains("would have 1 voters that are well of 2") && refused.contains("not caught up"),
        "{refused}"
    );
    world.group.stop_all().await;
}
