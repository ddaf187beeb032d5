//! What was read of the regions, as the state that a transaction is evaluated on.

use std::collections::BTreeMap;
use std::ops::Bound;

use braid_proto::etcd::etcdserverpb::RangeRequest;
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::{KeyRange, user_key};
use braid_store_core::record::Record;
use braid_store_core::view::{BaseView, Damaged, Visit};
use bytes::Bytes;

type Records = BTreeMap<Bytes, Record>;

/// Everything that a transaction touches.
#[derive(Default)]
pub struct Fetched {
    now: Records,
    past: Vec<(KeyRange, i64, Records)>,
}

impl Fetched {
    /// Adds keys as they are now.
    pub fn add(&mut self, kvs: impl IntoIterator<Item = KeyValue>) {
        self.now.extend(kvs.into_iter().map(record));
    }

    /// Adds all keys of `range` as they were at its revision.
    pub fn add_past(&mut self, range: &RangeRequest, kvs: Vec<KeyValue>) {
        let span = KeyRange::user(&range.key, &range.range_end);
        self.past.push((span, range.revision, kvs.into_iter().map(record).collect()));
    }

    /// Takes the past that another evaluation of the same transaction has read: it does not change.
    pub fn with_past_of(mut self, other: Fetched) -> Self {
        self.past = other.past;
        self
    }

    fn at(&self, range: &KeyRange, revision: i64) -> Result<&Records, Damaged> {
        let found = self.past.iter().find(|(span, at, _)| span == range && *at == revision);
        found.map(|(_, _, records)| records).ok_or_else(|| Damaged(format!("{range:?} was not read at @{revision}")))
    }
}

fn record(kv: KeyValue) -> (Bytes, Record) {
    let record = Record {
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
        value: kv.value,
    };
    (user_key(&kv.key), record)
}

fn within<'a>(records: &'a Records, range: &KeyRange) -> impl Iterator<Item = (&'a Bytes, &'a Record)> + use<'a> {
    let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&range.end[..]) };
    let bounds = (Bound::Included(&range.start[..]), end);
    // `BTreeMap::range` panics on a range that ends before it starts.
    (!range.is_empty()).then(|| records.range::<[u8], _>(bounds)).into_iter().flatten()
}

fn visit_all(records: &Records, range: &KeyRange, visit: Visit<'_>) {
    for (key, record) in within(records, range) {
        if visit(key, record).is_break() {
            break;
        }
    }
}

impl BaseView for Fetched {
    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        Ok(self.now.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        visit_all(&self.now, range, visit);
        Ok(())
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        Ok(within(&self.now, range).filter(|(key, _)| !except.contains(&&key[..])).count() as u64)
    }

    fn scan_at(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged> {
        visit_all(self.at(range, revision)?, range, visit);
        Ok(())
    }

    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        Ok(self.at(range, revision)?.len() as u64)
    }
}
