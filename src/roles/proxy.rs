//! `braid proxy`: etcd's API, without data.

use std::sync::Arc;

use anyhow::Result;

use super::links::Links;
use super::process::Process;
use super::proxy_part::{self, Beside, ProxyIdentity, ProxyPart};
use super::waiting::{cluster_of, placement_client};
use crate::args::roles::ProxyArgs;
use crate::args::types::Url;
use crate::hash::stable;
use crate::listen::Ports;

/// Runs until a signal or a failure ends it.
pub async fn run(args: ProxyArgs) -> Result<()> {
    let placement = Arc::new(placement_client(&args.placement_endpoints)?);
    let client_urls = proxy_part::advertised(&args.client)?;

    let process = Process::begin(&args.process)?;
    let ports = Ports::bind("--listen-client-urls", &args.client.listen_client_urls).await?;
    process.serve_pages(Ports::bind("--listen-metrics-urls", &args.process.listen_metrics_urls).await?);
    let cluster_id = tokio::select! {
        cluster_id = cluster_of(&placement) => cluster_id?,
        () = process.stop.wanted() => return Ok(()),
    };
    let links = Links::new(cluster_id, placement, None);
    let identity = ProxyIdentity {
        cluster_id,
        member_id: member_id(&args.name, &client_urls),
        name: args.name.clone(),
        client_urls,
        peer_urls: Vec::new(),
    };
    let proxy = ProxyPart::start(identity, &args.client, &links, Beside::default(), ports, &process);
    process.stop.wanted().await;
    proxy.stop().await;
    links.numbers.stop();
    Ok(())
}

/// A proxy keeps nothing, so its id is made of what clients know it by.
fn member_id(name: &str, urls: &[Url]) -> u64 {
    let urls: Vec<String> = urls.iter().map(Url::to_string).collect();
    stable(["proxy", name].into_iter().chain(urls.iter().map(String::as_str)))
}
