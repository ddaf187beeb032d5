//! Applies decided transactions: the only writer of a region's data.
//!
//! A created key is written blindly. A change that supersedes a record moves it to history: from this batch, from memory,
//! from the change itself if the leader sent the row along, or, after reading it, from `latest`. It must be what the
//! evaluation saw: the change names the revision it supersedes. A replica whose own row differs is noticed there, but where
//! the row was sent along only by a check of the replicas (`braid admin region check`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::id::RegionId;
use braid_proto::pb::{self, LeaseRow, LockRow, TxnEffect};
use braid_store_core::record::{Record, put_varint};
use braid_store_core::view::Damaged;
use rocksdb::{ColumnFamily, DBRawIterator, WriteBatch};

use super::changes::{Change, ChangeKind};
use super::key::{self, ATTACHED, EVENTS, HISTORY, LATEST};
use super::newest::OwnNewest;
use super::region::{Inner, RegionData};
use super::scan::{Reader, decode_live, decode_record};
use super::{leases, locks};

/// Records that a batch has superseded, by the place of the change that did, for watches that show what was there before.
#[derive(Debug, Default)]
pub struct Superseded(HashMap<(i64, u32), Record>);

impl Superseded {
    /// What the change at this place has superseded, if it was wanted.
    pub fn get(&self, revision: i64, sub: u32) -> Option<&Record> {
        self.0.get(&(revision, sub))
    }
}

impl RegionData {
    /// [`Self::apply_keeping`] for nobody who wants to know what was there before.
    ///
    /// # Errors
    /// As there.
    #[must_use = "a batch that was not written must not count as applied"]
    pub fn apply(
        &self,
        txns: &[TxnEffect],
        locks: &[LockRow],
        leases: &[LeaseRow],
        batch: WriteBatch,
    ) -> Result<(), Damaged> {
        self.apply_keeping(txns, locks, leases, batch, &|_| false).map(drop)
    }

    /// Adds `txns` and the rows of locks and leases to `batch`, writes it, and publishes what readers need to know. Several
    /// transactions, and several changes of one key, may share a batch. Returns what they supersede, of the keys of which
    /// `wanted` says so.
    ///
    /// # Errors
    /// The data contradicts the changes or cannot be read or written; nothing of the batch is written then, and the
    /// caller must not go on with the log.
    #[must_use = "a batch that was not written must not count as applied"]
    pub fn apply_keeping(
        &self,
        txns: &[TxnEffect],
        locks: &[LockRow],
        leases: &[LeaseRow],
        batch: WriteBatch,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Superseded, Damaged> {
        self.sound()?;
        let reader = Reader::now(&self.db);
        let mut rows = Rows {
            reader,
            latest: reader.family(LATEST),
            history: reader.family(HISTORY),
            events: reader.family(EVENTS),
            attached: reader.family(ATTACHED),
            region: self.region,
            batch,
            row: Vec::new(),
            value: Vec::new(),
            newest: Vec::new(),
            written: (changes_of(txns).take(2).count() > 1).then(HashMap::new),
            run: None,
            wanted,
            superseded: Superseded::default(),
        };
        let mut changes = Vec::new();
        for txn in txns {
            rows.run = deletes_a_run(txn).then(|| Run::new(reader, txn));
            check_subs(txn)?;
            for (revision, sub, change) in changes_of(std::slice::from_ref(txn)) {
                let kind = rows.write(&self.newest, revision, sub, change)?;
                changes.push(Change { revision, sub, kind, key: &change.key });
            }
        }
        let newest = txns.iter().map(|txn| txn.revision).max().unwrap_or(0);
        if self.ceiling.fetch_max(newest, Ordering::SeqCst) < newest {
            rows.mark_applied(newest);
        }
        let Rows { mut batch, superseded, newest: records, .. } = rows;
        locks::write(&self.db, locks, &mut batch);
        leases::write(&self.db, leases, &mut batch);
        let bytes = batch.size_in_bytes() as u64;
        let rows = changes.len() as u64;
        self.written.lock().add(bytes, rows, self.boundary.wrote(rows));
        let grown = {
            let mut inner = self.inner.write();
            self.db.write(batch).map_err(|error| Damaged(format!("a batch cannot be written: {error}")))?;
            records.into_iter().for_each(|(key, value)| self.newest.set(key, value));
            inner.publish_locks(locks);
            inner.publish(newest, &changes)
        };
        self.split_buckets(&grown)?;
        Ok(superseded)
    }
}

impl Inner {
    /// Returns the keys whose buckets have grown too large.
    fn publish<'c>(&mut self, newest: i64, changes: &[Change<'c>]) -> Vec<&'c [u8]> {
        if changes.is_empty() && newest <= self.published.applied {
            return Vec::new();
        }
        let published = Arc::make_mut(&mut self.published);
        published.applied = published.applied.max(newest);
        let mut grown = Vec::new();
        for change in changes {
            published.recent.push(*change);
            if Self::count(published, &mut self.deltas, *change) {
                grown.push(change.key);
            }
        }
        grown
    }
}

