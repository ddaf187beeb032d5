//! What the placement leader knows and does beside numbering: the memory behind the services, and the first regions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use braid_proto::id::{ClusterId, StoreId, Term};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::region_store_client::RegionStoreClient;
use braid_proto::pb::{
    AllocateIds, CreateRegionsRequest, FirstRegions, FoundCluster, PlacementHeader, Region, RegionsStarted, Store,
};
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

use crate::bootstrap::{self, Plan};
use crate::machine::{ProposeError, Replica};
use crate::office::Office;
use crate::placement::MemberConfig;
use crate::presence::Presence;
use crate::regions::RegionMap;
use crate::state::Applied;

/// How long a store may take to create its first peers.
const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why placement could not carry something out.
#[derive(Debug, Error)]
pub enum OrderError {
    /// Committing it failed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The state machine refused.
    #[error("{0}")]
    Refused(String),
    /// A store did not answer.
    #[error("{store} does not answer: {why}")]
    Store {
        /// Which.
        store: StoreId,
        /// What the connection says.
        why: String,
    },
}

/// Everything that the services of a member share.
pub struct Shared {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// This member.
    pub member: u64,
    /// All members.
    pub members: Vec<MemberConfig>,
    /// What the first regions are made of.
    pub plan: Plan,
    /// The replicated state.
    pub replica: Arc<Replica>,
    /// The sequencer.
    pub office: Arc<Office>,
    /// Reported regions.
    pub regions: RwLock<RegionMap>,
    /// Reported stores and proxies.
    pub presence: Mutex<Presence>,
    /// The term whose reports the two above hold.
    pub reports_of: Mutex<Term>,
    /// Connections to stores, by address.
    pub stores: Mutex<HashMap<String, Channel>>,
}

impl Shared {
    /// The term this member leads in and holds a lease of; reports of earlier terms are forgotten.
    pub fn leading(&self) -> Option<Term> {
        let handle = self.replica.handle()?;
        let term = handle.term();
        (handle.is_leader(term) && handle.lease(term)).then_some(term)
    }

    /// The header of an answer: a refusal where this member does not lead.
    pub fn header(&self) -> (PlacementHeader, Option<Term>) {
        match self.leading() {
            Some(term) => {
                self.begin_term(term);
                (PlacementHeader { cluster_id: self.cluster_id.0, ..Default::default() }, Some(term))
            }
            None => {
                let not_leader = self.leader_addr();
                (PlacementHeader { cluster_id: self.cluster_id.0, not_leader, refused: true }, None)
            }
        }
    }

    /// Address of the member that leads; empty if unknown or this one.
    pub fn leader_addr(&self) -> String {
        self.leader_member().filter(|id| *id != self.member).map(|id| self.addr_of(id)).unwrap_or_default()
    }

    /// The member that leads.
    pub fn leader_member(&self) -> Option<u64> {
        self.replica.handle().and_then(|handle| handle.leader()).map(|peer| peer.store_id)
    }

    /// Address of a member.
    pub fn addr_of(&self, member: u64) -> String {
        self.members.iter().find(|known| known.id == member).map(|known| known.peer_addr.clone()).unwrap_or_default()
    }

    /// Every store that ever joined.
    pub fn stores(&self) -> Vec<Store> {
        self.replica.read(|state| state.stores().map(|record| record.store.clone()).collect())
    }

