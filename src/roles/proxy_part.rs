//! The proxy of a process: starts, serves clients, stops.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use braid_proto::id::ClusterId;
use braid_proxy::{Proxy, ProxyConfig};
use tokio::task::{JoinHandle, JoinSet};
use tracing::info;

use super::links::Links;
use super::process::Process;
use super::store_part::StorePart;
use crate::args::groups::{ClientArgs, StorageArgs};
use crate::args::types::Url;
use crate::listen::Ports;

/// How long requests that are under way may take to finish once the process shall stop.
const GRACE: Duration = Duration::from_secs(5);

/// Who a proxy is.
pub struct ProxyIdentity {
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Its id in the member list; the same after a restart.
    pub member_id: u64,
    /// `--name`.
    pub name: String,
    /// What clients dial.
    pub client_urls: Vec<Url>,
    /// What other processes dial; none for a proxy alone.
    pub peer_urls: Vec<Url>,
}

/// The stores of the same process.
#[derive(Default)]
pub struct Beside {
    /// Bytes of their files.
    used_bytes: Vec<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// Their quota; 0: none.
    quota_bytes: i64,
}

impl Beside {
    /// None yet.
    pub fn new(storage: &StorageArgs) -> Self {
        Self { quota_bytes: storage.quota_backend_bytes.max(0), ..Self::default() }
    }

    /// Adds `store`.
    pub fn add(&mut self, store: &StorePart) {
        self.used_bytes.push(Box::new(store.data_bytes_probe()));
    }
}

/// A proxy that serves clients.
pub struct ProxyPart {
    proxy: Proxy,
    serving: JoinSet<()>,
    announcing: JoinHandle<()>,
}

impl ProxyPart {
    /// Starts it and serves clients on `ports`.
    pub fn start(
        identity: ProxyIdentity,
        client: &ClientArgs,
        links: &Links,
        beside: Beside,
        ports: Ports,
        process: &Process,
    ) -> Self {
        let texts = |urls: &[Url]| urls.iter().map(Url::to_string).collect();
        let used_bytes = beside.used_bytes;
        let config = ProxyConfig {
            client_urls: texts(&identity.client_urls),
            peer_urls: texts(&identity.peer_urls),
            max_request_bytes: client.max_request_bytes as usize,
            max_txn_ops: client.max_txn_ops as usize,
            watch_progress_interval: client.watch_progress_notify_interval.0,
            quota_bytes: beside.quota_bytes,
            db_bytes: Arc::new(move || used_bytes.iter().map(|used| used()).sum()),
            metrics: process.render(),
            ..ProxyConfig::new(identity.cluster_id, identity.member_id, identity.name)
        };
        let proxy =
            Proxy::start(config, Arc::clone(&links.placement), Arc::clone(&links.numbers), Arc::clone(&links.regions));
        let mut serving = JoinSet::new();
        for listener in ports.into_listeners() {
            serving.spawn(proxy.serve(listener, GRACE));
        }
        process.set_ready_with(proxy.pages());
        let healthy = process.healthy();
        let announcing = tokio::spawn(async move {
            healthy.await;
            info!("healthy: clients are served");
        });
        Self { proxy, serving, announcing }
    }

    /// Stops: takes no new connections, lets requests finish.
    pub async fn stop(mut self) {
        self.proxy.stop();
        self.announcing.abort();
        while self.serving.join_next().await.is_some() {}
    }
}

/// What clients are told to dial.
pub fn advertised(client: &ClientArgs) -> Result<Vec<Url>> {
    let urls = match &client.advertise_client_urls[..] {
        [] => &client.listen_client_urls,
        _ => &client.advertise_client_urls,
    };
    match urls.iter().find(|url| url.is_wildcard()) {
        Some(url) => bail!("clients cannot dial {url}; give --advertise-client-urls http://HOST:PORT"),
        None => Ok(urls.clone()),
    }
}
