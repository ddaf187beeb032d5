//! The hosts of this process: what arrives is theirs, and what they send each other needs no network.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use braid_proto::pb::Domain;
use parking_lot::RwLock;

use crate::Inbound;

type Hosts = HashMap<(Domain, u64), Arc<dyn Inbound>>;

/// Hosts by domain and id, shared by all who hold a clone. A process listens first and registers its hosts when they
/// are open.
#[derive(Clone, Default)]
pub struct LocalRegistry {
    hosts: Arc<RwLock<Hosts>>,
}

impl LocalRegistry {
    /// Host `host` of `domain` is open. Replaces an earlier one.
    pub fn register(&self, domain: Domain, host: u64, inbound: Arc<dyn Inbound>) {
        self.hosts.write().insert((domain, host), inbound);
    }

    /// The host is closed; what arrives for it is refused.
    pub fn unregister(&self, domain: Domain, host: u64) {
        self.hosts.write().remove(&(domain, host));
    }

    /// The host, if it is open in this process.
    pub fn get(&self, domain: Domain, host: u64) -> Option<Arc<dyn Inbound>> {
        self.hosts.read().get(&(domain, host)).cloned()
    }
}

impl fmt::Debug for LocalRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.hosts.read().keys()).finish()
    }
}
