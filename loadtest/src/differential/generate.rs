//! Makes random programs. A model runs along, so that what is asked for is often true, often just not true, and the
//! revisions are near those that matter.
//!
//! Few keys and few values are used, so that requests meet: ranges hold some of the keys, deletes find something, keys
//! are made again after they were deleted, puts collide inside transactions, sorts have ties.

use braid_proto::etcd::etcdserverpb::compare::{CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use bytes::Bytes;

use super::program::{ORIGIN, Program};
use crate::client::prefix_end;
use crate::model::{Dialect, MAX_TXN_OPS, Model, NEVER_COMPACTED, Request, is_open_ended};
use crate::random::Random;

/// Leases that keys may be attached to, where the server knows leases.
pub const LEASES: [i64; 2] = [0x00d1_ff00_0000_0001, 0x00d1_ff00_0000_0002];
/// A lease that does not exist.
const NO_LEASE: i64 = 0x00d1_ff00_0000_dead;

/// Every key that programs use: short ones over a few letters, and bytes that are at the edges of something.
const KEYS: [&[u8]; 24] = [
    b"a",
    b"a\0",
    b"a/",
    b"a/a",
    b"a/b",
    b"a0",
    b"b",
    b"bb",
    b"b\xff",
    b"c",
    b"c/1",
    b"c/2",
    b"d",
    b"e",
    b"f",
    b"h",
    b"k",
    b"m",
    b"p",
    b"s",
    b"x",
    b"\0",
    b"\xff",
    b"\xff\xff",
];
const VALUES: [&[u8]; 6] = [b"", b"x", b"y", b"xy", b"\0", b"a somewhat longer value"];

/// What programs look like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Random requests in a program; a few more follow that read everything and clean up.
    pub length: usize,
    /// Rules of the model that runs along.
    pub dialect: Dialect,
    /// Programs ask for sorts that do not exist. etcd 3.5.1 takes them for something else; later releases refuse them.
    pub unknown_sorts: bool,
    /// The server knows leases. Programs try to attach keys to some in any case.
    pub leases: bool,
    /// Programs compact.
    pub compactions: bool,
    /// Some compactions wait until the history is gone from the disk.
    pub physical: bool,
    /// Programs read serializably now and then.
    pub serializable: bool,
}

/// The keys that programs may use, as split points for regions.
pub fn universe() -> Vec<Bytes> {
    KEYS.iter().map(|key| Bytes::from_static(key)).collect()
}

/// Program `number` of a seed. The same arguments give the same program for ever.
pub fn program(seed: u64, number: u64, shape: &Shape) -> Program {
    let mut random = Random::new(seed, number);
    let mut keys = universe();
    let count = 3 + random.below(10) as usize;
    while keys.len() > count {
        keys.swap_remove(random.below(keys.len() as u64) as usize);
    }
    let mut model = Model::starting_at(shape.dialect, ORIGIN, NEVER_COMPACTED);
    if shape.leases {
        LEASES.into_iter().for_each(|lease| model.grant(lease));
    }
    let mut generator = Generator { random, keys, model, shape };
    let mut requests = Vec::new();
    for at in 0..shape.length {
        // Something to work with first.
        let request = match at < shape.length / 5 && generator.percent(70) {
            true => Request::Put(generator.put(Where::Alone)),
            false => generator.request(),
        };
        requests.push(request);
        generator.follow(&requests);
    }
    requests.extend(generator.ending());
    Program { requests }
}

struct Generator<'a> {
    random: Random,
    keys: Vec<Bytes>,
    model: Model,
    shape: &'a Shape,
}

