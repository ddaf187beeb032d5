//! Random programs, evaluated under an overlay while numbers, applies and prunes come late and in any legal order. Each
//! request's outcome is compared with a naive etcd that runs it when its number has come.

use std::collections::VecDeque;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request as Op,
};
use braid_proto::pb::{Change, EtcdError, region_response};
use bytes::Bytes;

use super::naive::{Failure, Naive};
use crate::eval::{Context, Evaluated, Leases, Request, WaitFor, evaluate, fill, fill_changes};
use crate::overlay::Overlay;
use crate::view::View;
use crate::view::model::Model;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What a request was evaluated to, waiting for its number or bound.
struct Waiting {
    request: Request,
    outcome: Outcome,
    /// 0 for what changes nothing.
    seq: u64,
    rests_on: Option<u64>,
    compacted: i64,
}

/// What the sequencer has answered and nobody has received.
struct Posted {
    item: Waiting,
    before: i64,
    own: i64,
    /// What naive etcd makes of it.
    expected: Result<(region_response::Result, Vec<Change>), Failure>,
}

enum Outcome {
    Fail(EtcdError),
    Read(region_response::Result),
    Write(Vec<Change>, region_response::Result),
}

/// One region's leader with its sequencer, and the naive etcd beside it.
struct World {
    random: Random,
    naive: Naive,
    base: Model,
    overlay: Overlay,
    /// Newest revision given out by the sequencer, to anybody.
    counter: i64,
    heard: i64,
    seq: u64,
    numbers: Vec<i64>,
    waiting: VecDeque<Waiting>,
    posted: VecDeque<Posted>,
    /// Numbered, not applied.
    proposed: VecDeque<(u64, i64, Vec<Change>)>,
    applied: u64,
    pruned: u64,
    waits: [u64; 3],
    writes: u64,
    failures: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            naive: Naive::default(),
            base: Model::default(),
            overlay: Overlay::default(),
            counter: 1,
            heard: 1,
            seq: 0,
            numbers: vec![0],
            waiting: VecDeque::new(),
            posted: VecDeque::new(),
            proposed: VecDeque::new(),
            applied: 0,
            pruned: 0,
            waits: [0; 3],
            writes: 0,
            failures: 0,
        }
    }

    fn submit(&mut self, request: Request) {
        let mut heard_is_fresh = false;
        let mut missing = Vec::new();
        loop {
            if self.random.one_in(3) {
                self.heard = self.counter - self.random.below((self.counter - self.heard + 1) as u64) as i64;
            }
            let context = Context {
                heard: self.heard,
                heard_is_fresh,
                compacted: self.naive.compacted,
                leases: Leases { attached: None, missing: &missing },
                ..Context::default()
            };
            let view = View { overlay: &self.overlay, base: &self.base };
            let (outcome, rests_on) = match evaluate(&request, &view, &context).unwrap() {
                Evaluated::TooLarge => panic!("{request:?} is small"),
                Evaluated::Wait(WaitFor::Bound) => {
                    assert!(!heard_is_fresh, "asked twice for {request:?}");
                    self.waits[0] += 1;
                    self.heard = self.counter;
                    heard_is_fresh = true;
                    continue;
                }
                Evaluated::Wait(WaitFor::Number(seq)) => {
                    self.waits[1] += 1;
                    assert!(
                        self.numbers.len() as u64 <= seq && seq <= self.seq,
                        "waits for number {seq}, which is there"
                    );
                    while self.numbers.len() as u64 <= seq {
                        self.number_next();
                    }
                    continue;
                }
                Evaluated::Wait(WaitFor::Applied(seq)) => {
                    self.waits[2] += 1;
                    assert!(self.pruned < seq && seq <= self.seq);
                    while self.applied < seq {
                        if self.proposed.is_empty() { self.number_next() } else { self.apply_next() }
                    }
                    self.prune();
                    continue;
                }
                // There are no leases here.
                Evaluated::Wait(WaitFor::Lease(lease)) => {
                    missing.push(lease);
                    continue;
                }
                Evaluated::Fail { error, rests_on } => (Outcome::Fail(error), rests_on),
                Evaluated::Read { response, rests_on } => (Outcome::Read(response), rests_on),
                Evaluated::Write { changes, response, rests_on } => (Outcome::Write(changes, response), rests_on),
            };
            return self.enqueue(request, outcome, rests_on, heard_is_fresh);
        }
    }

    fn enqueue(&mut self, request: Request, outcome: Outcome, rests_on: Option<u64>, fresh: bool) {
        let mut seq = 0;
        if let Outcome::Write(changes, _) = &outcome {
            self.seq += 1;
            seq = self.seq;
            self.overlay.push(seq, self.heard, changes);
        }
        let compacted = self.naive.compacted;
        let at_once = fresh || matches!(outcome, Outcome::Fail(_));
        self.waiting.push_back(Waiting { request, outcome, seq, rests_on, compacted });
        while at_once && !self.waiting.is_empty() {
            // What is in the future now may not be later.
            self.give_in_place();
        }
    }

    /// The next number or bound arrives; it is given out first if it has not been.
    fn number_next(&mut self) {
        if self.posted.is_empty() {
            self.give_next();
        }
        self.deliver_next();
    }

    /// The sequencer gives the oldest waiting item its number or bound; the answer is in the post. From now on others may
    /// hear of later revisions first.
    fn give_next(&mut self) {
        // Other regions take numbers too.
        self.counter += self.random.below(4) as i64;
        self.give_in_place();
    }

    fn give_in_place(&mut self) {
        let Some(item) = self.waiting.pop_front() else { return };
        let (before, own) = (self.counter, self.counter + 1);
        let compacted = std::mem::replace(&mut self.naive.compacted, item.compacted);
        let expected = self.naive.run(&item.request, before, own);
        self.naive.compacted = compacted;
        self.counter += i64::from(item.seq > 0);
        self.posted.push_back(Posted { item, before, own, expected });
    }

    /// The oldest answer in the post arrives: its item must have turned out as in naive etcd.
    fn deliver_next(&mut self) {
        let Some(Posted { item, before, own, expected }) = self.posted.pop_front() else { return };
        let numbers = &self.numbers;
        let lookup = |seq: u64| numbers[seq as usize];
        match (item.outcome, expected) {
            (Outcome::Fail(error), Err(failure)) => {
                self.failures += 1;
                assert_eq!(error.message, failure, "{:?}", item.request);
            }
            (Outcome::Read(mut response), Ok((expected, changes))) => {
                assert_eq!(changes, [], "naive etcd changes something: {:?}", item.request);
                fill(&mut response, &lookup, None, before);
                assert_eq!(response, expected, "{:?}", item.request);
            }
            (Outcome::Write(mut changes, mut response), Ok((expected, expected_changes))) => {
                self.writes += 1;
                fill(&mut response, &lookup, Some(own), before);
                fill_changes(&mut changes, &lookup, own);
                assert_eq!(response, expected, "{:?}", item.request);
                assert_eq!(changes, expected_changes, "{:?}", item.request);
                self.heard = self.heard.max(own);
                self.numbers.push(own);
                assert_eq!(self.numbers.len() as u64, item.seq + 1);
                self.overlay.resolve(item.seq, own);
                self.proposed.push_back((item.seq, own, changes));
            }
            (_, expected) => panic!("{:?} should have become {expected:?}", item.request),
        }
        assert!(item.rests_on.is_none_or(|seq| seq <= self.seq));
    }

    fn apply_next(&mut self) {
        if let Some((seq, revision, changes)) = self.proposed.pop_front() {
            self.base.apply(revision, &changes);
            self.applied = seq;
        }
    }

    fn prune(&mut self) {
        self.overlay.prune(self.applied);
        self.pruned = self.applied;
    }

    /// Something that is not a request happens, or nothing.
    fn drift(&mut self) {
        match self.random.below(12) {
            0..2 => self.give_next(),
            2..4 => self.deliver_next(),
            4..6 => self.apply_next(),
            6 => self.prune(),
            7 => self.counter += self.random.below(4) as i64,
            8 => self.number_all(),
            9 if self.random.one_in(10) && self.waiting.is_empty() && self.posted.is_empty() => {
                let step = self.random.below(5) as i64;
                self.naive.compacted = (self.naive.compacted + step).min(self.counter);
            }
            _ => {}
        }
    }

    fn number_all(&mut self) {
        while !self.waiting.is_empty() || !self.posted.is_empty() {
            self.number_next();
        }
    }

    // -------------------------------------------------------------------------------------------- requests

    fn request(&mut self) -> Request {
        match self.random.below(8) {
            0..3 => Request::Put(self.put()),
            3 => Request::DeleteRange(self.delete()),
            _ => Request::Txn(self.txn(2)),
        }
    }

    fn key(&mut self) -> Bytes {
        Bytes::from_static(self.random.pick(&["a", "b", "bb", "c", "d", "e"]).as_bytes())
    }

    fn keys(&mut self) -> (Bytes, Bytes) {
        match self.random.below(6) {
            0..3 => (self.key(), Bytes::new()),
            3 => (self.key(), Bytes::from_static(b"\0")),
            4 if self.random.one_in(3) => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            _ => (self.key(), self.key()),
        }
    }

    /// A constant near the revisions that matter, but never between what is certain and what is out of reach: there
    /// naive etcd knows the item's own number, and nobody else can.
    fn revision(&mut self) -> i64 {
        match self.random.below(10) {
            0 => -1,
            1 => i64::MAX,
            2 => (1 << 53) - 1,
            _ => 1 + self.random.below(self.counter as u64) as i64,
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.random.one_in(8);
        let value = if ignore_value { "" } else { self.random.pick(&["", "x", "y", "z"]) };
        PutRequest {
            key: self.key(),
            value: Bytes::from_static(value.as_bytes()),
            lease: i64::from(self.random.one_in(40)),
            prev_kv: self.random.one_in(2),
            ignore_value,
            ignore_lease: self.random.one_in(12),
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.keys();
        DeleteRangeRequest { key, range_end, prev_kv: self.random.one_in(2) }
    }

    fn range(&mut self) -> RangeRequest {
        let (key, range_end) = self.keys();
        let mut range = RangeRequest { key, range_end, ..RangeRequest::default() };
        range.limit = self.random.below(4) as i64;
        range.keys_only = self.random.one_in(6);
        range.count_only = self.random.one_in(6);
        if self.random.one_in(3) {
            range.set_sort_order(self.random.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]));
            let targets =
                [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
            range.set_sort_target(self.random.pick(&targets));
        }
        if self.random.one_in(4) {
            match self.random.below(4) {
                0 => range.min_mod_revision = self.revision(),
                1 => range.max_mod_revision = self.revision(),
                2 => range.min_create_revision = self.revision(),
                _ => range.max_create_revision = self.revision(),
            }
        }
        if self.random.one_in(5) {
            range.revision = match self.random.below(8) {
                0 => -1 - self.random.below(2) as i64,
                1 => self.counter + 1_000 + self.random.below(3) as i64,
                _ => 1 + self.random.below(self.counter as u64) as i64,
            };
        }
        range
    }

    fn compare(&mut self) -> Compare {
        let (key, range_end) = self.keys();
        let target = self.random.pick(&[
            CompareTarget::Version,
            CompareTarget::Create,
            CompareTarget::Mod,
            CompareTarget::Value,
            CompareTarget::Lease,
        ]);
        // Compares look at the state before, whose numbers can be waited for: any constant will do.
        let near = self.counter - 3 + self.random.below(8) as i64;
        let union = match target {
            CompareTarget::Version => TargetUnion::Version(self.random.below(4) as i64),
            CompareTarget::Create => TargetUnion::CreateRevision(self.random.pick(&[0, near])),
            CompareTarget::Mod => TargetUnion::ModRevision(self.random.pick(&[0, near, i64::MAX])),
            CompareTarget::Value => {
                TargetUnion::Value(Bytes::from_static(self.random.pick(&["", "x", "y"]).as_bytes()))
            }
            CompareTarget::Lease => TargetUnion::Lease(self.random.below(2) as i64),
        };
        let result = self.random.pick(&[
            CompareResult::Equal,
            CompareResult::NotEqual,
            CompareResult::Greater,
            CompareResult::Less,
        ]);
        Compare { result: result.into(), target: target.into(), key, range_end, target_union: Some(union) }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let compares = self.random.below(3);
        let compare = (0..compares).map(|_| self.compare()).collect();
        TxnRequest { compare, success: self.ops(depth), failure: self.ops(depth) }
    }

    fn ops(&mut self, depth: u32) -> Vec<RequestOp> {
        let ops = self.random.below(4);
        let op = |world: &mut Self| match world.random.below(8) {
            0..3 => Op::RequestPut(world.put()),
            3 => Op::RequestDeleteRange(world.delete()),
            4 if depth > 0 => Op::RequestTxn(world.txn(depth - 1)),
            _ => Op::RequestRange(world.range()),
        };
        (0..ops).map(|_| RequestOp { request: Some(op(self)) }).collect()
    }
}

#[test]
fn random_programs_end_as_in_etcd() {
    let (mut waits, mut writes, mut failures) = ([0; 3], 0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..60 {
            let request = world.request();
            world.submit(request);
            while world.random.one_in(2) {
                world.drift();
            }
        }
        world.number_all();
        while !world.proposed.is_empty() {
            world.apply_next();
        }
        world.prune();
        assert!(world.overlay.is_empty(), "seed {seed}");
        let left: Vec<Bytes> = world.naive.live().into_values().map(|kv| kv.value).collect();
        let all = braid_proto::key::KeyRange::user(b"\0", b"\0");
        let live: Vec<Bytes> =
            world.base.live_at(&all, i64::MAX).into_iter().map(|(_, record)| record.value.clone()).collect();
        assert_eq!(live, left, "seed {seed}");
        waits.iter_mut().zip(world.waits).for_each(|(all, one)| *all += one);
        writes += world.writes;
        failures += world.failures;
    }
    // The programs really meet what they are meant to meet.
    assert!(waits.iter().all(|waits| *waits > 100), "waits for bounds, numbers, applies: {waits:?}");
    assert!(writes > 5_000 && failures > 500, "{writes} writes, {failures} failures");
}
