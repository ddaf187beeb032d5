//! etcd's transaction semantics as plainly as they can be written: whole state copied, everything filtered, no placeholder.
//! Shares no code with what it checks.

use std::collections::BTreeMap;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op::Request as Op, response_op::Response as Done,
};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::user_key;
use braid_proto::pb::{Change, region_response};

use crate::eval::Request;

type Live = BTreeMap<Vec<u8>, KeyValue>;

/// The whole store. `history[i]` is what was live at the i-th of `revisions`.
#[derive(Default)]
pub struct Naive {
    pub revisions: Vec<i64>,
    pub history: Vec<Live>,
    pub compacted: i64,
}

pub type Failure = &'static str;
const FUTURE: Failure = "etcdserver: mvcc: required revision is a future revision";
const COMPACTED: Failure = "etcdserver: mvcc: required revision has been compacted";
const NO_KEY: Failure = "etcdserver: key not found";
const NO_LEASE: Failure = "etcdserver: requested lease not found";

/// One execution under way: the counter before it, its own number, and the state so far.
struct Execution<'a> {
    naive: &'a Naive,
    before: i64,
    own: i64,
    pre: &'a Live,
    live: Live,
    changes: Vec<Change>,
}

impl Naive {
    pub fn live(&self) -> Live {
        self.history.last().cloned().unwrap_or_default()
    }

    fn at(&self, revision: i64) -> Live {
        let upto = self.revisions.iter().take_while(|made| **made <= revision).count();
        upto.checked_sub(1).map(|i| self.history[i].clone()).unwrap_or_default()
    }

    /// Runs `request` with the counter at `before`; it gets `own` if it changes anything, and takes effect.
    pub fn run(
        &mut self,
        request: &Request,
        before: i64,
        own: i64,
    ) -> Result<(region_response::Result, Vec<Change>), Failure> {
        let pre = self.live();
        let mut run = Execution { naive: self, before, own, live: pre.clone(), pre: &pre, changes: Vec::new() };
        let response = match request {
            Request::Put(put) => {
                run.check_lease(put)?;
                run.check_kept(put)?;
                region_response::Result::Put(run.put(put)?)
            }
            Request::DeleteRange(delete) => region_response::Result::DeleteRange(run.delete(delete)),
            Request::Txn(txn) => {
                run.check_puts(txn)?;
                run.check_ranges(txn)?;
                let mut response = run.txn(txn)?;
                response.header = run.header();
                region_response::Result::Txn(response)
            }
        };
        let (live, changes) = (run.live, run.changes);
        if !changes.is_empty() {
            self.revisions.push(own);
            self.history.push(live);
        }
        Ok((response, changes))
    }
}

fn inside(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        b"" => key == start,
        b"\0" => key >= start,
        end => key >= start && key < end,
    }
}

fn pick(live: &Live, start: &[u8], end: &[u8]) -> Vec<KeyValue> {
    live.values().filter(|kv| inside(&kv.key, start, end)).cloned().collect()
}

