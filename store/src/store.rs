//! Start and stop of a store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use braid_host::config::HostConfig;
use braid_host::transport::AddressBook;
use braid_host::{Host, Inbound, Transport};
use braid_placement_client::{ClientError, Numbers, PlacementClient};
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::pb::{Domain, RegisterStoreRequest};
use braid_proto::service::RegionService;
use braid_store_client::Regions as Cluster;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch as signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::compaction::Compaction;
use crate::engine::{Boundary, EngineOptions, NewestRecords};
use crate::flow::{self, Flow};
use crate::heartbeat::Heartbeat;
use crate::machine::Regions;
use crate::merge::Ended;
use crate::multi;
use crate::orders::Orders;
use crate::region::{Busy, Shared};
use crate::reports::Reports;
use crate::service::{LocalRegions, RegionStoreService};
use crate::space::{Space, SpaceLimits};
use crate::watch::{self, Following, Publisher, RegionWatchService};

/// How long a planned stop tries to hand its regions' leadership over.
const HAND_OVER: Duration = Duration::from_secs(3);

/// Stores drop history one after the other: ids that differ by less than the turns begin so far apart.
const COMPACTION_STAGGER: Duration = Duration::from_secs(3);
const COMPACTION_TURNS: u64 = 5;

/// How a store is set up.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Its folder.
    pub dir: PathBuf,
    /// Cluster it belongs to.
    pub cluster_id: ClusterId,
    /// Its id, as placement gave it.
    pub store_id: StoreId,
    /// Raft workers; each region belongs to one.
    pub workers: usize,
    /// RocksDB block cache in bytes.
    pub block_cache_bytes: usize,
    /// Memory for the newest records, in bytes; 0: none.
    pub record_cache_bytes: usize,
    /// RocksDB memtable size in bytes.
    pub memtable_bytes: usize,
    /// Bytes of raft log after which old files are purged.
    pub log_purge_bytes: u64,
    /// Entries of a region's log kept for followers that lag; beyond it they take a snapshot.
    pub log_keep_entries: u64,
    /// Bytes of a region's log, likewise.
    pub log_keep_bytes: u64,
    /// Bytes of raft snapshots written in a second, those for other stores and those from them; 0: no limit.
    pub snapshot_bytes_per_second: u64,
    /// When puts are refused.
    pub space: SpaceLimits,
}

/// What placement says to a store that registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Cluster the store now belongs to.
    pub cluster_id: ClusterId,
    /// Its id.
    pub store_id: StoreId,
}

