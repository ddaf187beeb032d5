//! A model of etcd's KV service: what every request must be answered, one after the other, in memory.
//!
//! It is written to be compared with, so it is plain where a server must be fast: every key has its whole history in a
//! list, a range looks at every key there is, and a transaction that is refused has not touched anything because it was
//! checked first. It shares no code with any server.
//!
//! - `request`: what can be asked, and how it is refused.
//! - `check`: what is refused before anything is read.
//! - `range`, `txn`: the two requests with rules of their own.
//! - `reply`: answers, and how they look on the wire.
//!
//! One change takes one revision, however many keys it touches. A key's life begins with a put and ends with a delete;
//! `version` and `create_revision` count within a life. What is older than the compacted revision cannot be read.

use std::collections::{BTreeMap, BTreeSet};

use braid_proto::etcd::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};
use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

mod check;
mod range;
mod reply;
mod request;
mod txn;

pub use check::{MAX_TXN_OPS, is_open_ended};
pub use reply::{Answer, RangeReply, Reply, TxnReply};
pub use request::{Refusal, Request};

/// Where servers of the API differ on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// etcd overlooks that a delete which is open to the right (`range_end` is one zero byte) covers a key which the
    /// same branch puts; such a transaction changes a key twice in one revision.
    Etcd,
    /// braid refuses such a transaction as it refuses any other key that is changed twice.
    ///
    /// It also refuses, as a future revision, a range inside a transaction whose filter names a revision that does not
    /// exist yet and would have to be compared with the transaction's own. The model knows nothing of this; the
    /// differential runner does not ask for it.
    Braid,
}

/// A store.
#[derive(Debug, Clone)]
pub struct Model {
    dialect: Dialect,
    /// Revision of the newest change.
    revision: i64,
    /// Revisions below cannot be read; -1 before the first compaction.
    compacted: i64,
    leases: BTreeSet<i64>,
    /// Oldest change first. A key is never removed.
    histories: BTreeMap<Bytes, Vec<Change>>,
}

/// What happened to a key.
#[derive(Debug, Clone)]
struct Change {
    revision: i64,
    /// The key from then on; none if it was deleted.
    key_value: Option<KeyValue>,
}

/// Revision of an empty store.
pub const FIRST_REVISION: i64 = 1;
/// `compacted` of a store that never was.
pub const NEVER_COMPACTED: i64 = -1;

impl Model {
    /// A new store.
    pub fn new(dialect: Dialect) -> Self {
        Self::starting_at(dialect, FIRST_REVISION, NEVER_COMPACTED)
    }

    /// A store without keys that has come to `revision`. What it held before is not known: revisions between `compacted`
    /// and `revision` are answered as if it had been empty.
    pub fn starting_at(dialect: Dialect, revision: i64, compacted: i64) -> Self {
        Self { dialect, revision, compacted, leases: BTreeSet::new(), histories: BTreeMap::new() }
    }

    /// Makes a lease known, so that keys can be attached to it.
    pub fn grant(&mut self, lease: i64) {
        self.leases.insert(lease);
    }

    /// Revision of the newest change.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Revisions below cannot be read; -1 before the first compaction.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The model as it was at a revision not above the present one, before anything after that was compacted.
    pub fn as_of(&self, revision: i64) -> Self {
        assert!(revision <= self.revision, "{revision} is above {}", self.revision);
        Self { revision, compacted: self.compacted.min(revision), ..self.clone() }
    }