impl Execution<'_> {
    fn header(&self) -> Option<ResponseHeader> {
        let revision = if self.changes.is_empty() { self.before } else { self.own };
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    fn holds(&self, txn: &TxnRequest) -> bool {
        txn.compare.iter().all(|compare| self.compare(compare))
    }

    fn compare(&self, compare: &Compare) -> bool {
        let found = pick(self.pre, &compare.key, &compare.range_end);
        if found.is_empty() {
            return compare.target != CompareTarget::Value as i32 && one(compare, &KeyValue::default());
        }
        found.iter().all(|kv| one(compare, kv))
    }

    fn branch<'t>(&self, txn: &'t TxnRequest) -> &'t [RequestOp] {
        if self.holds(txn) { &txn.success } else { &txn.failure }
    }

    fn check_puts(&self, txn: &TxnRequest) -> Result<(), Failure> {
        for op in self.branch(txn) {
            match op.request.as_ref().unwrap() {
                Op::RequestPut(put) => {
                    self.check_kept(put)?;
                    self.check_lease(put)?;
                }
                Op::RequestRange(_) | Op::RequestDeleteRange(_) => {}
                Op::RequestTxn(nested) => self.check_puts(nested)?,
            }
        }
        Ok(())
    }

    fn check_ranges(&self, txn: &TxnRequest) -> Result<(), Failure> {
        for op in self.branch(txn) {
            match op.request.as_ref().unwrap() {
                Op::RequestRange(range) if range.revision > self.before => return Err(FUTURE),
                Op::RequestRange(range) => {
                    let boundary = if self.naive.compacted == 0 { -1 } else { self.naive.compacted };
                    if range.revision != 0 && range.revision < boundary {
                        return Err(COMPACTED);
                    }
                }
                Op::RequestPut(_) | Op::RequestDeleteRange(_) => {}
                Op::RequestTxn(nested) => self.check_ranges(nested)?,
            }
        }
        Ok(())
    }

    fn check_lease(&self, put: &PutRequest) -> Result<(), Failure> {
        if put.lease == 0 { Ok(()) } else { Err(NO_LEASE) }
    }

    fn check_kept(&self, put: &PutRequest) -> Result<(), Failure> {
        match (put.ignore_value || put.ignore_lease) && !self.pre.contains_key(&put.key[..]) {
            true => Err(NO_KEY),
            false => Ok(()),
        }
    }

    fn put(&mut self, put: &PutRequest) -> Result<PutResponse, Failure> {
        let old = self.live.get(&put.key[..]).cloned();
        if (put.ignore_value || put.ignore_lease) && old.is_none() {
            return Err(NO_KEY);
        }
        let mut kv = KeyValue {
            key: put.key.clone(),
            create_revision: self.own,
            mod_revision: self.own,
            version: 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        if let Some(old) = &old {
            kv.create_revision = old.create_revision;
            kv.version = old.version + 1;
            if put.ignore_value {
                kv.value = old.value.clone();
            }
            if put.ignore_lease {
                kv.lease = old.lease;
            }
        }
        self.changes.push(Change {
            key: user_key(&kv.key),
            supersedes: old.as_ref().map_or(0, |old| old.mod_revision),
            delete: false,
            create_revision: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
            value: kv.value.clone(),
            superseded: bytes::Bytes::new(),
        });
        self.live.insert(kv.key.to_vec(), kv);
        Ok(PutResponse { header: self.header(), prev_kv: old.filter(|_| put.prev_kv) })
    }

    fn delete(&mut self, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let gone = pick(&self.live, &delete.key, &delete.range_end);
        for kv in &gone {
            self.live.remove(&kv.key[..]);
            let supersedes = kv.mod_revision;
            self.changes.push(Change { key: user_key(&kv.key), supersedes, delete: true, ..Change::default() });
        }
        let prev_kvs = if delete.prev_kv { gone.clone() } else { Vec::new() };
        DeleteRangeResponse { header: self.header(), deleted: gone.len() as i64, prev_kvs }
    }

    fn range(&self, range: &RangeRequest) -> RangeResponse {
        let live = if range.revision > 0 { &self.naive.at(range.revision) } else { &self.live };
        let mut kvs = pick(live, &range.key, &range.range_end);
        let mut response = RangeResponse { header: self.header(), count: kvs.len() as i64, ..RangeResponse::default() };
        if range.count_only {
            return response;
        }
        let filters =
            [range.min_mod_revision, range.max_mod_revision, range.min_create_revision, range.max_create_revision];
        let (order, target) = (range.sort_order(), range.sort_target());
        let limited = range.limit > 0 && filters == [0; 4];
        let key_order = order == SortOrder::None || (order, target) == (SortOrder::Ascend, SortTarget::Key);
        if limited && key_order {
            kvs.truncate(range.limit as usize + 1);
        }
        kvs.retain(|kv| {
            (filters[0] == 0 || kv.mod_revision >= filters[0])
                && (filters[1] == 0 || kv.mod_revision <= filters[1])
                && (filters[2] == 0 || kv.create_revision >= filters[2])
                && (filters[3] == 0 || kv.create_revision <= filters[3])
        });
        let number = |kv: &KeyValue| match target {
            SortTarget::Version => kv.version,
            SortTarget::Create => kv.create_revision,
            SortTarget::Mod => kv.mod_revision,
            SortTarget::Key | SortTarget::Value => 0,
        };
        let bytes = |kv: &KeyValue| match target {
            SortTarget::Key => kv.key.clone(),
            SortTarget::Value => kv.value.clone(),
            _ => Default::default(),
        };
        match order {
            SortOrder::Descend => kvs.sort_by_key(|kv| std::cmp::Reverse((number(kv), bytes(kv)))),
            _ => kvs.sort_by_key(|kv| (number(kv), bytes(kv))),
        }
        if range.limit > 0 && kvs.len() > range.limit as usize {
            kvs.truncate(range.limit as usize);
            response.more = true;
        }
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        response.kvs = kvs;
        response
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, Failure> {
        let mut response = TxnResponse { succeeded: self.holds(txn), ..TxnResponse::default() };
        response.header = Some(ResponseHeader::default());
        for op in self.branch(txn) {
            let done = match op.request.as_ref().unwrap() {
                Op::RequestRange(range) => Done::ResponseRange(self.range(range)),
                Op::RequestPut(put) => Done::ResponsePut(self.put(put)?),
                Op::RequestDeleteRange(delete) => Done::ResponseDeleteRange(self.delete(delete)),
                Op::RequestTxn(nested) => Done::ResponseTxn(self.txn(nested)?),
            };
            response.responses.push(ResponseOp { response: Some(done) });
        }
        Ok(response)
    }
}

fn one(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match (compare.target(), compare.target_union.as_ref().unwrap()) {
        (CompareTarget::Version, TargetUnion::Version(wanted)) => kv.version.cmp(wanted),
        (CompareTarget::Create, TargetUnion::CreateRevision(wanted)) => kv.create_revision.cmp(wanted),
        (CompareTarget::Mod, TargetUnion::ModRevision(wanted)) => kv.mod_revision.cmp(wanted),
        (CompareTarget::Value, TargetUnion::Value(wanted)) => kv.value.cmp(wanted),
        (CompareTarget::Lease, TargetUnion::Lease(wanted)) => kv.lease.cmp(wanted),
        other => panic!("{other:?}"),
    };
    match compare.result() {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
    }
}
