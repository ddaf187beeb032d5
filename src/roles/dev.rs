//! `braid dev`: a whole cluster in one process, with as many stores as wanted, in one folder.
//!
//! The parts are the real ones. What they say to each other stays in the process where that is possible (raft, regions,
//! numbers) and takes loopback ports that nobody needs to know otherwise.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use braid_placement_client::PlacementClient;
use braid_proto::id::ClusterId;

use super::fabric::{Fabric, LateStore, PeerPort};
use super::links::Links;
use super::member::{self, Begin, Member};
use super::process::Process;
use super::proxy_part::{self, Beside, ProxyIdentity, ProxyPart};
use super::store_part::{self, StorePart, registration};
use super::waiting::{drawn_id, registered};
use crate::args::roles::DevArgs;
use crate::args::types::{ClusterState, Url};
use crate::bootstrap;
use crate::cluster::Membership;
use crate::folder::Folder;
use crate::folder::identity::{Claim, Role};
use crate::listen::Ports;

/// Name of the one placement member and proxy.
const NAME: &str = "dev";

struct Dev {
    args: DevArgs,
    process: Process,
    folder: Folder,
    fabric: Arc<Fabric>,
    membership: Membership,
    stores: u32,
}

/// One of the stores, with its port and its part of the folder.
struct OpenStore {
    store: StorePart,
    port: PeerPort,
    _folder: Folder,
}

/// Runs until a signal or a failure ends it.
pub async fn run(args: DevArgs) -> Result<()> {
    let auto_compaction = args.compaction.mode()?;
    let client_urls = proxy_part::advertised(&args.client)?;
    let cuts = bootstrap::split_keys(args.regions, &args.split_keys, "regions", "split-keys")?;

    let process = Process::begin(&args.process)?;
    let client_ports = Ports::bind("--listen-client-urls", &args.client.listen_client_urls).await?;
    process.serve_pages(Ports::bind("--listen-metrics-urls", &args.process.listen_metrics_urls).await?);
    let mut folder = Folder::open(&args.data_dir)?;
    let known = folder.identity().is_some();
    let stores = args.stores.or(folder.identity().and_then(|identity| identity.stores())).unwrap_or(1);
    let cluster_id = folder.identity().and_then(|identity| identity.cluster_id()).unwrap_or(ClusterId(drawn_id()));
    folder.claim(claim(Role::Dev, NAME, cluster_id, Some(stores)))?;
    if known && (args.regions.is_some() || !args.split_keys.is_empty()) {
        tracing::warn!("the folder has its regions already: --regions and --split-keys change nothing");
    }

    let begin = Begin { replicas: bootstrap::replicas(None, Some(stores as usize))?, cuts };
    let fabric = Arc::new(Fabric::within_process(cluster_id, args.storage.transport()));
    let ports = Ports::bind_any().await.context("cannot listen on the loopback address")?;
    let membership = Membership::alone(cluster_id, NAME, ports.urls().remove(0));
    let (state, dir) = (ClusterState::New, folder.part(member::FOLDER)?);
    let member = Member::open(&membership, state, begin, auto_compaction, dir, &fabric).await?;
    let dev = Dev { args, process, folder, fabric, membership, stores };
    let mut peers = dev.fabric.serve(ports, member.add_to(dev.fabric.routes()), &dev.process);
    let result = dev.serve(&member, client_urls, client_ports, &mut peers).await;
    member.shutdown().await;
    peers.stop().await;
    result
}

impl Dev {
    /// Opens stores and proxy over the placement member, until a signal or a failure.
    async fn serve(&self, member: &Member, urls: Vec<Url>, ports: Ports, peers: &mut PeerPort) -> Result<()> {
        let placement = Arc::new(PlacementClient::new(vec![self.membership.me().url.addr.clone()]));
        let links = Links::new(self.membership.cluster_id, placement, Some(member.number_service()));
        let mut stores = Vec::new();
        let mut result = self.open_stores(&links, &mut stores).await;
        if result.is_ok() {
            result = self.serve_clients(&links, &stores, urls, ports, peers).await;
        }
        let mut ports = Vec::with_capacity(stores.len());
        for OpenStore { store, port, _folder } in stores {
            store.close().await;
            ports.push(port);
        }
        for port in ports {
            port.stop().await;
        }
        links.numbers.stop();
        result
    }

    /// Opens the stores one after the other; what is open when it ends lies in `stores`.
    async fn open_stores(&self, links: &Links, stores: &mut Vec<OpenStore>) -> Result<()> {
        for number in 1..=self.stores {
            let name = format!("store-{number}");
            let mut folder = Folder::open(&self.folder.part(&name)?)?;
            folder.claim(claim(Role::Store, &name, self.membership.cluster_id, None))?;
            let ports = Ports::bind_any().await.context("cannot listen on the loopback address")?;
            let request = registration(&name, &ports.urls()[0], &[], folder.registered());
            let registered = tokio::select! {
                registered = registered(&links.placement, request) => registered?,
                () = self.process.stop.wanted() => return Ok(()),
            };
            let claim = claim(Role::Store, &name, registered.cluster_id, None);
            folder.claim(Claim { store_id: Some(registered.store_id), ..claim })?;
            let late = LateStore::default();
            let routes = late.add_to(self.fabric.routes());
            let port = self.fabric.serve(ports, routes, &self.process);
            let (storage, fabric) = (&self.args.storage, &self.fabric);
            let dir = folder.part(store_part::FOLDER)?;
            let store = StorePart::open(dir, registered, storage, links, fabric, &late).await?;
            stores.push(OpenStore { store, port, _folder: folder });
        }
        Ok(())
    }

    async fn serve_clients(
        &self,
        links: &Links,
        stores: &[OpenStore],
        client_urls: Vec<Url>,
        ports: Ports,
        peers: &mut PeerPort,
    ) -> Result<()> {
        let mut beside = Beside::new(&self.args.storage);
        stores.iter().for_each(|open| beside.add(&open.store));
        let identity = ProxyIdentity {
            cluster_id: self.membership.cluster_id,
            member_id: self.membership.me().id,
            name: NAME.to_owned(),
            client_urls: client_urls.clone(),
            peer_urls: Vec::new(),
        };
        let proxy = ProxyPart::start(identity, &self.args.client, links, beside, ports, &self.process);
        let result = tokio::select! {
            () = self.say_ready(&client_urls[0]) => Ok(()),
            () = self.process.stop.wanted() => Ok(()),
            error = peers.failed() => Err(error),
        };
        proxy.stop().await;
        result
    }

    /// Says where the cluster listens as soon as it answers; then waits for ever.
    async fn say_ready(&self, url: &Url) {
        self.process.healthy().await;
        let (stores, dir) = (self.stores, self.args.data_dir.display());
        println!(
            "braid serves etcd v3 on {url} (stores: {stores}, data in {dir}, Ctrl-C stops it); \
             try: etcdctl --endpoints={url} put hello world"
        );
        std::future::pending().await
    }
}

fn claim(role: Role, name: &str, cluster_id: ClusterId, stores: Option<u32>) -> Claim {
    Claim { role, name: name.to_owned(), cluster_id: Some(cluster_id), member_id: None, store_id: None, stores }
}
