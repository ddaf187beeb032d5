//! `braid placement`: a member of placement's group.

use std::sync::Arc;

use anyhow::Result;
use braid_host::transport::TransportConfig;

use super::fabric::Fabric;
use super::member::{self, Begin, Member};
use super::process::Process;
use crate::args::roles::PlacementArgs;
use crate::cluster::Membership;
use crate::folder::Folder;
use crate::folder::identity::{Claim, Role};
use crate::listen::Ports;

/// Runs until a signal or a failure ends it.
pub async fn run(args: PlacementArgs) -> Result<()> {
    let membership = Membership::of(&args.member)?;
    let begin = Begin::of(&args.member.bootstrap, None)?;
    let auto_compaction = args.compaction.mode()?;
    let path = member::data_dir(&args.member, &membership)?;

    let process = Process::begin(&args.process)?;
    let ports = Ports::bind("--listen-peer-urls", &args.member.listen_peer_urls).await?;
    process.serve_pages(Ports::bind("--listen-metrics-urls", &args.process.listen_metrics_urls).await?);
    let mut folder = Folder::open(&path)?;
    folder.claim(Claim {
        role: Role::Placement,
        name: args.member.name.clone(),
        cluster_id: Some(membership.cluster_id),
        member_id: Some(membership.me().id),
        store_id: None,
        stores: None,
    })?;

    let fabric = Arc::new(Fabric::new(membership.cluster_id, TransportConfig::default()));
    let (state, dir) = (args.member.initial_cluster_state, folder.part(member::FOLDER)?);
    let member = Member::open(&membership, state, begin, auto_compaction, dir, &fabric).await?;
    let mut peers = fabric.serve(ports, member.add_to(fabric.routes()), &process);
    process.set_ready();
    let result = tokio::select! {
        () = process.stop.wanted() => Ok(()),
        error = peers.failed() => Err(error),
    };
    member.shutdown().await;
    peers.stop().await;
    result
}
