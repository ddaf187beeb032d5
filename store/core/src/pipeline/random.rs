//! Random programs through the pipeline, numbers and applies arriving at random, against etcd written as simply as it
//! can be: one request after the other on one map. Every answer, its revisions included, and the state must be equal.

use std::collections::BTreeMap;

use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse, compare, request_op, response_op,
};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::user_key;
use braid_proto::pb::{Region, region_response};

use super::tests::EPOCH;
use bytes::Bytes;

use super::*;
use crate::eval::Request;
use crate::view::model::Model;

const KEYS: [&str; 4] = ["a", "b", "c", "d"];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(KEYS[self.below(4) as usize])
    }

    /// One key, or everything from one key on.
    fn end(&mut self) -> Bytes {
        if self.below(3) == 0 { Bytes::from_static(b"\0") } else { Bytes::new() }
    }
}

// ---------------------------------------------------------------- etcd, naively

#[derive(Clone, Default)]
struct Etcd {
    keys: BTreeMap<Bytes, KeyValue>,
    revision: i64,
}

impl Etcd {
    fn matching(&self, key: &Bytes, end: &Bytes) -> Vec<KeyValue> {
        let inside = |k: &Bytes| if end.is_empty() { k == key } else { k >= key };
        self.keys.iter().filter(|(k, _)| inside(k)).map(|(_, kv)| kv.clone()).collect()
    }

    fn holds(&self, c: &Compare) -> bool {
        let kvs = self.matching(&c.key, &c.range_end);
        if kvs.is_empty() {
            if matches!(c.target_union, Some(compare::TargetUnion::Value(_))) {
                return false;
            }
            return decide(c, &KeyValue::default());
        }
        kvs.iter().all(|kv| decide(c, kv))
    }

    fn put(&mut self, put: &PutRequest, revision: i64) -> PutResponse {
        let before = self.keys.get(&put.key).cloned();
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            value: put.value.clone(),
            lease: 0,
        };
        self.keys.insert(put.key.clone(), kv);
        PutResponse { header: header(revision), prev_kv: before.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, delete: &DeleteRangeRequest, revision: i64) -> DeleteRangeResponse {
        let gone = self.matching(&delete.key, &delete.range_end);
        gone.iter().for_each(|kv| _ = self.keys.remove(&kv.key));
        let prev_kvs = if delete.prev_kv { gone.clone() } else { Vec::new() };
        DeleteRangeResponse { header: header(revision), deleted: gone.len() as i64, prev_kvs }
    }

    fn range(&self, range: &RangeRequest, revision: i64) -> RangeResponse {
        let kvs = self.matching(&range.key, &range.range_end);
        RangeResponse { header: header(revision), count: kvs.len() as i64, kvs, more: false }
    }

    /// Runs `request` and returns what etcd answers.
    fn run(&mut self, request: &Request) -> region_response::Result {
        let (before, own) = (self.revision, self.revision + 1);
        match request {
            Request::Put(put) => {
                self.revision = own;
                region_response::Result::Put(self.put(put, own))
            }
            Request::DeleteRange(delete) => {
                let mut answer = self.delete(delete, own);
                if answer.deleted == 0 {
                    answer.header = header(before);
                } else {
                    self.revision = own;
                }
                region_response::Result::DeleteRange(answer)
            }
            Request::Txn(txn) => region_response::Result::Txn(self.txn(txn)),
        }
    }

