//! The stores of the cluster as this process reaches them: those of its own process directly, the others over one
//! connection each.

pub mod connection;
pub mod outbox;
pub mod remote;

use std::collections::HashMap;
use std::sync::Arc;

use braid_proto::id::{ClusterId, StoreId};
use braid_proto::pb::{NotLeader, Refusal, RegionRequest, RegionResponse, Store, Unknown, refusal, region_response};
use braid_proto::service::{BoxFuture, RegionService};
use parking_lot::RwLock;

use crate::retry::CONNECTION_LOST;
use remote::Remote;

/// Every store that this process can reach.
pub struct Stores {
    cluster_id: ClusterId,
    local: RwLock<HashMap<StoreId, Arc<dyn RegionService>>>,
    remote: RwLock<HashMap<StoreId, Arc<Remote>>>,
    /// Where the stores of this process listen, as placement says.
    local_addresses: RwLock<HashMap<StoreId, String>>,
}

impl Stores {
    /// None yet: those of this process are added, the others are learned from placement.
    pub fn new(cluster_id: ClusterId) -> Self {
        Self { cluster_id, local: RwLock::default(), remote: RwLock::default(), local_addresses: RwLock::default() }
    }

    /// From now on `store` is called in this process.
    pub fn add_local(&self, store: StoreId, service: Arc<dyn RegionService>) {
        self.local.write().insert(store, service);
    }

    /// `store` of this process has stopped.
    pub fn remove_local(&self, store: StoreId) {
        self.local.write().remove(&store);
    }

    /// Whether `store` lives in this process.
    pub fn is_local(&self, store: StoreId) -> bool {
        self.local.read().contains_key(&store)
    }

    /// `store`, if it lives in this process.
    pub fn local(&self, store: StoreId) -> Option<Arc<dyn RegionService>> {
        self.local.read().get(&store).map(Arc::clone)
    }

    /// Where `store` listens ("host:port"), if placement has said so.
    pub fn address(&self, store: StoreId) -> Option<String> {
        if let Some(remote) = self.remote.read().get(&store) {
            return Some(remote.address().to_owned());
        }
        self.local_addresses.read().get(&store).cloned()
    }

    /// Sends a request to `store`. `None`: nobody knows where that is.
    pub fn call(&self, store: StoreId, request: RegionRequest) -> Option<BoxFuture<RegionResponse>> {
        if let Some(local) = self.local(store) {
            return Some(local.call(request));
        }
        self.remote.read().get(&store).map(|remote| remote.call(request))
    }

    /// Learns where stores are. A store that has moved gets a new connection. Stores that are gone from the list of
    /// placement are kept: the list of another answer may be newer.
    pub fn learn(&self, stores: &[Store]) {
        for store in stores.iter().filter(|store| self.is_local(StoreId(store.id))) {
            let id = StoreId(store.id);
            let known = self.local_addresses.read().get(&id).is_some_and(|known| *known == store.peer_addr);
            if !known {
                self.local_addresses.write().insert(id, store.peer_addr.clone());
            }
        }
        let is_news = |remotes: &HashMap<StoreId, Arc<Remote>>, store: &Store| {
            let id = StoreId(store.id);
            !self.is_local(id) && remotes.get(&id).is_none_or(|known| known.address() != store.peer_addr)
        };
        let remotes = self.remote.read();
        let news: Vec<&Store> = stores.iter().filter(|store| is_news(&remotes, store)).collect();
        drop(remotes);
        if news.is_empty() {
            return;
        }
        let mut remotes = self.remote.write();
        for store in news {
            if is_news(&remotes, store) {
                let id = StoreId(store.id);
                let remote = Arc::new(Remote::new(self.cluster_id, id, store.peer_addr.clone()));
                tracing::debug!(store = %id, address = store.peer_addr, "learned where a store is");
                remotes.insert(id, remote);
            }
        }
    }
}

/// The request never left this process: it certainly did not happen, and this store is not the one to ask.
fn not_sent() -> RegionResponse {
    refusal_of(refusal::Reason::NotLeader(NotLeader { leader: None }))
}

/// The request left this process and its answer will not come.
fn lost() -> RegionResponse {
    refusal_of(refusal::Reason::Unknown(Unknown { why: CONNECTION_LOST.to_owned() }))
}

fn refusal_of(reason: refusal::Reason) -> RegionResponse {
    RegionResponse { result: Some(region_response::Result::Refusal(Refusal { reason: Some(reason) })) }
}
