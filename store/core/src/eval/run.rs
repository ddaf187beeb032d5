//! One evaluation under way: what it has read, what it has written, and why it stops.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use braid_proto::etcd::etcdserverpb::ResponseHeader;
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::{KeyRange, strip_user};
use braid_proto::pb::{Change, EtcdError};
use bytes::Bytes;
use smallvec::SmallVec;

use super::{Context, WaitFor};
use crate::placeholder::{BEFORE, OWN};
use crate::record::Record;
use crate::view::{Damaged, Found, View, Visit, merge};

/// Keys of the state before that are remembered: a compare and the put it guards read the key once.
const REMEMBERED_MAX: usize = 8;
/// Bytes a change takes in the raft log beside key and value.
const CHANGE_OVERHEAD: usize = 48;
/// Rows above this are not sent along with a change: the log would grow by more than is won.
const ROW_BYTES_MAX: usize = 4 << 10;
/// Bytes of rows that one evaluation sends along. They do not count against what a transaction may change: that must not
/// depend on what is in memory.
pub const ROWS_BYTES_MAX: usize = 256 << 10;

/// Why an evaluation ends early.
pub enum Stop {
    /// It is undecided.
    Wait(WaitFor),
    /// etcd answers an error.
    Fail(EtcdError),
    /// It changes more than is allowed: said before anything is numbered (rule N6).
    TooLarge,
    /// The data cannot be read.
    Damaged(Damaged),
}

impl From<Damaged> for Stop {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged)
    }
}

/// What this evaluation has made of a key.
struct Own {
    found: Option<Found>,
    /// Whether the key was live in the state before.
    was_live: bool,
}

type Remembered = SmallVec<[(Bytes, Option<Found>); 2]>;

/// One evaluation. The state before is the view; the state now has the own changes on top.
pub struct Run<'a> {
    pub view: &'a View<'a>,
    pub context: &'a Context<'a>,
    /// In order of the operations.
    pub changes: Vec<Change>,
    own: BTreeMap<Bytes, Own>,
    change_bytes: usize,
    rows_bytes: usize,
    remembered: RefCell<Remembered>,
    rests_on: Cell<Option<u64>>,
}

impl<'a> Run<'a> {
    pub fn new(view: &'a View<'a>, context: &'a Context<'a>) -> Self {
        Self {
            view,
            context,
            changes: Vec::new(),
            own: BTreeMap::new(),
            change_bytes: 0,
            rows_bytes: 0,
            remembered: RefCell::default(),
            rests_on: Cell::new(None),
        }
    }

    pub fn rests_on(&self) -> Option<u64> {
        self.rests_on.get()
    }

    /// Header of an operation that is done: the counter before the transaction until something has changed.
    pub fn header(&self) -> ResponseHeader {
        let revision = if self.changes.is_empty() { BEFORE } else { OWN };
        ResponseHeader { revision, ..ResponseHeader::default() }
    }

    /// `key` in the state before.
    pub fn find_before(&self, key: &Bytes) -> Result<Option<Found>, Damaged> {
        if let Some((_, found)) = self.remembered.borrow().iter().find(|(known, _)| known == key) {
            return Ok(found.clone());
        }
        self.saw(self.view.overlay.newest(key).map(|version| version.seq));
        let found = self.view.find(key)?;
        let mut remembered = self.remembered.borrow_mut();
        if remembered.len() < REMEMBERED_MAX {
            remembered.push((key.clone(), found.clone()));
        }
        Ok(found)
    }

    /// `range` in the state before.
    pub fn scan_before(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.saw(self.view.overlay.touches(range));
        self.view.scan(range, visit)
    }

    /// `key` now.
    pub fn find(&self, key: &Bytes) -> Result<Option<Found>, Damaged> {
        match self.own.get(key) {
            Some(own) => Ok(own.found.clone()),
            None => self.find_before(key),
        }
    }

    /// `range` now.
    pub fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        if self.own.is_empty() {
            return self.scan_before(range, visit);
        }
        let own = self.own.iter().skip_while(|(key, _)| **key < range.start).filter(|(key, _)| range.contains(key));
        let own = own.map(|(key, own)| (key, own.found.as_ref().map(|found| &found.record)));
        merge(own, &mut |visit| self.scan_before(range, visit), visit)
    }

    /// Live keys of `range` now.
    pub fn count(&self, range: &KeyRange) -> Result<u64, Damaged> {
        self.saw(self.view.overlay.touches(range));
        let mut count = self.view.count(range)?;
        for (key, own) in &self.own {
            if range.contains(key) {
                count = count + u64::from(own.found.is_some()) - u64::from(own.was_live);
            }
        }
        Ok(count)
    }

    /// Changes `key` from `previous`, what it is now, to `next`; `None` is absent.
    pub fn change(&mut self, key: Bytes, previous: Option<Found>, next: Option<Record>) -> Result<(), Stop> {
        let was_live = previous.is_some();
        let supersedes = previous.as_ref().map_or(0, |previous| previous.record.mod_revision);
        let superseded = previous.map(|previous| self.row_to_send(previous.row)).unwrap_or_default();
        let change = match &next {
            Some(record) => Change {
                key: key.clone(),
                supersedes,
                delete: false,
                create_revision: record.create_revision,
                version: record.version,
                lease: record.lease,
                value: record.value.clone(),
                superseded,
            },
            None => Change { key: key.clone(), supersedes, delete: true, superseded, ..Change::default() },
        };
        self.take_room(key.len() + change.value.len())?;
        self.changes.push(change);
        let found = next.map(Found::from);
        match self.own.get_mut(&key) {
            Some(own) => own.found = found,
            None => _ = self.own.insert(key, Own { found, was_live }),
        }
        Ok(())
    }

    /// `row`, or nothing if it is too much.
    fn row_to_send(&mut self, row: Bytes) -> Bytes {
        if row.len() > ROW_BYTES_MAX || self.rows_bytes + row.len() > ROWS_BYTES_MAX {
            return Bytes::new();
        }
        self.rows_bytes += row.len();
        row
    }

    /// Whether a change of `bytes` more, beside `count` changes of `planned` bytes that are not made yet, is too much.
    pub fn is_full(&self, count: usize, planned: usize) -> bool {
        self.changes.len() + count > self.context.effect_changes_max
            || self.change_bytes + planned + count * CHANGE_OVERHEAD > self.context.effect_bytes_max
    }

    fn take_room(&mut self, bytes: usize) -> Result<(), Stop> {
        if self.is_full(1, bytes) {
            return Err(Stop::TooLarge);
        }
        self.change_bytes += bytes + CHANGE_OVERHEAD;
        Ok(())
    }

    fn saw(&self, seq: Option<u64>) {
        self.rests_on.set(self.rests_on.get().max(seq));
    }
}

/// A record as etcd shows it.
pub fn key_value(key: &Bytes, record: &Record) -> KeyValue {
    KeyValue {
        key: strip_user(key).expect("a request names user keys only"),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        value: record.value.clone(),
        lease: record.lease,
    }
}

/// Visits everything.
pub const ON: ControlFlow<()> = ControlFlow::Continue(());
