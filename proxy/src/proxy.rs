//! A proxy as a whole: puts the services together, starts the heartbeat, serves the client port.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use braid_placement_client::{Numbers, PlacementClient};
use braid_proto::etcd::etcdserverpb::auth_server::AuthServer;
use braid_proto::etcd::etcdserverpb::cluster_server::ClusterServer;
use braid_proto::etcd::etcdserverpb::kv_server::KvServer;
use braid_proto::etcd::etcdserverpb::lease_server::LeaseServer;
use braid_proto::etcd::etcdserverpb::maintenance_server::MaintenanceServer;
use braid_proto::etcd::v3electionpb::election_server::ElectionServer;
use braid_proto::etcd::v3lockpb::lock_server::LockServer;
use braid_proto::pb::admin_server::AdminServer;
use braid_proto::pb::inspect_server::InspectServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::admin::AdminService;
use crate::cluster::ClusterService;
use crate::config::ProxyConfig;
use crate::front::Front;
use crate::http;
use crate::in_flight::InFlight;
use crate::inspect::InspectService;
use crate::kv::KvService;
use crate::lease::LeaseService;
use crate::maintenance::MaintenanceService;
use crate::missing::AuthService;
use crate::presence::Presence;
use crate::recipe::Recipes;
use crate::recipe::election::ElectionService;
use crate::recipe::lock::LockService;
use crate::serve::serve;
use crate::shared::Shared;
use crate::watch::Source;
use crate::watch::hub::Hub;
use crate::watch::service::WatchService;
use braid_store_client::Regions;
use braid_store_client::locks::LockTerms;

/// A running proxy. It speaks to clients wherever [`Proxy::serve`] is called.
pub struct Proxy {
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    front: Front,
    stop: watch::Sender<bool>,
    heartbeat: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy: from now on placement hears of it. Must be called inside a tokio runtime.
    pub fn start(
        config: ProxyConfig,
        placement: Arc<PlacementClient>,
        numbers: Arc<Numbers>,
        regions: Arc<Regions>,
    ) -> Self {
        let shared = Arc::new(Shared {
            regions,
            numbers,
            lock_terms: LockTerms::default(),
            placement: Arc::clone(&placement),
            presence: Presence::new(Arc::clone(&placement), &config),
            in_flight: InFlight::new(config.max_in_flight),
            config,
        });
        let (stop, stopped) = watch::channel(false);
        let (regions, numbers) = (Arc::clone(&shared.regions), Arc::clone(&shared.numbers));
        let hub = Hub::start(regions, numbers, shared.config.cluster_id);
        let watch = WatchService::of(&shared, Arc::clone(&hub) as Arc<dyn Source>, stopped.clone());
        let recipes = Recipes::new(Arc::clone(&shared), Arc::clone(&hub) as Arc<dyn Source>, stopped.clone());
        let front = front(&shared, placement, watch, recipes, stopped.clone());
        let beating = Arc::clone(&shared);
        let heartbeat = tokio::spawn(async move { beating.presence.run(stopped).await });
        Self { shared, hub, front, stop, heartbeat }
    }

    /// Serves clients on `listener` until [`Proxy::stop`]; may be called for several listeners. Requests that are under
    /// way then have `grace` to finish.
    pub fn serve(&self, listener: TcpListener, grace: Duration) -> impl Future<Output = ()> + Send + use<> {
        let mut stopped = self.stop.subscribe();
        let front = self.front.clone();
        async move {
            let stop = async move { _ = stopped.wait_for(|stop| *stop).await };
            serve(front, listener, stop, grace).await;
        }
    }

    /// The HTTP side alone (`/health`, `/version`, `/metrics`, ...), for ports that serve no clients.
    pub fn pages(&self) -> Router {
        http::add_to(Router::new(), Arc::clone(&self.shared)).with_state(())
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.count()
    }

    /// Stops the heartbeat and whatever [`Proxy::serve`] has started; await that to see its end.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.hub.stop();
        self.heartbeat.abort();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.hub.stop();
        self.heartbeat.abort();
    }
}

fn front(
    shared: &Arc<Shared>,
    placement: Arc<PlacementClient>,
    watch: WatchService,
    recipes: Arc<Recipes>,
    stopped: watch::Receiver<bool>,
) -> Front {
    let kv =
        KvServer::new(KvService::new(Arc::clone(shared))).max_decoding_message_size(shared.config.receive_bytes_max());
    let lease = LeaseServer::new(LeaseService::new(Arc::clone(shared), stopped));
    Front::new(kv, lease, rest(shared, placement, watch, recipes), Arc::clone(&shared.in_flight))
}

/// Everything but KV and Lease.
fn rest(shared: &Arc<Shared>, placement: Arc<PlacementClient>, watch: WatchService, recipes: Arc<Recipes>) -> Router {
    let cluster = ClusterServer::new(ClusterService::new(Arc::clone(shared)));
    let routes = Routes::new(cluster)
        .add_service(MaintenanceServer::new(MaintenanceService::new(Arc::clone(shared))))
        .add_service(AuthServer::new(AuthService::new(Arc::clone(shared))))
        .add_service(watch)
        .add_service(LockServer::new(LockService::new(Arc::clone(&recipes))))
        .add_service(ElectionServer::new(ElectionService::new(recipes)))
        .add_service(AdminServer::new(AdminService::new(Arc::clone(shared), placement)))
        .add_service(InspectServer::new(InspectService::new(Arc::clone(shared))))
        // The service name "" is SERVING from the start.
        .add_service(tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(HealthReporter::new()),
        ));
    http::add_to(routes.into_axum_router(), Arc::clone(shared)).with_state(())
}
