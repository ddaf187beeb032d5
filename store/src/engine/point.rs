//! Reads of a region as it is: of one key without a snapshot, of ranges with one.

use std::sync::atomic::Ordering;

use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::{KeyRange, strip_user};
use braid_proto::range::finish;
use braid_store_core::eval;
use braid_store_core::record::Record;
use braid_store_core::view::{BaseView, Damaged, Found, Visit};
use bytes::Bytes;
use thiserror::Error;

use super::region::RegionData;
use super::scan::{Reader, decode_live, decode_record};
use super::snapshot::Snapshot;

/// Why a read at a revision has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unread {
    /// History that it needed may be dropped: the revision lies below the compaction boundary.
    #[error("the revision has been compacted")]
    Compacted,
    /// The data cannot be read.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

impl RegionData {
    /// The live record of `key`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get_latest(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        self.sound()?;
        match self.newest.get(key) {
            Some(value) => decode_record(key, decode_live(key, &value)?.record).map(Some),
            None => Reader::now(&self.db).latest(key),
        }
    }

    /// The record of `key` at `revision`, which everything that changes the key is applied up to.
    ///
    /// Needs no snapshot: nothing that is applied later changes what was true at `revision`. A record that is superseded
    /// is in history by the same write, so whoever misses one finds the other.
    ///
    /// # Errors
    /// It cannot be read, or may be compacted.
    pub fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<Record>, Unread> {
        match self.get_latest(key)? {
            Some(record) if record.mod_revision <= revision => Ok(Some(record)),
            // Looked at after the key: nothing above it was visible then, so no later delete has hidden the record.
            None if self.ceiling.load(Ordering::SeqCst) <= revision => Ok(None),
            _ => {
                let found = Reader::now(&self.db).version_at(key, revision)?;
                if revision < self.boundary() { Err(Unread::Compacted) } else { Ok(found) }
            }
        }
    }

    /// Answers `request`, whose keys are `range`, as of `revision`, which everything that touches the range is applied up
    /// to, but for `gone`: no key lies there. The header is left to the caller, and so is the revision that the request
    /// itself names.
    ///
    /// # Errors
    /// The data cannot be read, or `revision` lies below the compaction boundary now that the read is done, and the answer
    /// needed history. Whoever named the revision gets etcd's error; whoever did not, a read at a new one (rule Q5).
    pub fn read_range(
        &self,
        request: &RangeRequest,
        range: &KeyRange,
        revision: i64,
        gone: &[KeyRange],
    ) -> Result<RangeResponse, Unread> {
        if !request.range_end.is_empty() {
            let counting = Counting { data: self, snapshot: self.snapshot()? };
            let answer = match gone {
                [] => eval::read(&counting, request, range, revision)?,
                _ => eval::read(&Without { base: &counting, gone }, request, range, revision)?,
            };
            return if counting.snapshot.is_compacted(revision) { Err(Unread::Compacted) } else { Ok(answer) };
        }
        let is_gone = gone.iter().any(|gone| gone.contains(&range.start));
        let found = if is_gone { None } else { self.get_at(&range.start, revision)? };
        let kv = found.map(|record| KeyValue {
            key: strip_user(&range.start).unwrap_or_default(),
            create_revision: record.create_revision,
            mod_revision: record.mod_revision,
            version: record.version,
            value: record.value,
            lease: record.lease,
        });
        let count = i64::from(kv.is_some());
        Ok(finish(request, kv.into_iter().collect(), count))
    }
}

/// Each call reads the region as it is then. What is applied between two calls comes from the leader's overlay above.
impl BaseView for RegionData {
    fn boundary(&self) -> i64 {
        self.boundary.get()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        self.get_latest(key)
    }

