//! `braid store`: regions of the data.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use braid_store::Registered;

use super::fabric::{Fabric, LateStore};
use super::links::Links;
use super::process::Process;
use super::store_part::{self, StorePart, registration};
use super::waiting::{placement_client, refused, registered};
use crate::args::roles::StoreArgs;
use crate::args::types::Url;
use crate::folder::Folder;
use crate::folder::identity::{Claim, Role};
use crate::folder::neighbours;
use crate::listen::Ports;

/// Runs until a signal or a failure ends it.
pub async fn run(args: StoreArgs) -> Result<()> {
    let placement = Arc::new(placement_client(&args.placement_endpoints)?);
    let peer = advertised(&args)?;
    let path = args.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.braid", args.name)));

    let process = Process::begin(&args.process)?;
    let ports = Ports::bind("--listen-peer-urls", &args.listen_peer_urls).await?;
    process.serve_pages(Ports::bind("--listen-metrics-urls", &args.process.listen_metrics_urls).await?);
    let mut folder = Folder::open(&path)?;
    folder.claim(claim(&args, None))?;

    // The port is served once the store is open: nobody sends anything to a store that has not registered.
    let known = folder.registered();
    let request = registration(&args.name, &peer, &args.labels.labels, known);
    let registered = match known {
        // Its regions need not wait for placement's leader.
        Some(known) => known,
        None => tokio::select! {
            registered = registered(&placement, request.clone()) => registered?,
            () = process.stop.wanted() => return Ok(()),
        },
    };
    folder.claim(claim(&args, Some(registered)))?;
    let fabric = Arc::new(Fabric::new(registered.cluster_id, args.storage.transport()));
    neighbours::recall(folder.path(), &fabric.addresses);
    let remembering = tokio::spawn(neighbours::remember(Arc::from(folder.path()), fabric.addresses.clone()));
    let links = Links::new(registered.cluster_id, Arc::clone(&placement), None);
    let late = LateStore::default();
    let mut peers = fabric.serve(ports, late.add_to(fabric.routes()), &process);
    let dir = folder.part(store_part::FOLDER)?;
    let store = StorePart::open(dir, registered, &args.storage, &links, &fabric, &late).await?;
    process.set_ready();
    let result = tokio::select! {
        () = process.stop.wanted() => Ok(()),
        error = peers.failed() => Err(error),
        error = refused(&placement, request, registered), if known.is_some() => Err(error),
        why = store.refused() => Err(anyhow!("placement refuses this store: {why}")),
    };
    store.shutdown().await;
    links.numbers.stop();
    remembering.abort();
    peers.stop().await;
    result
}

fn claim(args: &StoreArgs, registered: Option<Registered>) -> Claim {
    Claim {
        role: Role::Store,
        name: args.name.clone(),
        cluster_id: registered.map(|registered| registered.cluster_id),
        member_id: None,
        store_id: registered.map(|registered| registered.store_id),
        stores: None,
    }
}

/// Where other processes reach this one.
fn advertised(args: &StoreArgs) -> Result<Url> {
    let url = match &args.advertise_peer_urls[..] {
        [] => args.listen_peer_urls[0].clone(),
        [url] => url.clone(),
        urls => bail!("--advertise-peer-urls has {} URLs; braid takes one", urls.len()),
    };
    if url.is_wildcard() {
        bail!("other processes cannot dial {url}; give --advertise-peer-urls http://HOST:PORT");
    }
    Ok(url)
}
