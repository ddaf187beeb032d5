//! Where hosts listen. Filled from flags and from placement's answers while lanes are running.

use std::collections::HashMap;
use std::sync::Arc;

use braid_proto::pb::Domain;
use parking_lot::RwLock;
use tokio::sync::watch;

/// `host:port` of every host known, shared by all who hold a clone. Grows with the cluster; hosts are never forgotten.
#[derive(Clone, Debug)]
pub struct AddressBook {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    entries: RwLock<HashMap<(Domain, u64), Arc<str>>>,
    /// Counts changes; lanes watch it to leave an old address.
    changes: watch::Sender<u64>,
}

impl Default for AddressBook {
    fn default() -> Self {
        AddressBook { shared: Arc::new(Shared { entries: RwLock::default(), changes: watch::Sender::new(0) }) }
    }
}

impl AddressBook {
    /// Host `host` of `domain` listens at `address` (`host:port`). A new address moves open connections there.
    pub fn set(&self, domain: Domain, host: u64, address: &str) {
        if self.shared.entries.read().get(&(domain, host)).is_some_and(|known| **known == *address) {
            return;
        }
        self.shared.entries.write().insert((domain, host), address.into());
        self.shared.changes.send_modify(|changes| *changes += 1);
    }

    /// Where `host` of `domain` listens, if that is known.
    pub fn get(&self, domain: Domain, host: u64) -> Option<Arc<str>> {
        self.shared.entries.read().get(&(domain, host)).cloned()
    }

    /// Every host of `domain` that is known, by id.
    pub fn all(&self, domain: Domain) -> Vec<(u64, Arc<str>)> {
        let entries = self.shared.entries.read();
        let of_domain = entries.iter().filter(|((known, _), _)| *known == domain);
        let mut all: Vec<_> = of_domain.map(|((_, host), address)| (*host, Arc::clone(address))).collect();
        all.sort_unstable();
        all
    }

    /// Counts changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Returns once the host's address is another one than `address`.
    pub(super) async fn moved(&self, domain: Domain, host: u64, address: &str) {
        // Subscribe first, look second: a change in between is then seen by `changed`.
        let mut changes = self.shared.changes.subscribe();
        while self.get(domain, host).as_deref() == Some(address) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}