    /// The key as it is now.
    pub fn get(&self, key: &[u8]) -> Option<KeyValue> {
        self.get_at(key, self.revision)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// etcd's refusal; nothing has changed then.
    pub fn answer(&mut self, request: &Request) -> Result<Reply, Refusal> {
        match request {
            Request::Range(request) => {
                check::range(request)?;
                self.range(request, self.revision).map(Reply::Range)
            }
            Request::Put(request) => {
                check::put(request)?;
                self.put_alone(request)
            }
            Request::DeleteRange(request) => {
                check::delete_range(request)?;
                let mut write = Write::new(self);
                let reply = write.delete_range(request);
                write.end();
                Ok(reply)
            }
            Request::Txn(request) => {
                check::txn(request, self.dialect)?;
                self.txn(request).map(Reply::Txn)
            }
            Request::Compact(request) => self.compact(request),
        }
    }

    fn put_alone(&mut self, request: &PutRequest) -> Result<Reply, Refusal> {
        self.check_lease(request)?;
        self.check_kept(request)?;
        let mut write = Write::new(self);
        let reply = write.put(request);
        write.end();
        Ok(reply)
    }

    fn check_lease(&self, request: &PutRequest) -> Result<(), Refusal> {
        match request.lease == 0 || self.leases.contains(&request.lease) {
            true => Ok(()),
            false => Err(request::LEASE_NOT_FOUND),
        }
    }

    /// What shall be kept must exist.
    fn check_kept(&self, request: &PutRequest) -> Result<(), Refusal> {
        match (request.ignore_value || request.ignore_lease) && self.get(&request.key).is_none() {
            true => Err(request::KEY_NOT_FOUND),
            false => Ok(()),
        }
    }

    fn compact(&mut self, request: &CompactionRequest) -> Result<Reply, Refusal> {
        if request.revision <= self.compacted {
            return Err(request::COMPACTED);
        }
        if request.revision > self.revision {
            return Err(request::FUTURE);
        }
        self.compacted = request.revision;
        Ok(Reply::Compact { revision: self.revision })
    }

    fn get_at(&self, key: &[u8], revision: i64) -> Option<KeyValue> {
        let history = self.histories.get(key)?;
        history.iter().rfind(|change| change.revision <= revision)?.key_value.clone()
    }

    /// Everything in `(key, range_end)` at a revision, in key order.
    fn all_at(&self, key: &[u8], range_end: &[u8], revision: i64) -> Vec<KeyValue> {
        let keys = self.histories.keys().filter(|candidate| contains(key, range_end, candidate));
        keys.filter_map(|key| self.get_at(key, revision)).collect()
    }
}

/// Whether etcd's `(key, range_end)` names `candidate`.
fn contains(key: &[u8], range_end: &[u8], candidate: &[u8]) -> bool {
    match range_end {
        [] => candidate == key,
        [0] => candidate >= key,
        end => candidate >= key && candidate < end,
    }
}

/// A change in the making. Its operations see each other, and share one revision if any of them changes a key.
struct Write<'a> {
    model: &'a mut Model,
    changed: bool,
}

impl<'a> Write<'a> {
    fn new(model: &'a mut Model) -> Self {
        Self { model, changed: false }
    }

    /// The revision that this change has, or would have.
    fn next(&self) -> i64 {
        self.model.revision + 1
    }

    /// What an operation without effect says in its header.
    fn seen(&self) -> i64 {
        if self.changed { self.next() } else { self.model.revision }
    }

    fn put(&mut self, request: &PutRequest) -> Reply {
        let revision = self.next();
        let before = self.model.get_at(&request.key, revision);
        let mut after = KeyValue {
            key: request.key.clone(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            value: request.value.clone(),
            lease: request.lease,
        };
        if let Some(before) = &before {
            after.create_revision = before.create_revision;
            after.version = before.version + 1;
            if request.ignore_value {
                after.value = before.value.clone();
            }
            if request.ignore_lease {
                after.lease = before.lease;
            }
        }
        self.change(&request.key, Some(after));
        Reply::Put { revision, prev_kv: before.filter(|_| request.prev_kv) }
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> Reply {
        let doomed = self.model.all_at(&request.key, &request.range_end, self.next());
        for key_value in &doomed {
            self.change(&key_value.key, None);
        }
        let deleted = i64::try_from(doomed.len()).expect("keys fit into memory");
        let prev_kvs = if request.prev_kv { doomed } else { Vec::new() };
        Reply::DeleteRange { revision: self.seen(), deleted, prev_kvs }
    }

    /// A range inside a transaction: it sees what was changed before it, unless it asks for a revision.
    fn range(&self, request: &RangeRequest) -> RangeReply {
        self.model.range(request, self.seen()).expect("checked before the transaction began")
    }

    fn change(&mut self, key: &Bytes, key_value: Option<KeyValue>) {
        let change = Change { revision: self.next(), key_value };
        self.model.histories.entry(key.clone()).or_default().push(change);
        self.changed = true;
    }

    /// Makes it count; gives the revision of the answer.
    fn end(self) -> i64 {
        self.model.revision = self.seen();
        self.model.revision
    }
}

#[cfg(test)]
mod tests;
