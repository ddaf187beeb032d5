//! A coordinator whose steps a test takes one by one, so that it can die between any two of them.
//!
//! Its transaction touches, in each region it takes part in, one key that exists and one that does not, and maybe wipes a
//! range of many keys. All keys start with the region's letter and the transaction's name, so any number of them can be
//! under way at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{
    Change, CommitRequest, DecideRequest, DecideResponse, HoldRequest, LockRange, LockRead, LockRequest, LockResponse,
    LockToken, LockedData, OutcomeRequest, OutcomeResponse, ReleaseRequest, Share, TxnId, Wipe, outcome_response,
    region_request, region_response,
};
use braid_store_core::pipeline::SILENT_TICKS_MAX;
use braid_store_core::placeholder::OWN;
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::cluster::World;

/// Between two ticks of a store's locks.
const TICK: Duration = Duration::from_millis(500);
/// How long a lock outlives its coordinator's last word, at most, while its primary's leader stays.
pub const TIME_TO_LIVE: Duration = TICK.saturating_mul(SILENT_TICKS_MAX + 1);
/// When all keys must be free after a crash at the latest: a leader is elected, which counts afresh, participants ask it
/// once a second, and the machine is slow.
pub const LIMIT: Duration = TIME_TO_LIVE.saturating_add(Duration::from_secs(6));
/// How often a coordinator says that it is still at work.
const HOLD_INTERVAL: Duration = Duration::from_millis(500);
/// Puts of one seeding transaction.
const SEED_PUTS: usize = 1_000;

/// What a transaction does in one region.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// First letter of its keys.
    pub letter: char,
    /// How many keys it wipes beside.
    pub wipes: usize,
}

impl Part {
    /// Keys of the region of `letter`, nothing wiped.
    pub fn of(letter: char) -> Self {
        Self { letter, wipes: 0 }
    }
}

/// A lock that the coordinator holds.
#[derive(Clone, Debug)]
pub struct Taken {
    token: LockToken,
    data: Vec<LockedData>,
}

/// What a coordinator was told at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// It has happened.
    Revision(i64),
    /// It has not.
    Over,
}

/// See the module's text.
pub struct Coordinator {
    /// Where its regions are.
    pub world: Arc<World>,
    /// Its name.
    pub name: Arc<str>,
    /// Its transaction.
    pub txn: TxnId,
    /// In key order: the primary's first.
    pub parts: Vec<Part>,
    /// The locks it has, by part.
    taken: BTreeMap<usize, Taken>,
    /// Region and term in which the primary must be locked, if the others did not wait for it.
    beside: (u64, u64),
    /// What the keys were put at before.
    pub seeded: Vec<i64>,
    holding: Option<JoinHandle<()>>,
}

impl Coordinator {
    /// One that has not begun; its keys are as they are to be before.
    pub async fn seed(world: &Arc<World>, name: &str, number: u64, parts: &[Part]) -> Self {
        let mut seeded = Vec::new();
        for part in parts {
            let wipes: Vec<String> = (0..part.wipes).map(|n| format!("{}{n:05}", wiped(part.letter, name))).collect();
            for keys in wipes.chunks(SEED_PUTS) {
                put_all(world, name, keys).await;
            }
            seeded.push(put_all(world, name, &[existing(part.letter, name)]).await);
        }
        let txn = TxnId { high: 7, low: number };
        let parts = parts.to_vec();
        Self {
            world: Arc::clone(world),
            name: name.into(),
            txn,
            parts,
            taken: BTreeMap::new(),
            beside: (0, 0),
            seeded,
            holding: None,
        }
    }

    /// Locks the first part that is not locked.
    pub async fn lock(&mut self) {
        let part = (0..self.parts.len()).find(|part| !self.taken.contains_key(part)).expect("something to lock");
        assert!(self.try_lock(part).await, "{}: part {part} is not locked", self.name);
    }

