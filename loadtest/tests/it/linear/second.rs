//! A second opinion: `stateright`'s tester of linearizability searches for an order and knows nothing of the one that
//! revisions claim. On small histories, right ones and damaged ones, both must come to the same verdict.
//!
//! Both rest on the same model of what one request does; what is compared is the judgement of order, real time and unknown
//! outcomes. The model itself is compared with real etcd (see `differential`, and `loadtest serializability`).

use std::collections::BTreeMap;

use braid_loadtest::history::Moment;
use braid_loadtest::linear::check;
use braid_loadtest::linear::history::{History, Op, Outcome, Request, Response};
use braid_loadtest::random::Random;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::simulate::{Options, Server, everything, simulate};

/// Histories of each kind.
const HISTORIES: u64 = 1_000;

/// The KV as one object whose answers carry revisions.
#[derive(Clone)]
struct Object(Server);

/// A revision and an answer; of a read afterwards only the answer counts.
#[derive(Debug, Clone)]
struct Answer {
    revision: Option<i64>,
    response: Response,
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        let revisions = self.revision.zip(other.revision);
        revisions.is_none_or(|(a, b)| a == b) && self.response == other.response
    }
}

impl SequentialSpec for Object {
    type Op = Request;
    type Ret = Answer;

    fn invoke(&mut self, request: &Request) -> Answer {
        let (revision, response) = self.0.handle(request);
        // What is not there yet cannot be read: no answer is equal to this one.
        let future = matches!(request, Request::Range(range) if range.revision > revision);
        Answer { revision: Some(if future { -1 } else { revision }), response }
    }
}

/// What the tester says.
fn consistent(history: &History) -> bool {
    let mut events = Vec::new();
    let mut threads = BTreeMap::<u32, usize>::new();
    let last = history.ops.iter().map(|op| op.ended).max().unwrap_or(Moment(0));
    let mut ops: Vec<&Op> = history.ops.iter().filter(|op| !matches!(op.outcome, Outcome::Refused(_))).collect();
    ops.sort_by_key(|op| op.sent);
    for op in ops {
        // A request without an answer occupies its thread for ever, so the client goes on as another one.
        let epoch = threads.entry(op.client).or_default();
        let thread = (op.client, *epoch);
        events.push((op.sent, thread, op.request.clone(), None));
        match &op.outcome {
            Outcome::Answered { revision, response } => {
                let answer = Answer { revision: Some(*revision), response: response.clone() };
                events.push((op.ended, thread, op.request.clone(), Some(answer)));
            }
            _ => *epoch += 1,
        }
    }
    events.sort_by_key(|(at, ..)| *at);
    let mut at = last;
    for (revision, records) in &history.snapshots {
        let request = everything(*revision);
        let count = i64::try_from(records.len()).expect("few");
        let range =
            braid_proto::etcd::etcdserverpb::RangeResponse { kvs: records.clone(), count, ..Default::default() };
        let thread = (u32::MAX, 0);
        at = Moment(at.0 + 1);
        events.push((at, thread, request.clone(), None));
        events.push((at, thread, request, Some(Answer { revision: None, response: Response::Range(range) })));
    }
    let mut tester = LinearizabilityTester::new(Object(Server::new()));
    for (_, thread, request, answer) in events {
        let taken = match answer {
            None => tester.on_invoke(thread, request).map(drop),
            Some(answer) => tester.on_return(thread, answer).map(drop),
        };
        taken.expect("requests and answers alternate");
    }
    tester.is_consistent()
}

/// Few clients and keys, so that a search ends soon.
fn small(unanswered: u64) -> Options {
    let keys = (vec!["a/".to_owned(), "b/".to_owned()], 2);
    Options { clients: 3, requests: 10, unanswered, holes: 0, keys, old_reads: 1 }
}

/// Changes one thing in a history.
fn damage(history: &mut History, random: &mut Random) {
    let at = random.below(history.ops.len() as u64) as usize;
    let other = random.below(history.ops.len() as u64) as usize;
    let shift = (1 + random.below(40)) << 20;
    let stolen = history.ops[other].outcome.clone();
    let op = &mut history.ops[at];
    match random.below(6) {
        // It was sent later than the client says, or ended earlier: orders become certain that were not.
        0 => op.sent = Moment((op.sent.0 + shift).min(op.ended.0)),
        1 => op.ended = Moment(op.ended.0.saturating_sub(shift).max(op.sent.0)),
        // It is moved as a whole.
        2 => {
            (op.sent, op.ended) = (Moment(op.sent.0 + shift), Moment(op.ended.0 + shift));
        }
        3 => {
            if let Outcome::Answered { revision, .. } = &mut op.outcome {
                *revision -= 1;
            }
        }
        4 => {
            if let Outcome::Answered { response: Response::Range(range), .. } = &mut op.outcome {
                range.kvs.pop();
            }
        }
        _ => {
            // Another answer to the same kind of request.
            if let (Outcome::Answered { response: a, .. }, Outcome::Answered { response: b, .. }) =
                (&op.outcome, &stolen)
                && std::mem::discriminant(a) == std::mem::discriminant(b)
            {
                op.outcome = stolen;
            }
        }
    }
}

/// Compares the verdicts on many histories; gives how many were right and how many wrong.
fn compare(unanswered: u64, damages: u64) -> [u64; 2] {
    let mut verdicts = [0, 0];
    for seed in 0..HISTORIES {
        let mut history = simulate(seed, &small(unanswered), None);
        let server = history.server.clone();
        let history = &mut history.history;
        history.accounts = None;
        history.snapshots.clear();
        let mut random = Random::new(seed, 99);
        (0..damages).for_each(|_| damage(history, &mut random));
        // Clients do one thing at a time; a damage that broke this is no history.
        if !alternates(history) {
            continue;
        }
        server.complete(history);
        let verdict = check(history).expect("it can be judged");
        // The tester's object never leaves a hole. What happened unseen counts as one here.
        if verdict.holes > 0 {
            continue;
        }
        let right = verdict.violations.is_empty();
        assert_eq!(
            consistent(history),
            right,
            "seed {seed}: {:?}",
            verdict.violations.first().map(ToString::to_string)
        );
        verdicts[usize::from(!right)] += 1;
    }
    println!("unanswered {unanswered}, damages {damages}: {} right, {} wrong", verdicts[0], verdicts[1]);
    verdicts
}

fn alternates(history: &History) -> bool {
    let mut ops: Vec<&Op> = history.ops.iter().collect();
    ops.sort_by_key(|op| (op.client, op.sent));
    ops.windows(2).all(|pair| pair[0].client != pair[1].client || pair[0].ended < pair[1].sent)
}

#[test]
fn a_search_for_an_order_agrees_on_right_histories() {
    let [right, wrong] = compare(0, 0);
    assert!(right > HISTORIES * 9 / 10 && wrong == 0, "{right} right, {wrong} wrong");
    let [right, wrong] = compare(200, 0);
    assert!(right > HISTORIES / 2 && wrong == 0, "{right} right, {wrong} wrong");
}

#[test]
fn a_search_for_an_order_agrees_on_damaged_histories() {
    let [right, wrong] = compare(0, 2);
    assert!(right > HISTORIES / 10 && wrong > HISTORIES / 10, "{right} right, {wrong} wrong");
    let [right, wrong] = compare(200, 2);
    assert!(right > HISTORIES / 10 && wrong > HISTORIES / 10, "{right} right, {wrong} wrong");
}
