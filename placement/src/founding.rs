//! What the leader does for a young cluster: gives it its identity, its first regions, and their peers. Each step rests
//! on replicated state alone, so whoever leads next goes on where this leader stopped.
//!
//! 1. The cluster is founded: its id is committed.
//! 2. As many stores as a region has replicas have joined: ids are taken, the first regions are committed. Their stores
//!    are chosen by labels and weights as far as stores are here; who joins later gets its share from the schedulers.
//! 3. Every store is told to create its peers of the regions that nobody leads yet; the store that shall lead a region
//!    is told last, since it campaigns at once. Stores that are down are not waited for: a quorum elects without them.
//! 4. Every first region has had a leader: that is committed, and from then on nobody creates them again, because a
//!    region that has moved away from a store must not come back there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use braid_proto::id::{StoreId, Term};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{CreateRegionsRequest, FirstRegions, FoundCluster, Region, RegionsStarted, Store};
use futures::future::join_all;

use crate::bootstrap;
use crate::leader::{CommitError, Shared};
use crate::schedule::{Config, View};
use crate::state::StoreRecord;

/// How long a store may take to create its first peers.
const CREATE_PATIENCE: Duration = Duration::from_secs(5);
/// How often something is tried again that nobody reports the end of.
const RETRY: Duration = Duration::from_secs(1);

/// Does what a young cluster needs, until it needs nothing more.
pub async fn found(shared: &Shared, term: Term) {
    loop {
        // Before looking, so that news that comes while a step is made is not missed.
        let news = shared.news.notified();
        match step(shared, term).await {
            Ok(Step::Complete) => return,
            Ok(Step::Next) => continue,
            Ok(Step::Waits) => {}
            Err(error) => tracing::debug!(%error, %term, "the young cluster does not get on yet"),
        }
        _ = tokio::time::timeout(RETRY, news).await;
    }
}

enum Step {
    /// There is nothing left to do.
    Complete,
    /// The next step can be made.
    Next,
    /// Something must be heard first.
    Waits,
}

async fn step(shared: &Shared, term: Term) -> Result<Step, CommitError> {
    let (founded, begun, started) = shared
        .replica
        .read(|state| (state.cluster_id().is_valid(), state.first_regions().len() > 0, state.regions_started()));
    match (founded, begun, started) {
        (false, _, _) => {
            let found = FoundCluster { cluster_id: shared.cluster_id.0, paused: shared.setup.paused.clone() };
            shared.commit(term, Op::FoundCluster(found)).await.map(|_| Step::Next)
        }
        (true, false, _) => begin_regions(shared, term).await,
        (true, true, false) => start_regions(shared, term).await,
        (true, true, true) => Ok(Step::Complete),
    }
}

/// What the cluster waits for before all its regions can be used; empty when they can.
pub fn waiting_for(shared: &Shared, term: Term) -> String {
    let (begun, started) = shared.replica.read(|state| (state.first_regions().len(), state.regions_started()));
    match (begun, started) {
        (0, _) => format!("{} of {} stores have joined", stores_up(shared, term).len(), shared.plan.replicas),
        (_, true) => String::new(),
        (regions, false) => match leaderless(shared, term).len() {
            0 => String::new(),
            leaderless => format!("{leaderless} of {regions} first regions have no leader yet"),
        },
    }
}

async fn begin_regions(shared: &Shared, term: Term) -> Result<Step, CommitError> {
    let stores = stores_up(shared, term);
    if bootstrap::stores_missing(&shared.plan, stores.len()) > 0 {
        return Ok(Step::Waits);
    }
    let first_id = shared.allocate(term, bootstrap::ids_needed(&shared.plan)).await?;
    let own = stores.iter().find(|store| store.peer_addr == shared.plan.own_addr).map(|store| StoreId(store.id));
    let (view, config) = seen(shared, term, &stores);
    let regions = bootstrap::first_regions(&shared.plan, view, &config, own, first_id);
    tracing::info!(regions = regions.len(), stores = stores.len(), "the cluster begins");
    shared.commit(term, Op::FirstRegions(FirstRegions { regions: regions.clone() })).await?;
    let mut memory = shared.memory(term);
    for region in regions {
        memory.regions.learn(region);
    }
    Ok(Step::Next)
}

/// The stores as schedulers see them, and what these go by.
fn seen(shared: &Shared, term: Term, stores: &[Store]) -> (View, Config) {
    shared.resync(term);
    let records: Vec<StoreRecord> = stores.iter().filter_map(|store| shared.record(StoreId(store.id))).collect();
    let memory = shared.memory(term);
    let settings = memory.scheduling.settings();
    let mut view = View::new(settings.location_labels.clone());
    for record in records {
        let id = StoreId(record.store.id);
        view.put_store(id, record.labels(), record.weight);
        view.set_draining(id, record.drain.is_some(), 0);
        if let Some(stats) = memory.presence.stats(id) {
            view.set_space(id, stats.capacity_bytes, stats.used_bytes, stats.available_bytes);
        }
    }
    (view, settings.config.clone())
}

async fn start_regions(shared: &Shared, term: Term) -> Result<Step, CommitError> {
    let leaderless = leaderless(shared, term);
    if leaderless.is_empty() {
        tracing::info!("every first region has a leader");
        return shared.commit(term, Op::RegionsStarted(RegionsStarted {})).await.map(|_| Step::Next);
    }
    for leads in [false, true] {
        join_all(by_store(&leaderless, leads).into_iter().map(|(store, regions)| create(shared, store, regions))).await;
    }
    Ok(Step::Waits)
}

/// The stores that are up: a store that is gone before the cluster has begun is not given a region.
fn stores_up(shared: &Shared, term: Term) -> Vec<Store> {
    let (stores, now) = (shared.stores(), Instant::now());
    let memory = shared.memory(term);
    stores.into_iter().filter(|store| memory.presence.is_up(StoreId(store.id), now)).collect()
}

/// The first regions that nobody leads as far as this leader has heard.
fn leaderless(shared: &Shared, term: Term) -> Vec<Region> {
    let regions: Vec<Region> = shared.replica.read(|state| state.first_regions().cloned().collect());
    let memory = shared.memory(term);
    let is_led = |region: &Region| memory.regions.get(region.region_id()).is_some_and(|known| known.leader_peer != 0);
    regions.into_iter().filter(|region| !is_led(region)).collect()
}

fn by_store(regions: &[Region], leads: bool) -> BTreeMap<StoreId, Vec<Region>> {
    let mut by_store = BTreeMap::<StoreId, Vec<Region>>::new();
    for region in regions {
        let stores = region.peers.iter().map(|peer| StoreId(peer.store_id));
        for store in stores.filter(|store| bootstrap::leads_first(region, *store) == leads) {
            by_store.entry(store).or_default().push(region.clone());
        }
    }
    by_store
}

/// Tells one store. What does not work is tried again in the next round, until the region has a leader.
async fn create(shared: &Shared, id: StoreId, regions: Vec<Region>) {
    let Some(store) = shared.store(id) else { return };
    let request = CreateRegionsRequest { cluster_id: shared.cluster_id.0, regions };
    match shared.orders.create_regions(&store, request, CREATE_PATIENCE).await {
        Ok(answer) if answer.failed.is_empty() => {}
        Ok(answer) => tracing::warn!(store = %id, why = answer.failed, "a store does not create its first regions"),
        Err(error) => tracing::warn!(store = %id, %error, "a store does not create its first regions"),
    }
}