    fn txn(&mut self, txn: &TxnRequest) -> TxnResponse {
        let (before, own) = (self.revision, self.revision + 1);
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let mut changed = false;
        let mut responses = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            let now = |changed: bool| if changed { own } else { before };
            let response = match op.request.as_ref().expect("an operation") {
                request_op::Request::RequestPut(put) => {
                    changed = true;
                    response_op::Response::ResponsePut(self.put(put, own))
                }
                request_op::Request::RequestDeleteRange(delete) => {
                    let mut answer = self.delete(delete, own);
                    changed |= answer.deleted > 0;
                    answer.header = header(now(changed));
                    response_op::Response::ResponseDeleteRange(answer)
                }
                request_op::Request::RequestRange(range) => {
                    response_op::Response::ResponseRange(self.range(range, now(changed)))
                }
                request_op::Request::RequestTxn(_) => unreachable!("programs do not nest"),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        self.revision = if changed { own } else { before };
        TxnResponse { header: header(self.revision), succeeded, responses }
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn decide(c: &Compare, kv: &KeyValue) -> bool {
    use compare::TargetUnion as U;
    let order = match c.target_union.as_ref().expect("a target") {
        U::Version(v) => kv.version.cmp(v),
        U::CreateRevision(r) => kv.create_revision.cmp(r),
        U::ModRevision(r) => kv.mod_revision.cmp(r),
        U::Value(v) => kv.value.cmp(v),
        U::Lease(l) => kv.lease.cmp(l),
    };
    match c.result() {
        compare::CompareResult::Equal => order.is_eq(),
        compare::CompareResult::Greater => order.is_gt(),
        compare::CompareResult::Less => order.is_lt(),
        compare::CompareResult::NotEqual => order.is_ne(),
    }
}

// ---------------------------------------------------------------- programs

fn request(random: &mut Random, near: i64) -> Request {
    match random.below(6) {
        0 | 1 => Request::Put(put(random)),
        2 => Request::DeleteRange(delete(random)),
        _ => {
            let compare = (0..random.below(3)).map(|_| compare(random, near)).collect();
            Request::Txn(TxnRequest { compare, success: branch(random), failure: branch(random) })
        }
    }
}

fn put(random: &mut Random) -> PutRequest {
    let value = Bytes::from(random.below(4).to_string());
    PutRequest { key: random.key(), value, prev_kv: random.below(2) == 0, ..Default::default() }
}

fn delete(random: &mut Random) -> DeleteRangeRequest {
    DeleteRangeRequest { key: random.key(), range_end: random.end(), prev_kv: random.below(2) == 0 }
}

fn branch(random: &mut Random) -> Vec<RequestOp> {
    let mut touched = Vec::new();
    let mut ops = Vec::new();
    for _ in 0..random.below(4) {
        let request = match random.below(3) {
            0 => {
                let put = put(random);
                // The duplicate-key rule is the proxy's: programs keep it.
                if touched.contains(&put.key) {
                    continue;
                }
                touched.push(put.key.clone());
                request_op::Request::RequestPut(put)
            }
            1 => {
                let delete = DeleteRangeRequest { range_end: Bytes::new(), ..delete(random) };
                if touched.contains(&delete.key) {
                    continue;
                }
                touched.push(delete.key.clone());
                request_op::Request::RequestDeleteRange(delete)
            }
            _ => {
                let range = RangeRequest { key: random.key(), range_end: random.end(), ..Default::default() };
                request_op::Request::RequestRange(range)
            }
        };
        ops.push(RequestOp { request: Some(request) });
    }
    ops
}

/// Constants close to the revisions of the moment: the ones that an unknown number decides.
fn compare(random: &mut Random, near: i64) -> Compare {
    use compare::{CompareTarget as T, TargetUnion as U};
    let revision = near + random.below(9) as i64 - 4;
    let (target, with) = match random.below(4) {
        0 => (T::Version, U::Version(random.below(4) as i64)),
        1 => (T::Create, U::CreateRevision(revision)),
        2 => (T::Mod, U::ModRevision(revision)),
        _ => (T::Value, U::Value(Bytes::from(random.below(4).to_string()))),
    };
    Compare {
        result: random.below(4) as i32,
        target: target.into(),
        key: random.key(),
        range_end: random.end(),
        target_union: Some(with),
    }
}

// ---------------------------------------------------------------- the run

/// Sequencer, raft and RocksDB with a will of their own.
struct World {
    pipeline: Pipeline<usize, ()>,
    applied: Model,
    counter: i64,
    heard: i64,
    asked: Option<(BatchId, u32)>,
    proposed: VecDeque<(EntryId, Bytes)>,
    answers: BTreeMap<usize, region_response::Result>,
}

impl World {
    fn act(&mut self, event: impl FnOnce(&mut Pipeline<usize, ()>, &mut Vec<Effect<usize, ()>>)) {
        let mut effects = Vec::new();
        event(&mut self.pipeline, &mut effects);
        self.pipeline.pump(&self.applied, self.heard, &mut effects).expect("readable");
        for effect in effects {
            match effect {
                Effect::Number { batch, count } => assert!(self.asked.replace((batch, count)).is_none()),
                Effect::Propose { entry, data, .. } => self.proposed.push_back((entry, data)),
                Effect::Judge { to, answer, .. } | Effect::Reply { to, answer } => {
                    assert!(self.answers.insert(to, answer.result.expect("a result")).is_none());
                }
                other => unreachable!("{other:?}"),
            }
        }
    }

    fn number(&mut self) {
        let Some((batch, count)) = self.asked.take() else { return };
        let base = self.counter;
        self.counter += i64::from(count);
        self.heard = self.counter;
        self.act(|pipeline, effects| assert!(pipeline.numbered(batch, Block { base, compacted: 0 }, effects)));
    }

    fn apply(&mut self) {
        let Some((entry, data)) = self.proposed.pop_front() else { return };
        for txn in RegionEntry::decode(data).expect("an entry").txns {
            self.applied.apply(txn.revision, &txn.changes);
        }
        self.act(|pipeline, effects| assert_eq!(pipeline.entry_ended(entry, EntryEnd::Applied, effects), 0));
    }
}

#[test]
fn any_program_answers_as_one_etcd_would() {
    for seed in 1..=400_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut pipeline = Pipeline::new(Region { id: 7, epoch: Some(EPOCH), ..Default::default() });
        pipeline.on_leader(Term(5), Vec::new(), Vec::new(), &mut Vec::new());
        let mut world = World {
            pipeline,
            applied: Model::default(),
            counter: 1,
            heard: 1,
            asked: None,
            proposed: VecDeque::new(),
            answers: BTreeMap::new(),
        };
        let mut program = Vec::new();
        for id in 0..60 {
            let request = request(&mut random, world.counter);
            program.push(request.clone());
            world.act(|pipeline, effects| pipeline.submit(id, Work::Evaluate(request), EPOCH, true, effects));
            // Mostly behind, so that writes pile up without numbers and without being applied.
            for _ in 0..random.below(3) {
                match random.below(2) {
                    0 => world.number(),
                    _ => world.apply(),
                }
            }
        }
        while world.answers.len() < program.len() {
            world.number();
            world.apply();
        }
        let mut etcd = Etcd { revision: 1, ..Default::default() };
        for (id, request) in program.iter().enumerate() {
            assert_eq!(world.answers[&id], etcd.run(request), "seed {seed}, request {id}: {request:?}");
        }
        for key in KEYS {
            let value = world.applied.at(&user_key(key.as_bytes()), i64::MAX).map(|record| record.value.clone());
            assert_eq!(value, etcd.keys.get(key.as_bytes()).map(|kv| kv.value.clone()), "seed {seed}, {key}");
        }
    }
}
