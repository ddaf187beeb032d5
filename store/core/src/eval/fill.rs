//! Replaces placeholders by revisions, once they are known.

use braid_proto::etcd::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, TxnResponse, response_op::Response as Done,
};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::pb::{Change, LockResponse, region_response};

use crate::placeholder::{BEFORE, filled};

/// Replaces every placeholder of an answer. `lookup` knows the numbers of the writes that were in flight when it was
/// evaluated, `own` is the item's own number (`None`: it took a bound), `before` the counter just before it.
pub fn fill(response: &mut region_response::Result, lookup: &dyn Fn(u64) -> i64, own: Option<i64>, before: i64) {
    let fill = Fill { lookup, own, before };
    match response {
        region_response::Result::Range(response) => fill.range(response),
        region_response::Result::Put(response) => fill.put(response),
        region_response::Result::DeleteRange(response) => fill.delete(response),
        region_response::Result::Txn(response) => fill.txn(response),
        region_response::Result::Lock(response) => fill.lock(response),
        region_response::Result::Decide(response) => fill.revision(&mut response.revision),
        region_response::Result::GrantLease(response) => fill.revision(&mut response.revision),
        region_response::Result::RevokeLease(response) => fill.revision(&mut response.revision),
        region_response::Result::AttachedKeys(response) => fill.revision(&mut response.revision),
        region_response::Result::DetachLease(response) => fill.revision(&mut response.revision),
        // Nothing in them depends on a number.
        region_response::Result::Refusal(_)
        | region_response::Result::Error(_)
        | region_response::Result::Release(_)
        | region_response::Result::Commit(_)
        | region_response::Result::Outcome(_)
        | region_response::Result::Hold(_)
        | region_response::Result::Frontier(_)
        | region_response::Result::KeepLease(_)
        | region_response::Result::LeaseState(_)
        | region_response::Result::RegisterLease(_)
        | region_response::Result::ListLeases(_)
        | region_response::Result::AttachLease(_)
        | region_response::Result::Hash(_)
        | region_response::Result::Absorb(_)
        | region_response::Result::Frozen(_) => {}
    }
}

/// Replaces every placeholder of `changes`, whose number is `own`.
pub fn fill_changes(changes: &mut [Change], lookup: &dyn Fn(u64) -> i64, own: i64) {
    for change in changes {
        change.supersedes = filled(change.supersedes, lookup, Some(own));
        change.create_revision = filled(change.create_revision, lookup, Some(own));
    }
}

struct Fill<'a> {
    lookup: &'a dyn Fn(u64) -> i64,
    own: Option<i64>,
    before: i64,
}

impl Fill<'_> {
    fn revision(&self, revision: &mut i64) {
        *revision = match *revision {
            BEFORE => self.before,
            other => filled(other, self.lookup, self.own),
        };
    }

    fn header(&self, header: &mut Option<ResponseHeader>) {
        if let Some(header) = header {
            self.revision(&mut header.revision);
        }
    }

    fn kvs<'k>(&self, kvs: impl IntoIterator<Item = &'k mut KeyValue>) {
        for kv in kvs {
            self.revision(&mut kv.create_revision);
            self.revision(&mut kv.mod_revision);
        }
    }

    fn range(&self, response: &mut RangeResponse) {
        self.header(&mut response.header);
        self.kvs(&mut response.kvs);
    }

    fn put(&self, response: &mut PutResponse) {
        self.header(&mut response.header);
        self.kvs(&mut response.prev_kv);
    }

    fn delete(&self, response: &mut DeleteRangeResponse) {
        self.header(&mut response.header);
        self.kvs(&mut response.prev_kvs);
    }

    fn lock(&self, response: &mut LockResponse) {
        for data in &mut response.data {
            self.kvs(&mut data.kvs);
        }
    }

    fn txn(&self, response: &mut TxnResponse) {
        self.header(&mut response.header);
        for op in &mut response.responses {
            match &mut op.response {
                Some(Done::ResponseRange(response)) => self.range(response),
                Some(Done::ResponsePut(response)) => self.put(response),
                Some(Done::ResponseDeleteRange(response)) => self.delete(response),
                Some(Done::ResponseTxn(response)) => self.txn(response),
                None => {}
            }
        }
    }
}