    /// Locks whatever is left.
    pub async fn lock_all(&mut self) {
        while self.taken.len() < self.parts.len() {
            self.lock().await;
        }
    }

    /// Locks all but the primary, which is to be locked at the same time: in the term of its leader of now.
    pub async fn lock_others(&mut self) {
        let token = self.lock_as_somebody_else(0).await.expect("nobody has locked it yet");
        self.beside = (token.region_id, token.term);
        for part in 1..self.parts.len() {
            assert!(self.try_lock(part).await, "{}: part {part} is not locked", self.name);
        }
    }

    /// Locks the primary after all others, in the term of its leader of now. A reader may have asked about the transaction
    /// in between and heard that there is none: then it begins again under another name, as every coordinator does.
    pub async fn lock_at_once(&mut self) {
        self.lock_others().await;
        while !self.try_lock(0).await {
            for part in 1..self.parts.len() {
                self.release(part).await;
            }
            self.taken.clear();
            self.txn.high += 2;
            self.lock_others().await;
        }
    }

    /// Locks a part. False: it is refused.
    pub async fn try_lock(&mut self, part: usize) -> bool {
        match self.world.ask_once(&self.anchor(part), self.lock_op(part, true), LIMIT).await {
            region_response::Result::Lock(LockResponse { conflict: false, token: Some(token), data, .. }) => {
                self.taken.insert(part, Taken { token, data });
                true
            }
            region_response::Result::Lock(LockResponse { conflict: true, .. }) => false,
            other => panic!("{}: part {part}: {other:?}", self.name),
        }
    }

    /// Whether a lock of the same keys by somebody else would have to wait now.
    pub async fn is_locked(&self, part: usize) -> bool {
        self.lock_as_somebody_else(part).await.is_none()
    }

