//! `braid server`: a placement member, a store and a proxy in one process.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use braid_placement_client::PlacementClient;
use braid_store::Registered;

use super::fabric::{Fabric, LateStore, PeerPort};
use super::links::Links;
use super::member::{self, Begin, Member};
use super::process::Process;
use super::proxy_part::{self, Beside, ProxyIdentity, ProxyPart};
use super::store_part::{self, StorePart, registration};
use super::waiting::{refused, registered};
use crate::args::roles::ServerArgs;
use crate::args::types::Url;
use crate::cluster::Membership;
use crate::folder::Folder;
use crate::folder::identity::{Claim, Role};
use crate::folder::neighbours;
use crate::listen::Ports;

/// A process whose flags make sense and whose ports and folder are its own.
struct Server {
    args: ServerArgs,
    membership: Membership,
    client_urls: Vec<Url>,
    process: Process,
    folder: Folder,
    fabric: Arc<Fabric>,
    store: LateStore,
}

/// Runs until a signal or a failure ends it.
pub async fn run(args: ServerArgs) -> Result<()> {
    let membership = Membership::of(&args.member)?;
    let begin = Begin::of(&args.member.bootstrap, Some(membership.members.len()))?;
    let auto_compaction = args.compaction.mode()?;
    let client_urls = proxy_part::advertised(&args.client)?;
    let path = member::data_dir(&args.member, &membership)?;

    let process = Process::begin(&args.process)?;
    let peer_ports = Ports::bind("--listen-peer-urls", &args.member.listen_peer_urls).await?;
    let client_ports = Ports::bind("--listen-client-urls", &args.client.listen_client_urls).await?;
    process.serve_pages(Ports::bind("--listen-metrics-urls", &args.process.listen_metrics_urls).await?);
    let mut folder = Folder::open(&path)?;
    folder.claim(claim(&args, &membership, None))?;

    let fabric = Arc::new(Fabric::new(membership.cluster_id, args.storage.transport()));
    let dir = folder.part(member::FOLDER)?;
    let state = args.member.initial_cluster_state;
    let mut server = Server { args, membership, client_urls, process, folder, fabric, store: LateStore::default() };
    let member = Member::open(&server.membership, state, begin, auto_compaction, dir, &server.fabric).await?;
    let routes = server.store.add_to(member.add_to(server.fabric.routes()));
    let mut peers = server.fabric.serve(peer_ports, routes, &server.process);
    let result = server.serve(&member, client_ports, &mut peers).await;
    member.shutdown().await;
    peers.stop().await;
    result
}

impl Server {
    /// Opens store and proxy over a placement member that is there, until a signal or a failure.
    async fn serve(&mut self, member: &Member, ports: Ports, peers: &mut PeerPort) -> Result<()> {
        let placement = Arc::new(PlacementClient::new(self.endpoints()));
        let me = &self.membership.me().url;
        let known = self.folder.registered();
        let request = registration(&self.args.member.name, me, &self.args.labels.labels, known);
        let admitted = match known {
            // Its regions need not wait for placement's leader.
            Some(known) => known,
            None => tokio::select! {
                registered = registered(&placement, request.clone()) => registered?,
                () = self.process.stop.wanted() => return Ok(()),
                error = peers.failed() => return Err(error),
            },
        };
        self.folder.claim(claim(&self.args, &self.membership, Some(admitted)))?;
        neighbours::recall(self.folder.path(), &self.fabric.addresses);
        let remember = neighbours::remember(Arc::from(self.folder.path()), self.fabric.addresses.clone());
        let remembering = tokio::spawn(remember);
        let links = Links::new(self.membership.cluster_id, Arc::clone(&placement), Some(member.number_service()));
        let unwanted = async {
            match known {
                Some(known) => refused(&placement, request, known).await,
                None => std::future::pending().await,
            }
        };
        let result = self.serve_clients(admitted, &links, ports, peers, unwanted).await;
        links.numbers.stop();
        remembering.abort();
        result
    }

    async fn serve_clients(
        &self,
        registered: Registered,
        links: &Links,
        ports: Ports,
        peers: &mut PeerPort,
        unwanted: impl Future<Output = anyhow::Error>,
    ) -> Result<()> {
        let (dir, storage): (PathBuf, _) = (self.folder.part(store_part::FOLDER)?, &self.args.storage);
        let store = StorePart::open(dir, registered, storage, links, &self.fabric, &self.store).await?;
        let mut beside = Beside::new(storage);
        beside.add(&store);
        let identity = ProxyIdentity {
            cluster_id: self.membership.cluster_id,
            member_id: self.membership.me().id,
            name: self.args.member.name.clone(),
            client_urls: self.client_urls.clone(),
            peer_urls: vec![self.membership.me().url.clone()],
        };
        let proxy = ProxyPart::start(identity, &self.args.client, links, beside, ports, &self.process);
        let result = tokio::select! {
            () = self.process.stop.wanted() => Ok(()),
            error = peers.failed() => Err(error),
            error = unwanted => Err(error),
        };
        proxy.stop().await;
        store.shutdown().await;
        result
    }

    /// Placement's members, the one in this process first.
    fn endpoints(&self) -> Vec<String> {
        let me = self.membership.me();
        let others = self.membership.members.iter().filter(|member| member.id != me.id);
        std::iter::once(me).chain(others).map(|member| member.url.addr.clone()).collect()
    }
}

fn claim(args: &ServerArgs, membership: &Membership, registered: Option<Registered>) -> Claim {
    Claim {
        role: Role::Server,
        name: args.member.name.clone(),
        cluster_id: Some(membership.cluster_id),
        member_id: Some(membership.me().id),
        store_id: registered.map(|registered| registered.store_id),
        stores: None,
    }
}
