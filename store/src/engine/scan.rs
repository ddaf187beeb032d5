//! Reading rows: of one snapshot, or of the database as it is.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use braid_proto::key::KeyRange;
use braid_store_core::record::{Head, Record, take_varint};
use braid_store_core::view::{Damaged, Visit};
use bytes::Bytes;
use rocksdb::{ColumnFamily, DB, DBPinnableSlice, DBRawIterator, ReadOptions};

use super::key::{self, HISTORY, LATEST};
use super::unreadable;

/// Sees the key and the stored record of a version, and may stop the walk.
type VisitStored<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Damaged>;
/// Key and stored record of a version.
type StoredVersion<'a> = (&'a [u8], &'a [u8]);

/// Rows of a key that are stepped over before the iterator seeks: a seek costs about as much as that many steps.
const STEPS_BEFORE_SEEK: usize = 8;

/// Reads rows.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub db: &'a DB,
    snapshot: Option<&'a rocksdb::Snapshot<'a>>,
}

/// A value of `latest`: the sub-revision of the put, its head, and the stored record.
pub struct Live<'a> {
    pub sub: u32,
    pub head: Head,
    pub record: &'a [u8],
}

/// Takes off the front of a history row's value what superseded the version; the record remains. Returns the revision.
pub fn superseded_at(value: &mut &[u8]) -> Option<i64> {
    superseded_by(value).map(|(revision, _)| revision)
}

/// The same, with the place of the change that superseded it.
pub fn superseded_by(value: &mut &[u8]) -> Option<(i64, u32)> {
    let revision = take_varint(value).and_then(|revision| i64::try_from(revision).ok())?;
    let sub = take_varint(value).and_then(|sub| u32::try_from(sub).ok())?;
    Some((revision, sub))
}

/// The stored record of a history row that is the newest at or below `revision`, if the key was live at `revision`.
fn live_at<'a>(key: &[u8], mut value: &'a [u8], revision: i64) -> Result<Option<&'a [u8]>, Damaged> {
    let superseded = superseded_at(&mut value).ok_or_else(|| damaged_record(key, &Damaged("no end".to_owned())))?;
    Ok((superseded > revision).then_some(value))
}

/// Reads a value of `latest`.
pub fn decode_live<'a>(key: &[u8], value: &'a [u8]) -> Result<Live<'a>, Damaged> {
    let mut rest = value;
    let sub = take_varint(&mut rest).and_then(|sub| u32::try_from(sub).ok());
    let sub = sub.ok_or_else(|| damaged_record(key, &Damaged("no sub-revision".to_owned())))?;
    let (head, _) = Head::decode(rest).map_err(|why| damaged_record(key, &why))?;
    Ok(Live { sub, head, record: rest })
}

/// The record whose stored form is `record`.
pub fn decode_record(key: &[u8], record: &[u8]) -> Result<Record, Damaged> {
    Record::decode(record).map_err(|why| damaged_record(key, &why))
}

fn damaged_record(key: &[u8], why: &Damaged) -> Damaged {
    Damaged(format!("the record of {:?} is damaged: {why}", Bytes::copy_from_slice(key)))
}

impl<'a> Reader<'a> {
    /// Reads the database as it is at each call.
    pub fn now(db: &'a DB) -> Self {
        Self { db, snapshot: None }
    }

    /// Reads `snapshot`.
    pub fn at(db: &'a DB, snapshot: &'a rocksdb::Snapshot<'a>) -> Self {
        Self { db, snapshot: Some(snapshot) }
    }