    /// Somebody else tries to lock the same keys, and gives them up at once. `None`: he would have to wait.
    async fn lock_as_somebody_else(&self, part: usize) -> Option<LockToken> {
        let somebody_else = TxnId { high: self.txn.high + 1, ..self.txn };
        let region_request::Op::Lock(request) = self.lock_op(part, false) else { unreachable!() };
        let request = LockRequest { txn: Some(somebody_else), primary_region: 0, primary_term: 0, ..request };
        match self.world.ask_once(&self.anchor(part), region_request::Op::Lock(request), LIMIT).await {
            region_response::Result::Lock(lock) if lock.conflict => None,
            region_response::Result::Lock(lock) => {
                let release = region_request::Op::Release(ReleaseRequest { txn: Some(somebody_else) });
                self.world.ask_once(&self.anchor(part), release, LIMIT).await;
                lock.token
            }
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// Says that it is still at work. False: it is over.
    pub async fn hold(&self) -> bool {
        let op = region_request::Op::Hold(HoldRequest { txn: Some(self.txn) });
        match self.world.ask(&self.anchor(0), op, LIMIT).await {
            region_response::Result::Hold(hold) => !hold.over,
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// Goes on saying so beside whatever else it does.
    pub fn keep_holding(&mut self) {
        let (world, anchor) = (Arc::clone(&self.world), self.anchor(0));
        let op = region_request::Op::Hold(HoldRequest { txn: Some(self.txn) });
        self.holding = Some(tokio::spawn(async move {
            let mut turns = tokio::time::interval(HOLD_INTERVAL);
            loop {
                turns.tick().await;
                world.ask(&anchor, op.clone(), LIMIT).await;
            }
        }));
    }

    /// It is heard of no more.
    pub fn fall_silent(&mut self) {
        if let Some(holding) = self.holding.take() {
            holding.abort();
        }
    }

    /// Hands the decision to the primary; a refusal is given back.
    pub async fn try_decide(&self) -> Result<Told, region_response::Result> {
        match self.world.ask_once(&self.anchor(0), self.decide_op(), LIMIT).await {
            region_response::Result::Decide(DecideResponse { over: true, .. }) => Ok(Told::Over),
            region_response::Result::Decide(decide) => Ok(Told::Revision(self.world.sequencer.uses(decide.revision))),
            other => Err(other),
        }
    }

    /// Hands the decision to the primary, which must answer.
    pub async fn decide(&self) -> Told {
        let told = self.try_decide().await;
        told.unwrap_or_else(|other| panic!("{}: the decision is not answered: {other:?}", self.name))
    }

    /// Sends the decision and never looks at the answer.
    pub fn send_decision(&self) {
        let (world, anchor, op) = (Arc::clone(&self.world), self.anchor(0), self.decide_op());
        tokio::spawn(async move { world.send(&anchor, op, LIMIT).await });
    }

    /// Gives a part up.
    pub async fn release(&self, part: usize) {
        let op = region_request::Op::Release(ReleaseRequest { txn: Some(self.txn) });
        let answer = self.world.ask_once(&self.anchor(part), op, LIMIT).await;
        assert!(matches!(answer, region_response::Result::Release(_)), "{}: {answer:?}", self.name);
    }

    /// What the primary says became of it.
    pub async fn outcome(&self) -> outcome_response::Outcome {
        let question = OutcomeRequest { txn: Some(self.txn), read_at: 0 };
        match self.world.ask(&self.anchor(0), region_request::Op::Outcome(question), LIMIT).await {
            region_response::Result::Outcome(answer) => OutcomeResponse::outcome(&answer),
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// Sends everything once more that was sent in its life, all of it too late, as a network that repeats packets might.
    /// `revision`: what its shares were carried at, or would have been.
    pub async fn send_late_copies(&self, revision: i64) {
        for (part, share) in self.shares().into_iter().enumerate() {
            let commit = CommitRequest { txn: Some(self.txn), revision, share: Some(share) };
            let answer = self.world.ask_once(&self.anchor(part), region_request::Op::Commit(commit), LIMIT).await;
            assert!(matches!(answer, region_response::Result::Commit(_)), "{}: {answer:?}", self.name);
        }
        assert_eq!(self.decide().await, Told::Over, "{}: there is nothing to decide any more", self.name);
        for part in 0..self.parts.len() {
            let answer = self.world.ask_once(&self.anchor(part), self.lock_op(part, true), LIMIT).await;
            let region_response::Result::Lock(LockResponse { token: Some(token), .. }) = answer else {
                panic!("{}: {answer:?}", self.name)
            };
            assert_ne!(token, self.taken[&part].token, "{}: a token is given out once", self.name);
        }
        // The primary is locked again, under the same name; this decision is for the lock that is gone.
        assert_eq!(self.decide().await, Told::Over, "{}: decided with old tokens", self.name);
        for (part, share) in self.shares().into_iter().enumerate() {
            let commit = CommitRequest { txn: Some(self.txn), revision, share: Some(share) };
            let answer = self.world.ask_once(&self.anchor(part), region_request::Op::Commit(commit), LIMIT).await;
            assert!(matches!(answer, region_response::Result::Commit(_)), "{}: {answer:?}", self.name);
        }
    }

    /// An internal key by which the region of a part is found.
    pub fn anchor(&self, part: usize) -> Bytes {
        self.ranges(part)[0].start.clone()
    }

    fn ranges(&self, part: usize) -> Vec<KeyRange> {
        let Part { letter, wipes } = self.parts[part];
        let mut ranges: Vec<KeyRange> = [absent(letter, &self.name), existing(letter, &self.name)]
            .iter()
            .map(|key| KeyRange::single(user_key(key.as_bytes())))
            .collect();
        if wipes > 0 {
            ranges.push(self.wipe_range(part));
        }
        assert!(ranges.is_sorted_by(|one, next| one.end <= next.start), "locked in key order");
        ranges
    }

    fn wipe_range(&self, part: usize) -> KeyRange {
        let start = wiped(self.parts[part].letter, &self.name);
        KeyRange { start: user_key(start.as_bytes()), end: user_key(after(&start).as_bytes()) }
    }

    /// The request that locks a part.
    fn lock_op(&self, part: usize, wait: bool) -> region_request::Op {
        let ranges = self.ranges(part);
        let read = |(at, range): (usize, &KeyRange)| {
            let (start, end) = (range.start.clone(), range.end.clone());
            LockRead { start, end, count_only: at == 2 }
        };
        let reads = ranges.iter().enumerate().map(read).collect();
        let locked = |range: KeyRange| LockRange { start: range.start, end: range.end, exclusive: true };
        let ranges = ranges.into_iter().map(locked).collect();
        let (primary_region, primary_term) = if part == 0 { self.beside } else { (0, 0) };
        let (txn, primary, puts) = (Some(self.txn), self.anchor(0), true);
        let attaches = Vec::new();
        let lock = LockRequest { txn, primary, ranges, reads, wait, puts, primary_region, primary_term, attaches };
        region_request::Op::Lock(lock)
    }

    fn decide_op(&self) -> region_request::Op {
        region_request::Op::Decide(DecideRequest { txn: Some(self.txn), shares: self.shares() })
    }

    fn shares(&self) -> Vec<Share> {
        let mut sub = 0;
        let mut next = |count: usize| {
            sub += count as u32;
            sub - count as u32
        };
        self.taken
            .iter()
            .map(|(&part, taken)| {
                let ranges = self.ranges(part);
                assert_eq!(taken.data[0].count, 0, "{}: the key that does not exist", self.name);
                let before = &taken.data[1].kvs[0];
                let put = |key: &KeyRange, supersedes, create_revision, version| Change {
                    key: key.start.clone(),
                    supersedes,
                    create_revision,
                    version,
                    value: text("new"),
                    ..Default::default()
                };
                let changes = vec![
                    put(&ranges[0], 0, OWN, 1),
                    put(&ranges[1], before.mod_revision, before.create_revision, before.version + 1),
                ];
                let mut share = Share {
                    key: ranges[0].start.clone(),
                    token: Some(taken.token),
                    changes,
                    subs: vec![next(1), next(1)],
                    wipes: Vec::new(),
                };
                if let (Some(range), Some(wiped)) = (ranges.get(2), taken.data.get(2)) {
                    assert_eq!(wiped.count, self.parts[part].wipes as i64, "{}: keys to wipe", self.name);
                    let (start, end) = (range.start.clone(), range.end.clone());
                    share.wipes = vec![Wipe { start, end, first_sub: next(wiped.count as usize), lease: 0 }];
                }
                share
            })
            .collect()
    }
}

async fn put_all(world: &World, name: &str, keys: &[String]) -> i64 {
    let put = |key: &String| PutRequest { key: text(key), value: text("old"), ..Default::default() };
    let puts = keys.iter().map(|key| RequestOp { request: Some(request_op::Request::RequestPut(put(key))) });
    let txn = TxnRequest { success: puts.collect(), ..Default::default() };
    let anchor = user_key(keys[0].as_bytes());
    match world.ask_once(&anchor, region_request::Op::Txn(txn), LIMIT).await {
        region_response::Result::Txn(txn) => world.sequencer.uses(txn.header.expect("a header").revision),
        other => panic!("{name}: {other:?}"),
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.fall_silent();
    }
}

/// The key that exists before.
pub fn existing(letter: char, name: &str) -> String {
    format!("{letter}/{name}/existing")
}

/// The key that does not exist before.
pub fn absent(letter: char, name: &str) -> String {
    format!("{letter}/{name}/absent")
}

/// What the keys to be wiped begin with.
pub fn wiped(letter: char, name: &str) -> String {
    format!("{letter}/{name}/wiped/")
}

/// The first key that does not begin with `prefix`.
pub fn after(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    let last = end.pop().expect("a prefix");
    end.push(char::from(last as u8 + 1));
    end
}

/// Text in a message.
pub fn text(text: &str) -> Bytes {
    text.as_bytes().to_vec().into()
}