/// All changes with their revisions and places. A part of a transaction over several regions names the places.
fn changes_of(txns: &[TxnEffect]) -> impl Iterator<Item = (i64, u32, &pb::Change)> {
    txns.iter().flat_map(|txn| {
        let place = |(at, change)| (txn.revision, txn.subs.get(at as usize).copied().unwrap_or(at), change);
        (0_u32..).zip(&txn.changes).map(place)
    })
}

fn check_subs(txn: &TxnEffect) -> Result<(), Damaged> {
    let (places, changes) = (txn.subs.len(), txn.changes.len());
    if places != 0 && places != changes {
        return Err(Damaged(format!("@{} names places of {places} changes, but has {changes}", txn.revision)));
    }
    if !txn.subs.is_sorted_by(|a, b| a < b) {
        return Err(Damaged(format!("@{} names places that do not rise: {:?}", txn.revision, txn.subs)));
    }
    Ok(())
}

/// What this batch has made of a key: the put, or `None` for a delete.
type Written<'t> = Option<(i64, u32, &'t pb::Change)>;

/// A key's value in `latest`; `None`: it has none, or none that is kept in memory.
type Newest = Option<Arc<[u8]>>;

/// The rows of a batch under way.
struct Rows<'a, 't> {
    reader: Reader<'a>,
    /// Of which keys what is superseded is kept.
    wanted: &'a dyn Fn(&[u8]) -> bool,
    superseded: Superseded,
    latest: &'a ColumnFamily,
    history: &'a ColumnFamily,
    events: &'a ColumnFamily,
    attached: &'a ColumnFamily,
    region: RegionId,
    batch: WriteBatch,
    /// Buffers, to allocate none for each row.
    row: Vec<u8>,
    value: Vec<u8>,
    /// What the batch makes of its keys' values in `latest`, in order.
    newest: Vec<(&'t [u8], Newest)>,
    /// Keys that this batch has changed already; `None` if it makes one change only.
    written: Option<HashMap<&'t [u8], Written<'t>>>,
    /// Reads what a large delete supersedes.
    run: Option<Run<'a>>,
}

impl<'t> Rows<'_, 't> {
    fn write(
        &mut self,
        newest: &OwnNewest,
        revision: i64,
        sub: u32,
        change: &'t pb::Change,
    ) -> Result<ChangeKind, Damaged> {
        let lease = match change.supersedes {
            0 => 0,
            _ => self.keep_superseded(newest, change, revision, sub)?,
        };
        let kind = match (change.delete, change.supersedes) {
            (true, 0) => return Err(contradicts(change, "it deletes a key that is absent")),
            (true, _) => ChangeKind::Deleted,
            (false, 0) => ChangeKind::Created,
            (false, _) => ChangeKind::Updated,
        };
        if change.delete {
            self.batch.delete_cf(self.latest, &change.key);
            self.newest.push((&change.key, None));
        } else {
            debug_assert!(kind != ChangeKind::Created || !self.is_live(change)?, "{:?} is created twice", change.key);
            self.value.clear();
            put_varint(&mut self.value, u64::from(sub));
            record_of(change, revision).encode(&mut self.value);
            self.batch.put_cf(self.latest, &change.key, &self.value);
            self.newest.push((&change.key, OwnNewest::kept(&self.value)));
        }
        self.attach(&change.key, lease, if change.delete { 0 } else { change.lease });
        self.row.clear();
        key::event_key(&mut self.row, self.region, revision, sub);
        Change { revision, sub, kind, key: &change.key }.encode(&mut self.value);
        self.batch.put_cf(self.events, &self.row, &self.value);
        if let Some(written) = &mut self.written {
            written.insert(&change.key, (!change.delete).then_some((revision, sub, change)));
        }
        Ok(kind)
    }

    /// Follows the lease of `key` from one record to the next; 0: it has none.
    fn attach(&mut self, key: &[u8], before: i64, now: i64) {
        if before == now {
            return;
        }
        if before != 0 {
            self.row.clear();
            key::attached_key(&mut self.row, before, key);
            self.batch.delete_cf(self.attached, &self.row);
        }
        if now != 0 {
            self.row.clear();
            key::attached_key(&mut self.row, now, key);
            self.batch.put_cf(self.attached, &self.row, b"");
        }
    }

