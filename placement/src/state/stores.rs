//! What is kept of stores: who they are, what an operator wants of them, and whether they are gone for good.

use std::collections::BTreeMap;

use braid_proto::id::StoreId;
use braid_proto::pb::{AdmitStore, RemoveStore, SetStore, Store};

use super::rows::Row;
use super::{Applied, State, refused};

/// A store as placement remembers it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreRecord {
    /// Id, address, version, and the labels that it brought itself.
    pub store: Store,
    /// The operator's name of the process.
    pub name: String,
    /// Placement once put a peer there: the id is spent if the store loses its folder, because other peers may count
    /// on what the lost one had promised.
    pub held_peers: bool,
    /// Labels that an operator has set. They win; an empty value hides the store's own.
    pub set_labels: BTreeMap<String, String>,
    /// Its share of replicas and leaders relative to other stores.
    pub weight: f64,
    /// It is being emptied.
    pub drain: Option<Drain>,
    /// Why it has been removed: it never comes back.
    pub removed: Option<String>,
}

/// Since when a store is being emptied, and what it held then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// Replicas.
    pub replicas: u64,
    /// Leaders.
    pub leaders: u64,
}

impl StoreRecord {
    fn new(store: Store, name: String) -> Self {
        let set_labels = BTreeMap::new();
        Self { store, name, held_peers: false, set_labels, weight: 1.0, drain: None, removed: None }
    }

    /// Its labels: those that an operator has set, before those that it brought.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<String, String> =
            self.store.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        labels.extend(self.set_labels.iter().map(|(name, value)| (name.clone(), value.clone())));
        labels.retain(|_, value| !value.is_empty());
        labels
    }

    /// The store as others see it.
    pub fn as_seen(&self) -> Store {
        Store { labels: self.labels().into_iter().collect(), ..self.store.clone() }
    }

    /// The same store after it has registered with `admit`.
    fn rejoined(&self, admit: &AdmitStore) -> Self {
        Self { store: brought(admit, self.store.id), name: admit.name.clone(), ..self.clone() }
    }
}

fn brought(admit: &AdmitStore, id: u64) -> Store {
    Store { id, peer_addr: admit.peer_addr.clone(), labels: admit.labels.clone(), version: admit.version.clone() }
}

impl State {
    /// The store that would be answered to `admit` without changing anything: it is known exactly like that.
    pub fn is_known(&self, admit: &AdmitStore) -> Option<StoreId> {
        let record = self.identify(admit)?;
        (*record == record.rejoined(admit)).then_some(StoreId(record.store.id))
    }

    /// Other stores that have the name of `admit` and are not removed: at most one of them can be alive.
    pub fn namesakes(&self, admit: &AdmitStore) -> Vec<StoreId> {
        let own = self.identify(admit).map(|record| record.store.id);
        let same = self.stores.values().filter(|record| record.name == admit.name && record.removed.is_none());
        same.map(|record| record.store.id).filter(|id| Some(*id) != own).map(StoreId).collect()
    }

    pub(super) fn admit_store(&mut self, admit: &AdmitStore) -> (Applied, Vec<Row>) {
        let known = self.identify(admit).cloned();
        let (record, mut rows) = match known {
            Some(StoreRecord { removed: Some(why), store, .. }) => {
                return refused(format!("{} has been removed: {why}", StoreId(store.id)));
            }
            Some(known) => (known.rejoined(admit), vec![]),
            None if admit.store_id != 0 => return refused(format!("no store {}", StoreId(admit.store_id))),
            None => {
                let id = self.take_ids(1);
                (StoreRecord::new(brought(admit, id), admit.name.clone()), vec![Row::Cluster])
            }
        };
        let id = StoreId(record.store.id);
        for old in admit.replaces.iter().map(|old| StoreId(*old)).filter(|old| *old != id) {
            if let Some(old_record) = self.stores.get_mut(&old).filter(|old| old.removed.is_none()) {
                old_record.removed = Some(format!("its folder was lost, and {id} took its place"));
                rows.push(Row::Store(old));
            }
        }
        self.stores.insert(id, record);
        rows.push(Row::Store(id));
        (Applied::Store(id), rows)
    }

    /// The store that `admit` comes from. Without an id it is the one of the same name and address that never held a
    /// peer: its answer was lost before it could write the id down.
    fn identify(&self, admit: &AdmitStore) -> Option<&StoreRecord> {
        if admit.store_id != 0 {
            return self.stores.get(&StoreId(admit.store_id));
        }
        let unused = |known: &&StoreRecord| !known.held_peers && known.removed.is_none();
        let same = |known: &&StoreRecord| known.name == admit.name && known.store.peer_addr == admit.peer_addr;
        self.stores.values().find(|known| unused(known) && same(known))
    }

    pub(super) fn set_store(&mut self, set: SetStore) -> (Applied, Vec<Row>) {
        let id = StoreId(set.store_id);
        let Some(record) = self.stores.get_mut(&id).filter(|record| record.removed.is_none()) else {
            return refused(format!("no store {id}"));
        };
        record.set_labels.extend(set.labels);
        record.weight = set.weight.unwrap_or(record.weight);
        match set.drain {
            Some(true) if record.drain.is_none() => {
                let begun = set.begun.unwrap_or_default();
                let (since_ms, replicas, leaders) = (begun.since_ms, begun.replicas, begun.leaders);
                record.drain = Some(Drain { since_ms, replicas, leaders });
            }
            Some(false) => record.drain = None,
            _ => {}
        }
        (Applied::Done, vec![Row::Store(id)])
    }

    pub(super) fn remove_store(&mut self, remove: RemoveStore) -> (Applied, Vec<Row>) {
        let id = StoreId(remove.store_id);
        let Some(record) = self.stores.get_mut(&id) else { return refused(format!("no store {id}")) };
        if record.removed.is_some() {
            return (Applied::Done, Vec::new());
        }
        record.removed = Some(remove.why);
        (Applied::Done, vec![Row::Store(id)])
    }

    pub(super) fn hold_peers(&mut self, id: StoreId) -> (Applied, Vec<Row>) {
        match self.stores.get_mut(&id) {
            None => refused(format!("no store {id}")),
            Some(record) if record.removed.is_some() => refused(format!("{id} has been removed")),
            Some(record) => {
                record.held_peers = true;
                (Applied::Done, vec![Row::Store(id)])
            }
        }
    }
}
