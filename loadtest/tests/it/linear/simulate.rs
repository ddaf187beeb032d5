//! Clients and a small server in virtual time. The server does each request at some moment between its sending and its
//! answer, and keeps every version. It can be told to commit one fault.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use braid_loadtest::history::Moment;
use braid_loadtest::linear::history::{History, Op, Outcome, Request, Response};
use braid_loadtest::linear::missing;
use braid_loadtest::linear::state::State;
use braid_loadtest::linear::workload::{Generator, Keys};
use braid_loadtest::random::Random;
use braid_proto::etcd::etcdserverpb::RangeRequest;
use braid_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use bytes::Bytes;

/// Revision of the empty server.
pub const BASE: i64 = 1;

/// What the server does wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A read shows an older state under the present revision.
    StaleRead,
    /// A read shows a state, and names its revision, that is older than what was acknowledged.
    OldHeader,
    /// An acknowledged put is not done.
    LostWrite,
    /// An acknowledged delete is not done.
    LostDelete,
    /// Two requests take the same revision.
    RepeatedRevision,
    /// A request takes a revision below one that was acknowledged.
    LateRevision,
    /// A read shows half of a transaction's writes.
    SplitRead,
    /// A transaction of unknown outcome does half of its writes.
    SplitWrite,
    /// A put is done twice.
    RepeatedWrite,
    /// A read shows a value that nobody put.
    Phantom,
    /// A read shows a change above the revision that it names.
    FutureRead,
    /// A refused put is done all the same.
    RefusedWrite,
    /// A transaction succeeds though a compare does not hold.
    WrongCompare,
    /// A read at an old revision shows the present.
    ForgottenHistory,
    /// A transfer adds money.
    Money,
}

/// How to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    pub clients: u32,
    pub requests: usize,
    /// Of a thousand requests, so many are not answered.
    pub unanswered: u64,
    /// Of a thousand changes, so many leave a hole before them.
    pub holes: u64,
    /// Prefixes and keys under each.
    pub keys: (Vec<String>, u64),
    /// Reads of the whole at old revisions at the end.
    pub old_reads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let prefixes = ["a/", "c/", "e/", "g/", "i/", "k/"].map(str::to_owned).to_vec();
        Self { clients: 8, requests: 400, unanswered: 30, holes: 5, keys: (prefixes, 3), old_reads: 10 }
    }
}

/// A history and whether the fault was committed.
pub struct Simulated {
    pub history: History,
    pub server: Server,
    pub committed: bool,
}

/// The server.
#[derive(Debug, Clone)]
pub struct Server {
    pub state: State,
    pub revision: i64,
    versions: BTreeMap<i64, State>,
}

impl Server {
    pub fn new() -> Self {
        Self { state: State::default(), revision: BASE, versions: BTreeMap::from([(BASE, State::default())]) }
    }

    /// The state after a revision.
    pub fn at(&self, revision: i64) -> State {
        self.versions.range(..=revision).next_back().map(|(_, state)| state.clone()).unwrap_or_default()
    }

    /// Does a request rightly.
    pub fn handle(&mut self, request: &Request) -> (i64, Response) {
        if let Request::Range(range) = request
            && range.revision > 0
        {
            return (self.revision, self.at(range.revision).apply(request, 0, None).0);
        }
        let (response, _) = self.state.apply(request, self.revision + 1, None);
        if response.mutated() {
            self.revision += 1;
            self.versions.insert(self.revision, self.state.clone());
        }
        (self.revision, response)
    }

    /// Leaves a hole of so many revisions.
    pub fn skip(&mut self, revisions: i64) {
        self.revision += revisions;
    }

    /// Reads everything that a history lacks.
    pub fn complete(&self, history: &mut History) {
        loop {
            let missing = missing(history).expect("a history of ours");
            if missing.is_empty() {
                return;
            }
            for revision in missing.revisions {
                history.snapshots.insert(revision, self.at(revision).records().cloned().collect());
            }
        }
    }

    fn replace(&mut self, state: State) {
        self.versions.insert(self.revision, state.clone());
        self.state = state;
    }
}