    /// A connection to the store at `addr`.
    pub fn store_client(&self, store: &Store) -> Result<RegionStoreClient<Channel>, OrderError> {
        let mut channels = self.stores.lock();
        if let Some(channel) = channels.get(&store.peer_addr) {
            return Ok(RegionStoreClient::new(channel.clone()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", store.peer_addr))
            .map_err(|error| OrderError::Store { store: StoreId(store.id), why: error.to_string() })?;
        let channel = endpoint.connect_timeout(Duration::from_secs(1)).tcp_nodelay(true).connect_lazy();
        channels.insert(store.peer_addr.clone(), channel.clone());
        Ok(RegionStoreClient::new(channel))
    }

    /// Takes `count` ids from the cluster's counter; returns the first.
    pub async fn allocate(&self, term: Term, count: u64) -> Result<u64, OrderError> {
        match self.replica.propose(term, Op::AllocateIds(AllocateIds { count })).await? {
            Applied::Ids(first) => Ok(first),
            Applied::Refused(why) => Err(OrderError::Refused(why)),
            other => Err(OrderError::Refused(format!("ids were asked for, {other:?} came"))),
        }
    }

    /// Does the next thing that a young cluster needs: its id, its first regions, their peers.
    pub async fn found(&self, term: Term) -> Result<(), OrderError> {
        self.begin_term(term);
        let (founded, begun, started) = self.replica.read(|state| {
            (state.cluster_id().is_valid(), state.first_regions().len() > 0, state.regions_started())
        });
        if !founded {
            let found = FoundCluster { cluster_id: self.cluster_id.0 };
            return self.commit(term, Op::FoundCluster(found)).await;
        }
        if !begun {
            return self.begin_regions(term).await;
        }
        if !started {
            return self.start_regions(term).await;
        }
        Ok(())
    }

    /// What the cluster waits for before it has regions; empty when it has.
    pub fn waiting_for(&self) -> String {
        let (stores, begun, started) = self.replica.read(|state| {
            (state.stores().count(), state.first_regions().len() > 0, state.regions_started())
        });
        match (begun, started) {
            (false, _) => format!("{stores} of {} stores have joined", self.plan.replicas),
            (true, false) => "the first regions have no leaders yet".to_owned(),
            (true, true) => String::new(),
        }
    }

    async fn begin_regions(&self, term: Term) -> Result<(), OrderError> {
        let stores = self.stores();
        if bootstrap::stores_missing(&self.plan, stores.len()) > 0 {
            return Ok(());
        }
        let first_id = self.allocate(term, bootstrap::ids_needed(&self.plan)).await?;
        let regions = bootstrap::first_regions(&self.plan, &stores, first_id);
        tracing::info!(regions = regions.len(), stores = stores.len(), "the cluster begins");
        self.commit(term, Op::FirstRegions(FirstRegions { regions })).await
    }

    /// Creates the peers of first regions that have no leader yet, those that shall lead last.
    async fn start_regions(&self, term: Term) -> Result<(), OrderError> {
        let regions: Vec<Region> = self.replica.read(|state| state.first_regions().cloned().collect());
        let leaderless: Vec<Region> = {
            let known = self.regions.read();
            regions.into_iter().filter(|region| known.get(region.region_id()).is_none()).collect()
        };
        if leaderless.is_empty() {
            return self.commit(term, Op::RegionsStarted(RegionsStarted {})).await;
        }
        for leads in [false, true] {
            for (store, regions) in self.by_store(&leaderless, leads) {
                self.create(store, regions).await?;
            }
        }
        Ok(())
    }

    fn by_store(&self, regions: &[Region], leads: bool) -> BTreeMap<StoreId, Vec<Region>> {
        let mut by_store = BTreeMap::<StoreId, Vec<Region>>::new();
        for region in regions {
            let stores = region.peers.iter().map(|peer| StoreId(peer.store_id));
            for store in stores.filter(|store| bootstrap::leads_first(region, *store) == leads) {
                by_store.entry(store).or_default().push(region.clone());
            }
        }
        by_store
    }

    async fn create(&self, id: StoreId, regions: Vec<Region>) -> Result<(), OrderError> {
        let failed = |why: String| OrderError::Store { store: id, why };
        let store = self.replica.read(|state| state.store(id).map(|record| record.store.clone()));
        let store = store.ok_or_else(|| failed("it never joined".into()))?;
        let request = CreateRegionsRequest { cluster_id: self.cluster_id.0, regions };
        let mut client = self.store_client(&store)?.max_encoding_message_size(64 << 20);
        let answer = tokio::time::timeout(CREATE_TIMEOUT, client.create_regions(request)).await;
        let answer = answer.map_err(|_| failed("no answer in time".into()))?;
        let answer = answer.map_err(|status| failed(status.message().to_owned()))?.into_inner();
        if answer.failed.is_empty() { Ok(()) } else { Err(failed(answer.failed)) }
    }

    async fn commit(&self, term: Term, op: Op) -> Result<(), OrderError> {
        match self.replica.propose(term, op).await? {
            Applied::Refused(why) => Err(OrderError::Refused(why)),
            _ => Ok(()),
        }
    }

    fn begin_term(&self, term: Term) {
        let mut reports_of = self.reports_of.lock();
        if *reports_of != term {
            *reports_of = term;
            self.presence.lock().clear();
            *self.regions.write() = RegionMap::default();
        }
    }
}