impl Generator<'_> {
    fn percent(&mut self, chance: u64) -> bool {
        self.random.below(100) < chance
    }

    fn one<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.random.below(choices.len() as u64) as usize].clone()
    }

    /// Lets the model do what was asked last. Whether it was refused does not matter here.
    fn follow(&mut self, requests: &[Request]) {
        if let Some(request) = requests.last() {
            let _refused = self.model.answer(request).is_err();
        }
    }

    fn request(&mut self) -> Request {
        match self.random.below(100) {
            0..30 => Request::Range(self.range(Where::Alone)),
            30..60 => Request::Put(self.put(Where::Alone)),
            60..67 => Request::DeleteRange(self.delete_range()),
            67..97 => Request::Txn(self.txn()),
            _ if self.shape.compactions => Request::Compact(self.compaction()),
            _ => Request::Range(self.range(Where::Alone)),
        }
    }

    /// Everything there is, now and at two revisions before, and then nothing.
    fn ending(&mut self) -> Vec<Request> {
        let everything =
            |revision| RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
        let (first, second) = (self.past(), self.past());
        let revisions = [0, first, second];
        let mut ending: Vec<_> = revisions.map(|revision| Request::Range(everything(revision))).into();
        let all = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
        ending.push(Request::DeleteRange(all));
        ending
    }

    fn key(&mut self) -> Bytes {
        if self.percent(1) { Bytes::new() } else { self.known_key() }
    }

    fn known_key(&mut self) -> Bytes {
        let keys = self.keys.clone();
        self.one(&keys)
    }

    fn keys(&mut self) -> (Bytes, Bytes) {
        let (key, other) = (self.key(), self.known_key());
        match self.random.below(100) {
            0..25 => (key, Bytes::new()),
            25..68 => (key.clone().min(other.clone()), key.max(other)),
            68..78 => (key.clone(), prefix_end(&key)),
            78..86 => (key, Bytes::from_static(b"\0")),
            86..93 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            93..97 => (Bytes::from_static(b"\0"), other),
            _ => (key.clone().max(other.clone()), key.min(other)),
        }
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static(self.random.choose(&VALUES))
    }

    fn lease(&mut self) -> i64 {
        match self.random.below(100) {
            0..80 => 0,
            80..97 => self.one(&LEASES),
            _ => NO_LEASE,
        }
    }

    /// A revision between the compacted one and now.
    fn past(&mut self) -> i64 {
        let oldest = self.model.compacted().max(ORIGIN);
        oldest + self.below(self.model.revision() - oldest + 1)
    }

    fn below(&mut self, bound: i64) -> i64 {
        self.random.below(bound.unsigned_abs()).cast_signed()
    }

    /// Revision to read at.
    fn revision(&mut self) -> i64 {
        match self.random.below(100) {
            0..60 => 0,
            60..85 => self.past(),
            85..91 => self.model.revision() + 1 + self.below(2),
            91..95 => self.compacted_edge(),
            95..97 => self.model.revision(),
            _ => -1 - self.below(2),
        }
    }

    /// A revision at or just below the compacted one, as far as programs may look back.
    fn compacted_edge(&mut self) -> i64 {
        let below = self.below(2);
        (self.model.compacted() - below).max(ORIGIN)
    }

    fn range(&mut self, place: Where) -> RangeRequest {
        let (key, range_end) = self.keys();
        let mut request = RangeRequest { key, range_end, revision: self.revision(), ..RangeRequest::default() };
        request.keys_only = self.percent(10);
        request.count_only = self.percent(8);
        if self.percent(40) {
            request.limit = if self.percent(5) { -1 } else { 1 + self.below(3) };
        }
        if self.percent(40) {
            request.sort_order = self.below(3) as i32;
            request.sort_target = self.below(5) as i32;
        }
        if self.shape.unknown_sorts && self.percent(1) {
            request.sort_order = self.one(&[-1, 3]);
        }
        if self.shape.unknown_sorts && self.percent(1) {
            request.sort_target = self.one(&[-1, 5]);
        }
        if self.percent(20) {
            let bounds = [
                &mut request.min_mod_revision,
                &mut request.max_mod_revision,
                &mut request.min_create_revision,
                &mut request.max_create_revision,
            ];
            for bound in bounds {
                if self.percent(40) {
                    *bound = self.past();
                }
            }
        }
        if place == Where::Alone && self.shape.serializable && self.percent(10) {
            request.serializable = true;
            request.revision = 0;
        }
        request
    }

    fn put(&mut self, place: Where) -> PutRequest {
        let mut request = PutRequest {
            key: self.key(),
            value: self.value(),
            lease: self.lease(),
            prev_kv: self.percent(40),
            ..PutRequest::default()
        };
        // Inside a transaction a key that is missing spoils everything: keep something only where there is something,
        // mostly.
        let exists = self.model.get(&request.key).is_some();
        if place == Where::Alone || exists || self.percent(10) {
            request.ignore_value = self.percent(12);
            request.ignore_lease = self.percent(12);
        }
        if request.ignore_value && self.percent(90) {
            request.value = Bytes::new();
        }
        if request.ignore_lease && self.percent(90) {
            request.lease = 0;
        }
        request
    }

    fn delete_range(&mut self) -> DeleteRangeRequest {
        let (mut key, mut range_end) = self.keys();
        // Large deletes leave nothing to read, and inside a transaction they collide with nearly every put.
        if self.percent(60) {
            (key, range_end) = (self.key(), Bytes::new());
        }
        DeleteRangeRequest { key, range_end, prev_kv: self.percent(50) }
    }

    fn compaction(&mut self) -> CompactionRequest {
        let revision = match self.random.below(100) {
            0..60 => ORIGIN + self.below(self.model.revision() - ORIGIN + 1),
            60..70 => self.model.revision(),
            70..80 => self.model.revision() + 1,
            80..90 => self.compacted_edge(),
            90..95 => 0,
            _ => -1,
        };
        CompactionRequest { revision, physical: self.shape.physical && self.percent(20) }
    }

    /// A transaction; most that are refused are thrown away, because nothing else in them would be tested.
    fn txn(&mut self) -> TxnRequest {
        if self.percent(1) {
            return self.huge_txn();
        }
        loop {
            let mut request = self.any_txn(0);
            if deletes_without_end(&request) {
                // etcd lets such a delete meet a put of the same key, and ends itself if that put wants to keep
                // something which is no longer there.
                keep_nothing(&mut request);
            }
            if self.model.clone().answer(&Request::Txn(request.clone())).is_ok() || self.percent(25) {
                return request;
            }
        }
    }

    fn any_txn(&mut self, depth: usize) -> TxnRequest {
        let counts = [0, 1, 1, 1, 2, 3];
        let compares = self.one(&counts);
        let compare = (0..compares).map(|_| self.compare()).collect();
        let mut branch = || {
            let ops = self.one(&[0, 1, 1, 2, 2, 3, 4, 5]);
            (0..ops).map(|_| self.op(depth)).collect()
        };
        let (success, failure) = (branch(), branch());
        TxnRequest { compare, success, failure }
    }

    fn op(&mut self, depth: usize) -> RequestOp {
        let request = match self.random.below(200) {
            0..60 => Op::RequestRange(self.range(Where::Txn)),
            60..145 => Op::RequestPut(self.put(Where::Txn)),
            145..165 => Op::RequestDeleteRange(self.delete_range()),
            165..199 if depth < 3 => Op::RequestTxn(self.any_txn(depth + 1)),
            165..199 => Op::RequestPut(self.put(Where::Txn)),
            _ => return RequestOp { request: None },
        };
        RequestOp { request: Some(request) }
    }

    fn compare(&mut self) -> Compare {
        let range_end = if self.percent(25) { self.keys().1 } else { Bytes::new() };
        let key = self.key();
        let target = self.below(5) as i32;
        let now = self.model.get(&key).unwrap_or_default();
        let step = if self.percent(55) { 0 } else { self.below(3) - 1 };
        let near = |number: i64| number + step;
        let union = match CompareTarget::try_from(target).unwrap_or_default() {
            CompareTarget::Version => TargetUnion::Version(near(now.version)),
            CompareTarget::Create => TargetUnion::CreateRevision(near(now.create_revision)),
            CompareTarget::Mod => TargetUnion::ModRevision(near(now.mod_revision)),
            CompareTarget::Value if step == 0 => TargetUnion::Value(now.value),
            CompareTarget::Value => TargetUnion::Value(self.value()),
            CompareTarget::Lease if step == 0 => TargetUnion::Lease(now.lease),
            CompareTarget::Lease => TargetUnion::Lease(self.lease()),
        };
        let result = self.one(&[0, 0, 0, 0, 1, 2, 3]);
        let mut compare = Compare { result, target, key, range_end, target_union: Some(union) };
        match self.random.below(100) {
            0 => compare.result = 4,
            1 => compare.target = 5,
            2 => compare.target_union = None,
            3 => compare.target_union = Some(TargetUnion::Version(1)),
            _ => {}
        }
        compare
    }

    /// One whose number of operations is at the limit, with a nested one at what is left of it.
    fn huge_txn(&mut self) -> TxnRequest {
        let get = |key: &Bytes| RequestOp {
            request: Some(Op::RequestRange(RangeRequest { key: key.clone(), ..RangeRequest::default() })),
        };
        let key = self.known_key();
        let outer = self.one(&[MAX_TXN_OPS, MAX_TXN_OPS + 1, MAX_TXN_OPS - 2]);
        let inner = MAX_TXN_OPS.saturating_sub(outer) + self.one(&[0, 0, 1]);
        let mut success: Vec<_> = (0..outer).map(|_| get(&key)).collect();
        if self.percent(60) {
            let nested = TxnRequest { success: (0..inner).map(|_| get(&key)).collect(), ..TxnRequest::default() };
            success[outer - 1] = RequestOp { request: Some(Op::RequestTxn(nested)) };
        }
        TxnRequest { success, ..TxnRequest::default() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Alone,
    Txn,
}

fn ops(request: &TxnRequest) -> impl Iterator<Item = &Op> {
    request.success.iter().chain(&request.failure).filter_map(|op| op.request.as_ref())
}

fn deletes_without_end(request: &TxnRequest) -> bool {
    ops(request).any(|op| match op {
        Op::RequestDeleteRange(delete) => is_open_ended(&delete.range_end),
        Op::RequestTxn(nested) => deletes_without_end(nested),
        _ => false,
    })
}

fn keep_nothing(request: &mut TxnRequest) {
    for op in request.success.iter_mut().chain(&mut request.failure) {
        match &mut op.request {
            Some(Op::RequestPut(put)) => (put.ignore_value, put.ignore_lease) = (false, false),
            Some(Op::RequestTxn(nested)) => keep_nothing(nested),
            _ => {}
        }
    }
}
