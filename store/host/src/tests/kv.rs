//! A state machine for tests: entries are `key=value`, the data of a region is what lies between its keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use braid_proto::id::Term;
use braid_proto::pb::{Peer, Region};
use dashmap::DashMap;
use parking_lot::Mutex;
use rocksdb::{ColumnFamilyDescriptor, DB, Options, WriteBatch};

use crate::{DataRange, Entry, PeerHandle, RegionMachine, StateMachine};

pub const CF: &str = "data";

#[derive(Default)]
pub struct Kv {
    pub regions: Arc<DashMap<u64, Arc<KvRegion>>>,
    /// What this host's raft snapshots carry.
    pub mark: AtomicI64,
    /// What those carried that it took in.
    pub marks_taken: Mutex<Vec<i64>>,
}

pub struct KvRegion {
    db: Arc<DB>,
    pub events: Mutex<Vec<Event>>,
    /// Held by a test to keep the apply thread from going on.
    pub gate: Mutex<()>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Leader(u64),
    Follower(u64),
    Region(u64),
}

impl StateMachine for Kv {
    fn column_families(&self) -> Vec<ColumnFamilyDescriptor> {
        vec![ColumnFamilyDescriptor::new(CF, Options::default())]
    }

    fn open_region(&self, db: Arc<DB>, handle: PeerHandle) -> Arc<dyn RegionMachine> {
        let id = handle.region().id;
        let region = Arc::new(KvRegion { db, events: Mutex::default(), gate: Mutex::default() });
        self.regions.insert(id, Arc::clone(&region));
        region
    }

    fn data_ranges(&self, region: &Region) -> Vec<DataRange> {
        vec![DataRange { cf: CF, start: region.start.to_vec(), end: region.end.to_vec() }]
    }

    fn snapshot_mark(&self) -> i64 {
        self.mark.load(Ordering::Acquire)
    }

    fn on_snapshot_mark(&self, mark: i64) -> Result<(), String> {
        self.marks_taken.lock().push(mark);
        Ok(())
    }
}

impl RegionMachine for KvRegion {
    fn apply(&self, entries: &[Entry], mut batch: WriteBatch) {
        let _gate = self.gate.lock();
        for entry in entries {
            let text = std::str::from_utf8(&entry.data).unwrap();
            let (key, value) = text.split_once('=').unwrap();
            batch.put_cf(self.db.cf_handle(CF).unwrap(), key, value);
        }
        self.db.write(batch).unwrap();
    }

    fn on_leader(&self, term: Term) {
        self.events.lock().push(Event::Leader(term.0));
    }

    fn on_follower(&self, term: Term, _: Option<Peer>) {
        self.events.lock().push(Event::Follower(term.0));
    }

    fn on_region(&self, region: &Region) {
        self.events.lock().push(Event::Region(region.region_epoch().version));
    }

    fn approximate_size(&self) -> (u64, u64) {
        (0, 0)
    }
}