    /// Notes the newest revision that the region has applied.
    fn mark_applied(&mut self, newest: i64) {
        self.row.clear();
        key::applied_mark(&mut self.row, self.region);
        self.batch.put_cf(self.events, &self.row, newest.to_be_bytes());
    }

    /// Moves the record that `change` supersedes at (`revision`, `sub`) to history. Returns its lease.
    fn keep_superseded(
        &mut self,
        newest: &OwnNewest,
        change: &pb::Change,
        revision: i64,
        sub: u32,
    ) -> Result<i64, Damaged> {
        self.row.clear();
        self.value.clear();
        put_varint(&mut self.value, revision as u64);
        put_varint(&mut self.value, u64::from(sub));
        let written = self.written.as_ref().and_then(|written| written.get(&change.key[..]));
        let (found, lease) = match written {
            Some(Some((put_at, place, earlier))) => {
                key::history_key(&mut self.row, &change.key, *put_at, *place);
                record_of(earlier, *put_at).encode(&mut self.value);
                if (self.wanted)(&change.key) {
                    self.superseded.0.insert((revision, sub), record_of(earlier, *put_at));
                }
                (*put_at, earlier.lease)
            }
            Some(None) => return Err(contradicts(change, "the key was deleted just before")),
            None => {
                let (cached, single);
                let value = if !change.superseded.is_empty() {
                    // It steps from one key to the next and has missed one.
                    self.run = None;
                    debug_assert_eq!(
                        self.reader.live(&change.key)?.as_deref(),
                        Some(&change.superseded[..]),
                        "what the leader superseded of {:?} is not what is here",
                        change.key
                    );
                    &change.superseded[..]
                } else if let Some(value) = self.run.as_mut().and_then(|run| run.value(&change.key)) {
                    value
                } else {
                    cached = newest.get(&change.key);
                    match &cached {
                        Some(value) => &value[..],
                        None => {
                            single = self.reader.live(&change.key)?;
                            single.as_deref().ok_or_else(|| contradicts(change, "the key is absent"))?
                        }
                    }
                };
                let live = decode_live(&change.key, value)?;
                key::history_key(&mut self.row, &change.key, live.head.mod_revision, live.sub);
                self.value.extend_from_slice(live.record);
                if (self.wanted)(&change.key) {
                    let record = decode_record(&change.key, live.record)?;
                    self.superseded.0.insert((revision, sub), record);
                }
                (live.head.mod_revision, live.head.lease)
            }
        };
        self.batch.put_cf(self.history, &self.row, &self.value);
        if found != change.supersedes {
            return Err(contradicts(change, &format!("the key has a record of @{found}")));
        }
        Ok(lease)
    }

    fn is_live(&self, change: &pb::Change) -> Result<bool, Damaged> {
        match self.written.as_ref().and_then(|written| written.get(&change.key[..])) {
            Some(written) => Ok(written.is_some()),
            None => self.reader.is_live(&change.key),
        }
    }
}

/// Deletes of one transaction from which on its keys are taken to be neighbours.
const RUN_DELETES_MIN: usize = 32;

fn deletes_a_run(txn: &TxnEffect) -> bool {
    txn.changes.len() >= RUN_DELETES_MIN && txn.changes[..RUN_DELETES_MIN].iter().all(|change| change.delete)
}

/// Live records of neighbouring keys, read by one walk: ten times as fast as one by one.
struct Run<'a> {
    rows: DBRawIterator<'a>,
}

impl<'a> Run<'a> {
    fn new(reader: Reader<'a>, txn: &TxnEffect) -> Self {
        let mut rows = reader.db.raw_iterator_cf_opt(reader.family(LATEST), reader.options());
        if let Some(first) = txn.changes.first() {
            rows.seek(&first.key);
        }
        Self { rows }
    }

    /// The stored value of `key` if it is the present row or the next. Otherwise the caller looks it up by itself; so it
    /// does if the walk has met an error, which the lookup then meets too.
    fn value(&mut self, key: &[u8]) -> Option<&[u8]> {
        if self.rows.key().is_some_and(|present| present < key) {
            self.rows.next();
        }
        self.rows.item().filter(|(present, _)| *present == key).map(|(_, value)| value)
    }
}

fn record_of(change: &pb::Change, revision: i64) -> Record {
    Record {
        create_revision: change.create_revision,
        mod_revision: revision,
        version: change.version,
        lease: change.lease,
        value: change.value.clone(),
    }
}

fn contradicts(change: &pb::Change, what: &str) -> Damaged {
    Damaged(format!("a change of {:?} supersedes @{}, but {what}", change.key, change.supersedes))
}
