//! The store of a process: registers, opens, serves, stops.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use braid_proto::pb::{Domain, RegisterStoreRequest};
use braid_store::{Registered, SpaceLimits, Store, StoreConfig};
use tracing::info;

use super::fabric::{Fabric, LateStore};
use super::links::Links;
use crate::args::groups::StorageArgs;
use crate::args::types::{Label, Url};

/// Folder of the store inside a data folder.
pub const FOLDER: &str = "store";
/// Bytes of raft log, over all regions of a store, after which old files are purged.
const LOG_PURGE_BYTES: u64 = 64 << 20;
/// Raft workers of a store.
const RAFT_WORKERS: usize = 1;

/// What placement is told of a store. `known` is what its folder says; none at its first start.
pub fn registration(name: &str, peer: &Url, labels: &[Label], known: Option<Registered>) -> RegisterStoreRequest {
    RegisterStoreRequest {
        store_id: known.map_or(0, |known| known.store_id.0),
        cluster_id: known.map_or(0, |known| known.cluster_id.0),
        peer_addr: peer.addr.clone(),
        labels: labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: name.to_owned(),
    }
}

/// An open store.
pub struct StorePart {
    store: Store,
    fabric: Arc<Fabric>,
}

impl StorePart {
    /// Opens the store in `dir` and lets `late` serve its regions.
    pub async fn open(
        dir: PathBuf,
        registered: Registered,
        storage: &StorageArgs,
        links: &Links,
        fabric: &Arc<Fabric>,
        late: &LateStore,
    ) -> Result<Self> {
        let config = config(dir, registered, storage)?;
        let (placement, numbers) = (Arc::clone(&links.placement), Arc::clone(&links.numbers));
        let regions = Arc::clone(&links.regions);
        let store =
            Store::open(config, placement, numbers, regions, fabric.transport(), fabric.addresses.clone()).await?;
        fabric.registry.register(Domain::Store, store.store_id().0, store.inbound());
        late.set(&store);
        info!(store = %store.store_id(), cluster = format!("{:016x}", registered.cluster_id.0), "the store is open");
        Ok(Self { store, fabric: Arc::clone(fabric) })
    }

    /// See [`Store::refused`].
    pub fn refused(&self) -> impl Future<Output = String> + Send + use<> {
        self.store.refused()
    }

    /// Asks for the bytes of its files.
    pub fn data_bytes_probe(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        self.store.data_bytes_probe()
    }

    /// Stops it; its leaders go to other stores first.
    pub async fn shutdown(self) {
        self.ended(Store::shutdown).await;
    }

    /// Stops it as part of a cluster that stops as a whole.
    pub async fn close(self) {
        self.ended(Store::close).await;
    }

    async fn ended<F: Future<Output = ()>>(self, end: impl FnOnce(Store) -> F) {
        let id = self.store.store_id();
        end(self.store).await;
        self.fabric.registry.unregister(Domain::Store, id.0);
        info!(store = %id, "the store has stopped");
    }
}

fn config(dir: PathBuf, registered: Registered, storage: &StorageArgs) -> Result<StoreConfig> {
    let bytes = |flag: &str, value: u64| usize::try_from(value).with_context(|| format!("--{flag} is too large"));
    Ok(StoreConfig {
        dir,
        cluster_id: registered.cluster_id,
        store_id: registered.store_id,
        workers: RAFT_WORKERS,
        block_cache_bytes: bytes("block-cache-bytes", storage.block_cache_bytes)?,
        record_cache_bytes: bytes("record-cache-bytes", storage.record_cache_bytes)?,
        memtable_bytes: bytes("memtable-bytes", storage.memtable_bytes)?,
        log_purge_bytes: LOG_PURGE_BYTES,
        log_keep_entries: storage.raft_log_keep_entries,
        log_keep_bytes: storage.raft_log_keep_bytes,
        snapshot_bytes_per_second: storage.snapshot_bytes_per_second,
        space: SpaceLimits { quota_bytes: storage.quota().unwrap_or(0), ..SpaceLimits::default() },
    })
}