/// Runs a simulation; `fault` is committed at the first occasion after a third of the requests.
pub fn simulate(seed: u64, options: &Options, fault: Option<Fault>) -> Simulated {
    let keys = Keys::new(&options.keys.0, options.keys.1).expect("good keys");
    let mut simulation = Simulation {
        random: Random::new(seed, 77),
        server: Server::new(),
        clients: (0..options.clients).map(|client| Generator::new(keys.clone(), seed, client, BASE)).collect(),
        ops: Vec::new(),
        doomed: Vec::new(),
        queue: BinaryHeap::new(),
        clock: 0,
        fault,
        committed: false,
        acknowledged: BASE,
        options,
    };
    simulation.open(&keys);
    for client in 0..options.clients {
        simulation.schedule(0, Event::Send(client));
    }
    simulation.run();
    simulation.end(&keys)
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Send(u32),
    /// The server does the request.
    Do(usize),
    /// The client has its answer, or gives up.
    End(usize),
}

struct Simulation<'a> {
    random: Random,
    server: Server,
    clients: Vec<Generator>,
    ops: Vec<Op>,
    /// What will become of each request whose answer will not come.
    doomed: Vec<Option<Outcome>>,
    queue: BinaryHeap<Reverse<(u64, Event)>>,
    clock: u64,
    fault: Option<Fault>,
    committed: bool,
    /// Newest revision that a client knows.
    acknowledged: i64,
    options: &'a Options,
}

