//! What the hosts of a process share to reach each other and the hosts of other processes, and the peer port.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use braid_host::Transport;
use braid_host::transport::{AddressBook, GrpcTransport, LocalRegistry, RaftService, TransportConfig};
use braid_proto::id::ClusterId;
use braid_proto::pb::region_store_server::RegionStoreServer;
use braid_proto::pb::region_watch_server::RegionWatchServer;
use braid_store::{RegionStoreService, RegionWatchService, Store};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use super::process::Process;
use crate::late::Late;
use crate::listen::{ListenError, Ports};
use crate::stop::Stop;

/// The services of a store that registers while its port is served already.
#[derive(Clone, Default)]
pub struct LateStore {
    regions: Late<RegionStoreServer<RegionStoreService>>,
    watch: Late<RegionWatchServer<RegionWatchService>>,
}

impl LateStore {
    /// Adds its services to those of a peer port.
    pub fn add_to(&self, routes: Routes) -> Routes {
        routes.add_service(self.regions.clone()).add_service(self.watch.clone())
    }

    /// Lets `store` answer from now on.
    pub fn set(&self, store: &Store) {
        self.regions.set(region_store(store.service()));
        self.watch.set(region_watch(store.watch_service()));
    }
}

/// Largest message between processes; a list of ten thousand regions is a few MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long peers may finish. When the peer port stops, nothing behind it is left that could answer: this is for
/// answers that are on their way.
const GRACE: Duration = Duration::from_millis(200);

/// The raft transport of a process.
pub struct Fabric {
    /// Hosts of this process.
    pub registry: LocalRegistry,
    /// Where its parts write down the addresses of other processes' hosts.
    pub addresses: AddressBook,
    raft: RaftService,
    transport: Arc<GrpcTransport>,
}

impl Fabric {
    /// A transport for hosts of cluster `cluster_id` in this process and others.
    pub fn new(cluster_id: ClusterId, config: TransportConfig) -> Self {
        let addresses = AddressBook::default();
        Self::with(cluster_id, config, addresses.clone(), addresses)
    }

    /// A transport for a cluster whose hosts are all in this process: what its parts learn of addresses leads nowhere, so
    /// that a host which is not open yet is not looked for elsewhere.
    pub fn within_process(cluster_id: ClusterId, config: TransportConfig) -> Self {
        Self::with(cluster_id, config, AddressBook::default(), AddressBook::default())
    }

    fn with(cluster_id: ClusterId, config: TransportConfig, addresses: AddressBook, reached: AddressBook) -> Self {
        let registry = LocalRegistry::default();
        let runtime = Handle::current();
        let transport = Arc::new(GrpcTransport::new(runtime, cluster_id, reached, registry.clone(), config));
        let raft = RaftService::new(cluster_id, registry.clone());
        Self { registry, addresses, raft, transport }
    }

    /// For a host to send with.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport) as Arc<dyn Transport>
    }

    /// The services of a peer port: raft first; the caller adds those of its parts.
    pub fn routes(&self) -> Routes {
        Routes::new(self.raft.clone().into_server())
    }

    /// Serves `routes` and the process's pages on `ports`.
    pub fn serve(&self, ports: Ports, routes: Routes, process: &Process) -> PeerPort {
        let (stop, wish) = Stop::by_hand();
        let serving = ports.serve(process.with_pages(routes), wish, GRACE);
        PeerPort { stop, raft: self.raft.clone(), serving: tokio::spawn(serving) }
    }
}

/// The service of a store's regions with its message limits.
fn region_store(service: RegionStoreService) -> RegionStoreServer<RegionStoreService> {
    RegionStoreServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// What happens in a store's regions, with its message limits.
fn region_watch(service: RegionWatchService) -> RegionWatchServer<RegionWatchService> {
    RegionWatchServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A peer port that is served.
pub struct PeerPort {
    stop: watch::Sender<bool>,
    raft: RaftService,
    serving: JoinHandle<Result<(), ListenError>>,
}

impl PeerPort {
    /// Resolves if the port is not served any more, which nobody has asked for.
    pub async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.serving).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => anyhow!("the peer port is not served any more"),
            Err(error) => anyhow!("serving the peer port failed: {error}"),
        }
    }

    /// Stops serving.
    pub async fn stop(self) {
        self.raft.stop();
        self.stop.send_replace(true);
        // It has either ended or failed before, which `failed` has told.
        let _ = self.serving.await;
    }
}