    pub fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        if let Some(snapshot) = self.snapshot {
            options.set_snapshot(snapshot);
        }
        options
    }

    /// The handle of a column family of this engine.
    pub fn family(&self, name: &str) -> &'a ColumnFamily {
        self.db.cf_handle(name).unwrap_or_else(|| panic!("the database was opened without column family {name}"))
    }

    /// The stored value of a live key.
    pub fn live(&self, key: &[u8]) -> Result<Option<DBPinnableSlice<'a>>, Damaged> {
        let found = self.db.get_pinned_cf_opt(self.family(LATEST), key, &self.options());
        found.map_err(|error| unreadable(LATEST, &error))
    }

    /// The live record of `key`.
    pub fn latest(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        let Some(value) = self.live(key)? else { return Ok(None) };
        decode_record(key, decode_live(key, &value)?.record).map(Some)
    }

    /// Whether `key` is live.
    pub fn is_live(&self, key: &[u8]) -> Result<bool, Damaged> {
        Ok(self.live(key)?.is_some())
    }

    /// The record of `key` at `revision`, as far as history knows: what was superseded after it.
    pub fn version_at(&self, key: &[u8], revision: i64) -> Result<Option<Record>, Damaged> {
        let mut options = self.options();
        // Lets the bloom filter answer for keys without history.
        options.set_prefix_same_as_start(true);
        let mut rows = self.db.raw_iterator_cf_opt(self.family(HISTORY), options);
        let mut row = Vec::new();
        key::history_key(&mut row, key, revision, u32::MAX);
        rows.seek(&row);
        let found = match rows.item() {
            Some((found, value)) if key::history_prefix(found) == key::history_prefix(&row) => {
                live_at(key, value, revision)?.map(|record| decode_record(key, record)).transpose()?
            }
            _ => None,
        };
        rows.status().map_err(|error| unreadable(HISTORY, &error))?;
        Ok(found)
    }

    /// Visits the live records of `range`.
    pub fn scan_latest(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        let mut rows = self.rows_of_latest(range, true);
        while let Some((key, value)) = rows.item() {
            let record = decode_record(key, decode_live(key, value)?.record)?;
            if visit(&Bytes::copy_from_slice(key), &record).is_break() {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| unreadable(LATEST, &error))
    }

    /// Visits the live keys of `range`, without room in the block cache for what is read.
    pub fn walk_keys(&self, range: &KeyRange, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), Damaged> {
        let mut rows = self.rows_of_latest(range, false);
        while let Some(key) = rows.key() {
            if visit(key).is_break() {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| unreadable(LATEST, &error))
    }

    /// Counts the live keys of `range` one by one.
    pub fn count_latest(&self, range: &KeyRange) -> Result<u64, Damaged> {
        let mut keys = 0;
        self.walk_keys(range, &mut |_| {
            keys += 1;
            ControlFlow::Continue(())
        })?;
        Ok(keys)
    }

    /// Visits the records of `range` at `revision`. `changed` are the keys of the range that changed above it.
    pub fn scan_patched(
        &self,
        range: &KeyRange,
        revision: i64,
        changed: &BTreeSet<Bytes>,
        visit: Visit<'_>,
    ) -> Result<(), Damaged> {
        let mut changed = changed.iter().peekable();
        let older = |key: &Bytes| match self.version_at(key, revision)? {
            Some(record) => Ok(Some(record)),
            None => Ok::<_, Damaged>(None),
        };
        let mut rows = self.rows_of_latest(range, true);
        while let Some((key, value)) = rows.item() {
            while let Some(patch) = changed.next_if(|patch| patch[..] < *key) {
                if older(patch)?.is_some_and(|record| visit(patch, &record).is_break()) {
                    return Ok(());
                }
            }
            let record = match changed.next_if(|patch| patch[..] == *key) {
                Some(patch) => older(patch)?,
                None => Some(decode_record(key, decode_live(key, value)?.record)?),
            };
            if record.is_some_and(|record| visit(&Bytes::copy_from_slice(key), &record).is_break()) {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| unreadable(LATEST, &error))?;
        for patch in changed {
            if older(patch)?.is_some_and(|record| visit(patch, &record).is_break()) {
                break;
            }
        }
        Ok(())
    }

    /// Visits the records of `range` at `revision`, whatever has happened since.
    pub fn scan_versions(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged> {
        self.walk_versions(range, revision, true, &mut |key, record| {
            let record = decode_record(key, record)?;
            Ok(visit(&Bytes::copy_from_slice(key), &record))
        })
    }

    /// Counts the keys of `range` that were live at `revision` one by one.
    pub fn count_versions(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        let mut keys = 0;
        self.walk_versions(range, revision, false, &mut |_, _| {
            keys += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(keys)
    }

    /// Walks live records and history side by side: a key's version at `revision` is its live record if that is not
    /// newer, and otherwise the first version in history that is not. Visits keys and stored records.
    fn walk_versions(
        &self,
        range: &KeyRange,
        revision: i64,
        fill_cache: bool,
        visit: VisitStored<'_>,
    ) -> Result<(), Damaged> {
        let mut live = self.rows_of_latest(range, fill_cache);
        let mut old = History::new(self, range, fill_cache)?;
        loop {
            let live_key = live.key();
            let Some(old_key) = old.key().filter(|old| live_key.is_none_or(|live| *old <= live)) else {
                // Only live, or the end of both.
                let Some((key, value)) = live.item() else { break };
                let found = decode_live(key, value)?;
                if found.head.mod_revision <= revision && visit(key, found.record)?.is_break() {
                    return Ok(());
                }
                live.next();
                continue;
            };
            let mut stop = ControlFlow::Continue(());
            let mut settled = false;
            if live_key == Some(old_key) {
                let (key, value) = live.item().ok_or_else(|| Damaged("an iterator lost its row".to_owned()))?;
                let found = decode_live(key, value)?;
                if found.head.mod_revision <= revision {
                    settled = true;
                    stop = visit(key, found.record)?;
                }
                live.next();
            }
            if !settled && let Some((key, record)) = old.version_at(revision)? {
                stop = visit(key, record)?;
            }
            if stop.is_break() {
                return Ok(());
            }
            old.next_key()?;
        }
        live.status().map_err(|error| unreadable(LATEST, &error))
    }

    /// The rows of `range` in `latest`.
    pub fn rows_of_latest(&self, range: &KeyRange, fill_cache: bool) -> DBRawIterator<'a> {
        let mut options = self.options();
        options.fill_cache(fill_cache);
        if !range.end.is_empty() {
            options.set_iterate_upper_bound(&range.end[..]);
        }
        let mut rows = self.db.raw_iterator_cf_opt(self.family(LATEST), options);
        rows.seek(&range.start);
        rows
    }

    /// The rows of `range` in `history`.
    pub fn rows_of_history(&self, range: &KeyRange, fill_cache: bool) -> DBRawIterator<'a> {
        let (start, end) = key::history_range(range);
        let mut options = self.options();
        options.fill_cache(fill_cache);
        // The prefix filter must not hide the keys of a walk over all of them.
        options.set_total_order_seek(true);
        if !end.is_empty() {
            options.set_iterate_upper_bound(end);
        }
        let mut rows = self.db.raw_iterator_cf_opt(self.family(HISTORY), options);
        rows.seek(start);
        rows
    }
}

/// Walks the keys of history, one after the other.
struct History<'a> {
    rows: DBRawIterator<'a>,
    /// Internal key of the present row; meaningless behind the end.
    key: Vec<u8>,
    /// Its escaped form.
    prefix: Vec<u8>,
    at_end: bool,
}

impl<'a> History<'a> {
    fn new(reader: &Reader<'a>, range: &KeyRange, fill_cache: bool) -> Result<Self, Damaged> {
        let rows = reader.rows_of_history(range, fill_cache);
        let mut history = Self { rows, key: Vec::new(), prefix: Vec::new(), at_end: false };
        history.settle()?;
        Ok(history)
    }

    /// The key of the present row; `None` at the end.
    fn key(&self) -> Option<&[u8]> {
        (!self.at_end).then_some(&self.key)
    }

    /// The version of the present key at `revision`: its stored record, if history knows one.
    fn version_at(&mut self, revision: i64) -> Result<Option<StoredVersion<'_>>, Damaged> {
        let mut steps = 0;
        while let Some(row) = self.rows.key().filter(|row| key::history_prefix(row) == self.prefix) {
            let (found, _) = key::version_of(&row[self.prefix.len()..])
                .ok_or_else(|| Damaged(format!("{row:02x?} is no key of {HISTORY}")))?;
            if found <= revision {
                let value = self.rows.value().unwrap_or_default();
                return Ok(live_at(&self.key, value, revision)?.map(|record| (&self.key[..], record)));
            }
            steps += 1;
            if steps < STEPS_BEFORE_SEEK {
                self.rows.next();
            } else {
                let mut target = Vec::new();
                key::history_key(&mut target, &self.key, revision, u32::MAX);
                self.rows.seek(target);
            }
        }
        self.check()?;
        Ok(None)
    }

    /// Goes to the next key.
    fn next_key(&mut self) -> Result<(), Damaged> {
        for _ in 0..STEPS_BEFORE_SEEK {
            match self.rows.key() {
                Some(row) if key::history_prefix(row) == self.prefix => self.rows.next(),
                _ => return self.settle(),
            }
        }
        // Behind every version: revisions begin at 1, so none is inverted to all ones.
        let mut behind = self.prefix.clone();
        behind.extend_from_slice(&[0xff; key::VERSION_LEN]);
        self.rows.seek(behind);
        self.settle()
    }

    fn settle(&mut self) -> Result<(), Damaged> {
        match self.rows.key() {
            Some(row) => {
                key::split_history_key(row, &mut self.key)?;
                self.prefix.clear();
                self.prefix.extend_from_slice(key::history_prefix(row));
                Ok(())
            }
            None => {
                self.at_end = true;
                self.check()
            }
        }
    }

    fn check(&self) -> Result<(), Damaged> {
        self.rows.status().map_err(|error| unreadable(HISTORY, &error))
    }
}