impl Simulation<'_> {
    /// Moments are unique, so that every order of two of them is certain.
    fn schedule(&mut self, after: u64, event: Event) {
        let at = (self.clock + 1 + after) << 20 | (self.random.draw() & 0xf_ffff);
        self.queue.push(Reverse((at, event)));
    }

    fn open(&mut self, keys: &Keys) {
        let request = keys.open_accounts();
        let (revision, response) = self.server.handle(&request);
        let (sent, ended) = (Moment(1), Moment(2));
        let outcome = Outcome::Answered { revision, response };
        self.ops.push(Op { client: self.options.clients, number: 0, sent, ended, request, outcome });
        self.doomed.push(None);
        self.clock = 2;
    }

    fn run(&mut self) {
        let mut last = 2;
        while let Some(Reverse((at, event))) = self.queue.pop() {
            last = at.max(last + 1);
            self.clock = last >> 20;
            match event {
                Event::Send(client) if self.ops.len() < self.options.requests => self.send(client, last),
                Event::Send(_) => {}
                Event::Do(op) => self.carry_out(op),
                Event::End(op) => self.answer(op, last),
            }
        }
        self.clock = (last >> 20) + 1;
    }

    fn send(&mut self, client: u32, now: u64) {
        let (number, request) = self.clients[client as usize].draw();
        let at = self.ops.len();
        let (sent, ended) = (Moment(now), Moment(u64::MAX));
        let doomed = if self.random.below(1000) >= self.options.unanswered {
            None
        } else if self.random.below(5) == 0 {
            Some(Outcome::Refused("etcdserver: no".to_owned()))
        } else {
            Some(Outcome::Unknown)
        };
        self.ops.push(Op { client, number, sent, ended, request, outcome: Outcome::Unknown });
        let (first, second) = (self.random.below(20), self.random.below(20));
        match &doomed {
            None => self.schedule(first, Event::Do(at)),
            Some(Outcome::Refused(_)) if self.due(Fault::RefusedWrite) => self.schedule(first, Event::Do(at)),
            // An unknown request may be done at once, long after its client gave up, or never.
            Some(Outcome::Unknown) if self.random.below(3) > 0 => {
                let late = self.random.below(100);
                self.schedule(late, Event::Do(at));
            }
            Some(_) => {}
        }
        if doomed.is_some() {
            self.schedule(first + second, Event::End(at));
        }
        self.doomed.push(doomed);
    }

    /// Whether a fault should be committed now, if there is an occasion.
    fn due(&self, fault: Fault) -> bool {
        self.fault == Some(fault) && !self.committed && self.ops.len() > self.options.requests / 3
    }

    fn carry_out(&mut self, at: usize) {
        let request = self.ops[at].request.clone();
        let hole = self.options.holes > 0 && request.may_mutate() && self.random.below(1000) < self.options.holes;
        if hole {
            self.server.revision += 1;
        }
        let refused = matches!(self.doomed[at], Some(Outcome::Refused(_)));
        let done = match self.faulty(at, &request) {
            Some(done) => done,
            // It was to be done all the same, but another one was already.
            None if refused => return,
            None => self.server.handle(&request),
        };
        if self.doomed[at].is_none() {
            self.ops[at].outcome = Outcome::Answered { revision: done.0, response: done.1 };
            let later = self.random.below(20);
            self.schedule(later, Event::End(at));
        }
    }

    fn answer(&mut self, at: usize, now: u64) {
        self.ops[at].ended = Moment(now);
        if let Some(outcome) = self.doomed[at].clone() {
            self.ops[at].outcome = outcome;
        }
        let op = self.ops[at].clone();
        if let Outcome::Answered { revision, response } = &op.outcome {
            self.acknowledged = self.acknowledged.max(*revision);
            self.clients[op.client as usize].learn(&op.request, response, *revision);
        }
        let pause = self.random.below(5);
        self.schedule(pause, Event::Send(op.client));
    }

    fn end(mut self, keys: &Keys) -> Simulated {
        let mut history = History { base: BASE, accounts: Some(keys.accounts()), ..History::default() };
        // Reads without an answer say nothing.
        self.ops.retain(|op| op.request.may_mutate() || op.outcome != Outcome::Unknown);
        history.ops = self.ops;
        for number in 0..=self.options.old_reads {
            let back = self.random.below((self.server.revision - BASE + 1).unsigned_abs()).cast_signed();
            let revision = if number == 0 { 0 } else { self.server.revision - back };
            let request = everything(revision);
            let (revision, response) = self.server.handle(&request);
            let now = (self.clock << 20) + 4 * number as u64;
            history.ops.push(Op {
                client: self.options.clients,
                number: 1 + number as u32,
                sent: Moment(now + 1),
                ended: Moment(now + 2),
                request,
                outcome: Outcome::Answered { revision, response },
            });
        }
        self.server.complete(&mut history);
        Simulated { history, server: self.server, committed: self.committed }
    }

    /// Commits the fault if it is due and the request gives the occasion.
    fn faulty(&mut self, at: usize, request: &Request) -> Option<(i64, Response)> {
        let fault = self.fault.filter(|&fault| self.due(fault))?;
        let answer = self.commit(fault, at, request)?;
        self.committed = true;
        Some(answer)
    }

    fn commit(&mut self, fault: Fault, at: usize, request: &Request) -> Option<(i64, Response)> {
        let answered = self.doomed[at].is_none();
        let server = &mut self.server;
        let mut right = server.clone();
        let (revision, response) = right.handle(request);
        let plain_read = matches!(request, Request::Range(range) if range.revision == 0 && !range.count_only);
        let floor_of_op = self.ops[at].sent;
        match fault {
            Fault::StaleRead if plain_read && answered => {
                let old = (BASE..revision).rev().take(5).map(|old| server.at(old).apply(request, 0, None).0);
                Some((revision, old.into_iter().find(|old| *old != response)?))
            }
            Fault::OldHeader if plain_read && answered => {
                let acknowledged = self.ops.iter().filter(|op| op.ended < floor_of_op).filter_map(Op::shown).max()?;
                let old = acknowledged - 2;
                Some((old, server.at(old).apply(request, 0, None).0))
            }
            Fault::LostWrite if matches!(request, Request::Put(_)) && answered => {
                server.revision += 1;
                // Whoever reads next sees nothing of it. Without a reader nobody could tell.
                let state = server.state.clone();
                self.plant_read(state, revision);
                Some((revision, response))
            }
            Fault::LostDelete if matches!(request, Request::Delete(_)) && response.mutated() && answered => {
                server.revision += 1;
                let state = server.state.clone();
                self.plant_read(state, revision);
                Some((revision, response))
            }
            Fault::RepeatedRevision if matches!(request, Request::Put(_)) && answered => {
                server.revision -= 1;
                Some(server.handle(request))
            }
            Fault::LateRevision if matches!(request, Request::Put(_)) && answered => {
                // The highest that was known when the request was sent, plus its own: two below.
                let known = self.ops.iter().filter(|op| op.ended < floor_of_op).filter_map(Op::shown).max()?;
                let free = (BASE + 1..known).rev().find(|revision| !server.versions.contains_key(revision))?;
                let response = server.state.apply(request, free, None).0;
                let state = server.state.clone();
                server.replace(state);
                Some((free, response))
            }
            Fault::SplitRead if answered && response.mutated() => {
                let mut before = server.state.clone();
                let txn = writes_of(request)?;
                let answer = server.handle(request);
                before.apply(&half(&txn), answer.0, Some(true));
                // Who reads next sees just a half; the history is right again afterwards.
                self.plant_read(before, answer.0);
                Some(answer)
            }
            Fault::SplitWrite if !answered && response.mutated() => {
                let txn = writes_of(request)?;
                server.revision += 1;
                let revision = server.revision;
                let mut state = server.state.clone();
                state.apply(&half(&txn), revision, Some(true));
                server.replace(state);
                Some((revision, response))
            }
            Fault::RepeatedWrite if matches!(request, Request::Put(_)) && answered => {
                let answer = server.handle(request);
                server.handle(request);
                Some(answer)
            }
            Fault::Phantom if answered => {
                let Response::Range(mut range) = response else { return None };
                range.kvs.iter_mut().find(|record| !record.value.contains(&b'='))?.value =
                    Bytes::from_static(b"strange");
                Some((revision, Response::Range(range)))
            }
            Fault::FutureRead if plain_read && answered && server.revision - 1 > self.acknowledged => {
                let named = server.revision - 1;
                shows_above(&response, named).then_some((named, response))
            }
            Fault::RefusedWrite if matches!(self.doomed[at], Some(Outcome::Refused(_))) && response.mutated() => {
                (!request.puts().is_empty()).then(|| server.handle(request))
            }
            Fault::WrongCompare if answered => {
                let (Request::Txn(txn), Response::Txn(failed)) = (request, &response) else { return None };
                if failed.succeeded || request.puts().is_empty() {
                    return None;
                }
                let mut certain = txn.clone();
                certain.compare.clear();
                Some(server.handle(&Request::Txn(certain)))
            }
            Fault::ForgottenHistory if answered => {
                let Request::Range(range) = request else { return None };
                let now = Request::Range(RangeRequest { revision: 0, ..range.clone() });
                let (_, shown) = server.clone().handle(&now);
                (range.revision > 0 && shows_above(&shown, range.revision)).then_some((revision, shown))
            }
            Fault::Money if answered => {
                let Request::Txn(txn) = request else { return None };
                let mut txn = txn.clone();
                let put = txn.success.iter_mut().find_map(|op| match &mut op.request {
                    Some(OpRequest::RequestPut(put)) if put.value.contains(&b'=') => Some(put),
                    _ => None,
                })?;
                put.value = [&put.value[..], b"0"].concat().into();
                // The client really asked for that, so nothing but the sum is wrong.
                let request = Request::Txn(txn);
                let answer = server.handle(&request);
                self.ops[at].request = request;
                answer.1.mutated().then_some(answer)
            }
            _ => None,
        }
    }

    /// Makes an answered read of everything that shows `state` at `revision`.
    fn plant_read(&mut self, mut state: State, revision: i64) {
        let request = everything(0);
        let response = state.apply(&request, 0, None).0;
        let number = u32::try_from(self.ops.len()).unwrap();
        let (sent, ended) = (Moment(3), Moment(u64::MAX - 1));
        let outcome = Outcome::Answered { revision, response };
        self.ops.push(Op { client: self.options.clients + 1, number, sent, ended, request, outcome });
        self.doomed.push(None);
    }
}

/// Whether a record in it is newer than a revision.
fn shows_above(response: &Response, revision: i64) -> bool {
    response.records().iter().any(|record| record.mod_revision > revision)
}

/// A transaction of at least two puts, compares aside.
fn writes_of(request: &Request) -> Option<Request> {
    (matches!(request, Request::Txn(_)) && request.puts().len() > 1).then(|| request.clone())
}

/// The transaction without its last put.
fn half(request: &Request) -> Request {
    let Request::Txn(mut txn) = request.clone() else { panic!("no transaction") };
    let put = txn.success.iter().rposition(|op| matches!(op.request, Some(OpRequest::RequestPut(_))));
    txn.success.remove(put.expect("it has puts"));
    Request::Txn(txn)
}

/// A range over all keys.
pub fn everything(revision: i64) -> Request {
    let all = Bytes::from_static(b"\0");
    Request::Range(RangeRequest { key: all.clone(), range_end: all, revision, ..RangeRequest::default() })
}
