//! A state machine for tests: entries are `key=value`, the data of a region is what lies between its keys. Which keys have a
//! value is kept beside the data, in one order for all regions: what follows from data that snapshots do not carry.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use braid_proto::id::Term;
use braid_proto::pb::{Peer, Region};
use dashmap::DashMap;
use parking_lot::Mutex;
use rocksdb::{ColumnFamilyDescriptor, DB, IteratorMode, Options, Snapshot, WriteBatch};

use crate::{DataRange, Entry, Frozen, PeerHandle, RegionMachine, StateMachine};

pub const CF: &str = "data";
/// Rows `value=key` without values, of every key.
pub const INDEX: &str = "index";

/// The rows of `cf` in order, at one moment.
fn rows(db: &DB, moment: &Snapshot<'_>, cf: &str) -> Vec<(String, String)> {
    let text = |bytes: Box<[u8]>| String::from_utf8(bytes.into()).unwrap();
    let rows = moment.iterator_cf(db.cf_handle(cf).unwrap(), IteratorMode::Start);
    rows.map(|row| row.map(|(key, value)| (text(key), text(value))).unwrap()).collect()
}

/// The data of `region`.
fn data_of(db: &DB, region: &Region) -> Vec<(String, String)> {
    let mut rows = rows(db, &db.snapshot(), CF);
    rows.retain(|(key, _)| region.range().contains(key.as_bytes()));
    rows
}

/// Data and index say the same, whatever is applied meanwhile.
pub fn assert_indexed(db: &DB) {
    let moment = db.snapshot();
    let data = rows(db, &moment, CF).into_iter();
    let mut wanted: Vec<String> = data.map(|(key, value)| format!("{value}={key}")).collect();
    wanted.sort();
    let found: Vec<String> = rows(db, &moment, INDEX).into_iter().map(|(row, _)| row).collect();
    assert_eq!(found, wanted);
}

/// The key of the row that a merge leaves in the range of `source`.
pub fn merge_row(source: &Region) -> String {
    format!("{}!{}", std::str::from_utf8(&source.start).unwrap(), source.id)
}

#[derive(Default)]
pub struct Kv {
    pub regions: Arc<DashMap<u64, Arc<KvRegion>>>,
    /// What this host's raft snapshots carry.
    pub mark: AtomicI64,
    /// What those carried that it took in.
    pub marks_taken: Mutex<Vec<i64>>,
    /// Fails the next time the index is to be made from a raft snapshot's data.
    pub fail_to_index: AtomicBool,
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
    /// The target, or none any more.
    Frozen(Option<u64>),
    /// The source.
    Merged(u64),
    Destroyed,
}

impl StateMachine for Kv {
    fn column_families(&self) -> Vec<ColumnFamilyDescriptor> {
        [CF, INDEX].map(|cf| ColumnFamilyDescriptor::new(cf, Options::default())).into()
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

    /// Leaves a row in the source's range, which tells that it was taken in.
    fn merge(&self, db: &DB, target: &Region, source: &Region, batch: &mut WriteBatch) -> Result<(), String> {
        let (key, value) = (merge_row(source), target.id.to_string());
        let (data, index) = (db.cf_handle(CF).unwrap(), db.cf_handle(INDEX).unwrap());
        if let Some(before) = db.get_cf(data, &key).unwrap() {
            batch.delete_cf(index, format!("{}={key}", String::from_utf8(before).unwrap()));
        }
        batch.put_cf(data, &key, &value);
        batch.put_cf(index, format!("{value}={key}"), "");
        Ok(())
    }

    fn snapshot_mark(&self) -> i64 {
        self.mark.load(Ordering::Acquire)
    }

    fn on_snapshot_mark(&self, mark: i64) -> Result<(), String> {
        self.marks_taken.lock().push(mark);
        Ok(())
    }

    fn before_clear(&self, db: &DB, region: &Region) -> Result<(), String> {
        for (key, value) in data_of(db, region) {
            db.delete_cf(db.cf_handle(INDEX).unwrap(), format!("{value}={key}")).unwrap();
        }
        Ok(())
    }

    fn on_snapshot(&self, db: &DB, region: &Region) -> Result<(), String> {
        if self.fail_to_index.swap(false, Ordering::AcqRel) {
            return Err("it was to fail".to_owned());
        }
        for (key, value) in data_of(db, region) {
            db.put_cf(db.cf_handle(INDEX).unwrap(), format!("{value}={key}"), "").unwrap();
        }
        Ok(())
    }
}

impl RegionMachine for KvRegion {
    fn apply(&self, entries: &[Entry], mut batch: WriteBatch) {
        let _gate = self.gate.lock();
        let (data, index) = (self.db.cf_handle(CF).unwrap(), self.db.cf_handle(INDEX).unwrap());
        let mut written: HashMap<&str, &str> = HashMap::new();
        for entry in entries {
            let text = std::str::from_utf8(&entry.data).unwrap();
            let (key, value) = text.split_once('=').unwrap();
            let before = match written.insert(key, value) {
                Some(before) => Some(before.to_owned()),
                None => self.db.get_cf(data, key).unwrap().map(|before| String::from_utf8(before).unwrap()),
            };
            if let Some(before) = before {
                batch.delete_cf(index, format!("{before}={key}"));
            }
            batch.put_cf(data, key, value);
            batch.put_cf(index, format!("{value}={key}"), "");
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

    fn on_frozen(&self, frozen: Option<&Frozen>) {
        self.events.lock().push(Event::Frozen(frozen.map(|frozen| frozen.target.0)));
    }

    fn on_merged(&self, source: &Region, merged: &Region) {
        assert!(merged.range().contains_range(&source.range()));
        self.events.lock().push(Event::Merged(source.id));
    }

    fn approximate_size(&self) -> (u64, u64) {
        (0, 0)
    }

    fn on_destroyed(&self) {
        self.events.lock().push(Event::Destroyed);
    }
}