    fn find(&self, key: &[u8]) -> Result<Option<Found>, Damaged> {
        self.sound()?;
        if let Some(value) = self.newest.get(key) {
            return decode_record(key, decode_live(key, &value)?.record).map(|record| Some(record.into()));
        }
        let Some(value) = Reader::now(&self.db).live(key)? else { return Ok(None) };
        let row = Bytes::copy_from_slice(&value);
        Ok(Some(Found { record: decode_record(key, decode_live(key, &row)?.record)?, row }))
    }

    fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.sound()?;
        Reader::now(&self.db).scan_latest(range, visit)
    }

    fn attached(&self, lease: i64, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        // Rows and records of one moment.
        self.snapshot()?.attached(lease, range, visit)
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        self.snapshot()?.count(range, except)
    }

    fn scan_at(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged> {
        self.snapshot()?.scan_at(range, revision, visit)
    }

    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        self.snapshot()?.count_at(range, revision)
    }
}

/// A view of which some ranges are left out: they are deleted, only not here yet.
struct Without<'a> {
    base: &'a dyn BaseView,
    gone: &'a [KeyRange],
}

impl Without<'_> {
    /// What is left of `range`, in key order.
    fn rest(&self, range: &KeyRange) -> Vec<KeyRange> {
        let mut gone: Vec<&KeyRange> = self.gone.iter().filter(|gone| gone.overlaps(range)).collect();
        gone.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        let mut rest = Vec::with_capacity(gone.len() + 1);
        let mut start = range.start.clone();
        for gone in gone {
            if start < gone.start {
                rest.push(KeyRange { start, end: gone.start.clone() });
            }
            if gone.end.is_empty() {
                return rest;
            }
            start = gone.end.clone();
        }
        rest.push(KeyRange { start, end: range.end.clone() });
        rest.retain(|rest| !rest.is_empty());
        rest
    }
}

impl BaseView for Without<'_> {
    // `attached` stays the walk over what `scan` visits: nothing that is answered with ranges left out asks for it.

    fn boundary(&self) -> i64 {
        self.base.boundary()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        if self.gone.iter().any(|gone| gone.contains(key)) { Ok(None) } else { self.base.get(key) }
    }

    fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        let mut stopped = false;
        for rest in self.rest(range) {
            self.base.scan(&rest, &mut |key, record| {
                let flow = visit(key, record);
                stopped = flow.is_break();
                flow
            })?;
            if stopped {
                break;
            }
        }
        Ok(())
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        let mut keys = 0;
        for rest in self.rest(range) {
            let except: Vec<&[u8]> = except.iter().copied().filter(|key| rest.contains(key)).collect();
            keys += self.base.count(&rest, &except)?;
        }
        Ok(keys)
    }

    fn scan_at(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged> {
        let mut stopped = false;
        for rest in self.rest(range) {
            self.base.scan_at(&rest, revision, &mut |key, record| {
                let flow = visit(key, record);
                stopped = flow.is_break();
                flow
            })?;
            if stopped {
                break;
            }
        }
        Ok(())
    }

    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        self.rest(range).iter().map(|rest| self.base.count_at(rest, revision)).sum()
    }
}

/// A snapshot whose first count builds the region's counts for the next ones. This one walks: the counts are of a later
/// moment than the snapshot.
struct Counting<'a> {
    data: &'a RegionData,
    snapshot: Snapshot,
}

impl Counting<'_> {
    fn build(&self) -> Result<(), Damaged> {
        match self.snapshot.published().counts {
            Some(_) => Ok(()),
            None => self.data.build_counts(),
        }
    }
}

impl BaseView for Counting<'_> {
    fn boundary(&self) -> i64 {
        self.snapshot.boundary()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        self.snapshot.get(key)
    }

    fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.snapshot.scan(range, visit)
    }

    fn attached(&self, lease: i64, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.snapshot.attached(lease, range, visit)
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        self.build()?;
        self.snapshot.count(range, except)
    }

    fn scan_at(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged> {
        self.snapshot.scan_at(range, revision, visit)
    }

    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        self.build()?;
        self.snapshot.count_at(range, revision)
    }
}
