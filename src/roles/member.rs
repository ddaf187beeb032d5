//! The placement member of a process: opens, serves, stops.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use braid_placement::{AutoCompaction, MemberConfig, Placement, PlacementConfig};
use braid_proto::pb::Domain;
use braid_proto::service::NumberService;
use bytes::Bytes;
use tonic::service::Routes;
use tracing::info;

use super::fabric::Fabric;
use crate::args::groups::{BootstrapArgs, MemberArgs};
use crate::args::types::ClusterState;
use crate::bootstrap::{self, BootstrapError};
use crate::cluster::Membership;
use crate::folder::identity::Identity;

/// Folder of the member inside a data folder.
pub const FOLDER: &str = "placement";

/// How the data of an empty cluster begins.
pub struct Begin {
    /// Copies of every region.
    pub replicas: usize,
    /// Internal keys at which it is cut.
    pub cuts: Vec<Bytes>,
}

impl Begin {
    /// Reads the flags; `stores` is how many the cluster starts with, if they say so.
    pub fn of(args: &BootstrapArgs, stores: Option<usize>) -> Result<Self, BootstrapError> {
        let replicas = bootstrap::replicas(args.replicas, stores)?;
        let (count, named) = (args.initial_regions, &args.initial_split_keys);
        let mut cuts = bootstrap::lease_cuts(args.initial_lease_regions);
        cuts.extend(bootstrap::split_keys(count, named, "initial-regions", "initial-split-keys")?);
        Ok(Self { replicas, cuts })
    }
}

/// The data folder of a member. The only member of a cluster that exists must have its folder.
pub fn data_dir(args: &MemberArgs, membership: &Membership) -> Result<PathBuf> {
    let path = args.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.braid", args.name)));
    let alone = membership.members.len() == 1;
    if alone && args.initial_cluster_state == ClusterState::Existing && Identity::read(&path)?.is_none() {
        bail!(
            "--initial-cluster-state existing: {} has never been part of a cluster, and --initial-cluster names no other \
             member that could know one; correct --data-dir or --initial-cluster, or begin a cluster with new",
            path.display()
        );
    }
    Ok(path)
}

/// An open placement member.
pub struct Member {
    placement: Placement,
    id: u64,
    fabric: Arc<Fabric>,
}

impl Member {
    /// Opens the member of `membership` that this process is.
    pub async fn open(
        membership: &Membership,
        state: ClusterState,
        begin: Begin,
        auto_compaction: AutoCompaction,
        dir: PathBuf,
        fabric: &Arc<Fabric>,
    ) -> Result<Self> {
        let id = membership.me().id;
        for member in membership.members.iter().filter(|member| member.id != id) {
            fabric.addresses.set(Domain::Placement, member.id, &member.url.addr);
        }
        let members = membership.members.iter().map(|member| MemberConfig {
            id: member.id,
            name: member.name.clone(),
            peer_addr: member.url.addr.clone(),
        });
        let config = PlacementConfig {
            dir,
            cluster_id: membership.cluster_id,
            member_id: id,
            members: members.collect(),
            new: state == ClusterState::New,
            replicas: begin.replicas,
            split_keys: begin.cuts,
            auto_compaction,
        };
        let placement = Placement::open(config, fabric.transport()).await?;
        fabric.registry.register(Domain::Placement, id, placement.inbound());
        info!(
            cluster = format!("{:016x}", membership.cluster_id.0),
            member = format!("{id:016x}"),
            "the placement member is open"
        );
        Ok(Self { placement, id, fabric: Arc::clone(fabric) })
    }

    /// Adds its services to a peer port.
    pub fn add_to(&self, routes: Routes) -> Routes {
        self.placement.add_to(routes)
    }

    /// The sequencer, for parts of the same process.
    pub fn number_service(&self) -> Arc<dyn NumberService> {
        self.placement.number_service()
    }

    /// Stops it.
    pub async fn shutdown(self) {
        self.placement.shutdown().await;
        self.fabric.registry.unregister(Domain::Placement, self.id);
        info!("the placement member has stopped");
    }
}