/// Why a store does not start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Placement could not be asked.
    #[error("placement does not answer: {0}")]
    Placement(#[from] ClientError),
    /// Placement says no.
    #[error("placement refuses this store: {0}")]
    Refused(String),
    /// The folder cannot be used.
    #[error(transparent)]
    Host(#[from] braid_host::OpenError),
}

/// Makes the store known to placement and gets its id. Waits for a placement leader until `deadline`.
///
/// # Errors
/// Placement is out of reach, or refuses (another cluster's folder, a removed store).
pub async fn register(
    placement: &PlacementClient,
    request: RegisterStoreRequest,
    deadline: Instant,
) -> Result<Registered, OpenError> {
    let answer = placement.register_store(request, deadline).await?;
    if !answer.failed.is_empty() {
        return Err(OpenError::Refused(answer.failed));
    }
    let cluster_id = ClusterId(answer.header.unwrap_or_default().cluster_id);
    Ok(Registered { cluster_id, store_id: StoreId(answer.store_id) })
}

/// A running store.
pub struct Store {
    config: StoreConfig,
    host: Arc<Host>,
    regions: Arc<Regions>,
    local: Arc<LocalRegions>,
    orders: Arc<Orders>,
    cluster: Arc<Cluster>,
    compaction: Arc<Compaction>,
    stop: signal::Sender<bool>,
    refused: signal::Receiver<String>,
    heartbeat: JoinHandle<()>,
    ticker: JoinHandle<()>,
    rounds: JoinHandle<()>,
    flow: JoinHandle<()>,
    publisher: Arc<Publisher>,
}

impl Store {
    /// Opens the folder, starts the regions in it and the heartbeat. `cluster`: this process's way to all regions; the
    /// store's own are added to it.
    ///
    /// # Errors
    /// The folder belongs to another store or cluster, is in use, damaged or full.
    pub async fn open(
        config: StoreConfig,
        placement: Arc<PlacementClient>,
        numbers: Arc<Numbers>,
        cluster: Arc<Cluster>,
        transport: Arc<dyn Transport>,
        addresses: AddressBook,
    ) -> Result<Self, OpenError> {
        let space = Arc::new(Space::new(config.dir.clone(), config.space));
        let boundary = Arc::new(Boundary::default());
        let way = Arc::clone(&cluster);
        let publisher = Publisher::new(Arc::clone(&numbers));
        let (runtime, tell) = (Handle::current(), Arc::clone(&publisher));
        let shared = Shared {
            numbers,
            runtime,
            space,
            boundary,
            newest: Arc::new(NewestRecords::new(config.record_cache_bytes)),
            cluster: way,
            publisher: tell,
            started: std::time::Instant::now(),
            revocations: Arc::default(),
            busy: Busy::default(),
            ended: Ended::default(),
            flow: Flow::default(),
        };
        let shared = Arc::new(shared);
        let engine =
            EngineOptions { block_cache_bytes: config.block_cache_bytes, memtable_bytes: config.memtable_bytes };
        let regions = Arc::new(Regions::new(Arc::clone(&shared), engine));
        publisher.serve(&regions);
        let machine = Arc::clone(&regions);
        let host_config = host_config(&config);
        let opened = tokio::task::spawn_blocking(move || Host::open(host_config, machine, transport)).await;
        let host = Arc::new(opened.map_err(|error| OpenError::Refused(format!("opening was given up: {error}")))??);
        publisher.lean_on(&host);
        let orders = Arc::new(Orders::new(config.store_id, Arc::clone(&host), Arc::clone(&regions)));
        let local = Arc::new(LocalRegions::new(Arc::clone(&regions)));
        cluster.add_local(config.store_id, Arc::clone(&local) as Arc<dyn RegionService>);
        let news = Arc::new(Notify::new());
        let tell = Arc::clone(&news);
        let delay = COMPACTION_STAGGER * (config.store_id.0 % COMPACTION_TURNS) as u32;
        let compaction = Compaction::start(host.db(), Arc::clone(&shared.boundary), delay, move || tell.notify_one());
        let compaction = Arc::new(compaction.map_err(|error| OpenError::Refused(format!("no thread: {error}")))?);
        let (stop, stopped) = signal::channel(false);
        let flow = tokio::spawn(flow::run(Arc::clone(&host), Arc::clone(&shared), stopped.clone()));
        let (refuse, refused) = signal::channel(String::new());
        let heartbeat = Heartbeat {
            refused: refuse,
            cluster_id: config.cluster_id,
            store_id: config.store_id,
            host: Arc::clone(&host),
            regions: Arc::clone(&regions),
            shared,
            compaction: Arc::clone(&compaction),
            news,
            placement,
            addresses,
            reports: Reports::default(),
            beats: 0,
        };
        let ticker = tokio::spawn(multi::tick(Arc::clone(&regions), stopped.clone()));
        let rounds = tokio::spawn(watch::run(Arc::clone(&publisher), stopped.clone()));
        let heartbeat = tokio::spawn(heartbeat.run(stopped));
        Ok(Self {
            config,
            host,
            regions,
            local,
            orders,
            cluster,
            compaction,
            stop,
            refused,
            heartbeat,
            ticker,
            rounds,
            flow,
            publisher,
        })
    }

    /// Its id.
    pub fn store_id(&self) -> StoreId {
        self.config.store_id
    }

    /// Resolves with the reason once placement does not want this store any more: it was removed.
    pub fn refused(&self) -> impl Future<Output = String> + Send + use<> {
        let mut refused = self.refused.clone();
        async move {
            let why = refused.wait_for(|why| !why.is_empty()).await.map(|why| why.clone());
            match why {
                Ok(why) => why,
                // It stops by itself.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Its regions, for callers of the same process.
    pub fn local(&self) -> Arc<dyn RegionService> {
        Arc::clone(&self.local) as Arc<dyn RegionService>
    }

    /// Its regions, for everybody else.
    pub fn service(&self) -> RegionStoreService {
        RegionStoreService::new(
            self.config.cluster_id,
            self.config.store_id,
            Arc::clone(&self.regions),
            Arc::clone(&self.local),
            Arc::clone(&self.orders),
        )
    }

    /// What happens in its regions, for proxies of other processes.
    pub fn watch_service(&self) -> RegionWatchService {
        RegionWatchService::new(self.config.cluster_id, self.config.store_id, Arc::clone(&self.publisher))
    }

    /// What happens in its regions, for a caller of the same process that gives its orders one by one. A proxy goes through
    /// [`Self::local`].
    pub fn watch(&self) -> Following {
        self.publisher.connect()
    }

    /// Where raft messages for it go.
    pub fn inbound(&self) -> Arc<dyn Inbound> {
        self.host.inbound()
    }

    /// Bytes of its data's files: what the quota counts and clients see as the database's size.
    pub fn data_bytes(&self) -> u64 {
        self.host.data_bytes()
    }

    /// Asks for [`Store::data_bytes`] without keeping the store open; 0 once it has stopped.
    pub fn data_bytes_probe(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let host = Arc::downgrade(&self.host);
        move || host.upgrade().map_or(0, |host| host.data_bytes())
    }

    /// Rows of locks and of records of transactions over several regions that this replica has applied; 0 when nothing of
    /// that kind is under way.
    pub fn lock_rows(&self) -> usize {
        self.regions.all().iter().map(|region| region.data().locks().len()).sum()
    }

    /// Stops: leaders handed over, no more heartbeats, logs and data written, threads joined.
    pub async fn shutdown(self) {
        self.orders.hand_over_all(HAND_OVER).await;
        self.close().await;
    }

    /// Stops without handing leaders over: for a cluster that stops as a whole, where nobody could take them.
    pub async fn close(self) {
        _ = self.stop.send(true);
        _ = self.heartbeat.await;
        _ = self.ticker.await;
        _ = self.rounds.await;
        _ = self.flow.await;
        self.cluster.remove_local(self.config.store_id);
        let (host, compaction) = (self.host, self.compaction);
        let ended = tokio::task::spawn_blocking(move || {
            compaction.stop();
            host.shutdown();
        });
        if let Err(error) = ended.await {
            tracing::error!(%error, "the store's host did not stop cleanly");
        }
    }
}

fn host_config(config: &StoreConfig) -> HostConfig {
    HostConfig {
        dir: config.dir.clone(),
        domain: Domain::Store,
        cluster_id: config.cluster_id,
        host_id: config.store_id.0,
        // A store that has lost its folder gets another id.
        first_incarnation: 1,
        workers: config.workers,
        block_cache_bytes: config.block_cache_bytes,
        memtable_bytes: config.memtable_bytes,
        log_purge_bytes: config.log_purge_bytes,
        log_keep_entries: config.log_keep_entries,
        log_keep_bytes: config.log_keep_bytes,
        snapshot_bytes_per_second: config.snapshot_bytes_per_second,
    }
}
