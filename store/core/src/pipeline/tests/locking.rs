//! One region's side of transactions over several regions (rules M2 to M8), as scripts.

use braid_proto::pb::{
    Change, CommitRequest, DecideRequest, LockRange, LockRead, LockRequest, LockToken, LockedData, Share, StoredLock,
    TxnId, Wipe,
};

use super::*;
use crate::pipeline::multi::WIPE_KEYS;
use crate::placeholder::OWN;

const M: TxnId = TxnId { high: 1, low: 1 };
const OTHER: TxnId = TxnId { high: 1, low: 2 };

fn key(key: &str) -> Bytes {
    user_key(key.as_bytes())
}

fn exclusive(keys: &[&str]) -> Vec<LockRange> {
    let single = |k: &&str| KeyRange::single(key(k));
    let range = |range: KeyRange| LockRange { start: range.start, end: range.end, exclusive: true };
    keys.iter().map(single).map(range).collect()
}

/// Locks `keys` for `txn`, whose primary is `primary`, and reads them.
fn lock(txn: TxnId, primary: &str, keys: &[&str], wait: bool) -> Work {
    let ranges = exclusive(keys);
    let read = |range: &LockRange| LockRead { start: range.start.clone(), end: range.end.clone(), count_only: false };
    let reads = ranges.iter().map(read).collect();
    Work::Lock(LockRequest {
        txn: Some(txn),
        primary: key(primary),
        ranges,
        reads,
        wait,
        puts: true,
        ..Default::default()
    })
}

fn change(k: &str, value: &str, supersedes: i64) -> Change {
    let (create_revision, version) = if supersedes == 0 { (OWN, 1) } else { (supersedes, 2) };
    Change { key: key(k), supersedes, create_revision, version, value: value.to_owned().into(), ..Default::default() }
}

fn share(token: LockToken, k: &str, changes: Vec<Change>, subs: Vec<u32>) -> Share {
    Share { key: key(k), token: Some(token), changes, subs, wipes: Vec::new() }
}

fn decide(shares: Vec<Share>) -> Work {
    Work::Decide(DecideRequest { txn: Some(M), shares })
}

fn commit(revision: i64, share: Share) -> Work {
    Work::Commit(CommitRequest { txn: Some(M), revision, share: Some(share) })
}

const ELSEWHERE: LockToken = LockToken { region_id: 9, term: 3, seq: 77 };

impl Script {
    /// Proposes, applies and answers whatever needs no number.
    fn settle(&mut self) {
        while self.effects.iter().any(|effect| matches!(effect, Effect::Propose { .. })) {
            let proposed = self.proposed();
            self.apply(proposed);
        }
    }

    /// A lock that is taken at once: its token and what lay under it.
    fn locked(&mut self, id: u32, work: Work) -> (LockToken, Vec<LockedData>) {
        self.work(id, work);
        assert!(self.asks_nothing(), "a lock takes no number");
        self.settle();
        match self.lock_answer(id) {
            Some(answer) => (answer.token.expect("a token"), answer.data),
            None => panic!("no answer for {id}: {:?}", self.effects),
        }
    }

    fn lock_answer(&mut self, id: u32) -> Option<braid_proto::pb::LockResponse> {
        let position = self.effects.iter().position(|effect| match effect {
            Effect::Reply { to, answer } => {
                *to == id && matches!(answer.result, Some(region_response::Result::Lock(_)))
            }
            _ => false,
        })?;
        match self.effects.remove(position) {
            Effect::Reply { answer: RegionResponse { result: Some(region_response::Result::Lock(lock)) }, .. } => {
                Some(lock)
            }
            _ => unreachable!(),
        }
    }

    /// Numbers the next batch from `base` on and applies it.
    fn number(&mut self, base: i64) {
        let (batch, _) = self.asked();
        self.numbered(batch, base);
        self.settle();
    }

    fn value(&self, k: &str) -> Option<(String, i64)> {
        self.applied.0.get(&key(k)).map(|record| (text(&record.value).to_owned(), record.mod_revision))
    }

    fn rows(&self) -> Vec<&StoredLock> {
        self.applied.1.values().collect()
    }

    /// What the region must still do for others.
    fn carried(&mut self) -> Vec<(LockToken, i64, Share)> {
        let mut found = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Carry { token, revision, share, .. } => found.push((token, revision, share)),
                other => self.effects.push(other),
            }
        }
        found
    }

    fn tick(&mut self) {
        self.pipeline.tick(&mut self.effects);
        self.pump();
    }

    fn asks(&mut self) -> Vec<(LockToken, Bytes)> {
        let mut found = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Ask { token, primary, .. } => found.push((token, primary)),
                other => self.effects.push(other),
            }
        }
        found
    }

    fn blocker(&self, k: &str, revision: i64) -> Option<Blocker> {
        let in_flight = self.pipeline.in_flight(&single(k), revision).map(Blocker::InFlight);
        in_flight.or_else(|| self.pipeline.locked(&single(k), revision, false))
    }
}

/// M3, M4: the lock is the record, the decision takes the number, and the record goes when every share is done.
#[test]
fn a_primary_decides_carries_and_forgets() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, data) = script.locked(1, lock(M, "a", &["a"], true));
    assert_eq!(data[0].kvs[0].mod_revision, 5);
    assert_eq!(script.rows().len(), 1);
    let own = share(token, "a", vec![change("a", "new", 5)], vec![1]);
    let other = share(ELSEWHERE, "z", vec![change("z", "new", 0)], vec![0]);
    script.work(2, decide(vec![own, other]));
    script.number(40);
    assert_eq!(script.answers(), ["2 Decide(DecideResponse { over: false, revision: 41 })"]);
    assert_eq!(script.value("a"), Some(("new".to_owned(), 41)));
    let carried = script.carried();
    let [(record, 41, share)] = &carried[..] else { panic!("one share is carried: {carried:?}") };
    assert_eq!((*record, share.token), (token, Some(ELSEWHERE)));
    assert_eq!(share.changes[0].create_revision, 41, "the placeholder is filled in");
    assert_eq!(script.rows()[0].revision, 41, "the record stays until the share is done");
    script.pipeline.carried(token, ELSEWHERE);
    script.pump();
    script.settle();
    assert_eq!(script.rows().len(), 1, "one record is not worth an entry");
    script.tick();
    script.settle();
    assert_eq!(script.rows().len(), 0);
    assert!(!script.pipeline.has_locks());
}

/// H8 without waiting for the primary: once somebody was told that there is no record, none comes any more; and one that
/// was meant for another term or region does not come either.
#[test]
fn a_primary_that_was_denied_is_not_locked_any_more() {
    let beside = |txn, region, term| match lock(txn, "a", &["a"], false) {
        Work::Lock(request) => Work::Lock(LockRequest { primary_region: region, primary_term: term, ..request }),
        _ => unreachable!(),
    };
    let mut script = Script::leading(10).with_key("a", "old", 5);
    assert_eq!(script.pipeline.outcome(M), Outcome::Over);
    script.work(1, beside(M, 7, 5));
    assert!(script.lock_answer(1).expect("an answer").conflict);
    script.work(2, beside(OTHER, 7, 4));
    assert!(script.lock_answer(2).expect("an answer").conflict, "another term may have denied it");
    script.work(3, beside(OTHER, 8, 5));
    assert!(script.lock_answer(3).expect("an answer").conflict, "so may another region");
    script.locked(4, beside(OTHER, 7, 5));
    assert_eq!(script.pipeline.outcome(OTHER), Outcome::Later);
}

/// M2, H5: whoever reads or writes a locked key waits before it asks for a number; others pass.
#[test]
fn evaluations_wait_for_locks_in_order_of_arrival() {
    let mut script = Script::leading(10).with_key("a", "old", 5).with_key("b", "old", 6);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    script.submit(2, guarded_put("a", compare::CompareResult::Equal, 5));
    script.submit(3, put("a", "third"));
    assert!(script.asks_nothing(), "both wait for the lock");
    script.submit(4, put("b", "passes"));
    script.number(20);
    assert_eq!(script.answers(), ["4 put @21"]);
    script.work(5, commit(30, share(token, "a", vec![change("a", "by M", 5)], vec![0])));
    script.settle();
    script.number(30);
    assert_eq!(
        script.answers(),
        ["5 Commit(CommitResponse)", "2 judged txn false @30", "3 put @31"],
        "the compare sees what M wrote; the put comes after it"
    );
    assert_eq!(script.value("a"), Some(("third".to_owned(), 31)));
}

/// H6: a lock never overtakes what was evaluated before it.
#[test]
fn a_lock_is_proposed_behind_everything_that_came_before_it() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    script.submit(1, put("a", "first"));
    let (batch, _) = script.asked();
    script.work(2, lock(M, "a", &["a"], true));
    assert!(!script.effects.iter().any(|effect| matches!(effect, Effect::Propose { .. })));
    script.numbered(batch, 50);
    script.settle();
    let answer = script.lock_answer(2).expect("locked");
    assert_eq!(answer.data[0].kvs[0].mod_revision, 51, "its answer shows the put, with its number");
}

/// M5, H9: a late copy of a lock request makes another lock; a decision for the first one does not touch it.
#[test]
fn decisions_obey_tokens() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (first, _) = script.locked(1, lock(M, "a", &["a"], true));
    script.work(2, Work::Release(M));
    script.settle();
    let (second, _) = script.locked(3, lock(M, "a", &["a"], true));
    assert_ne!(first, second);
    script.work(4, decide(vec![share(first, "a", vec![change("a", "new", 5)], vec![0])]));
    script.number(40);
    script.work(5, commit(60, share(first, "a", vec![change("a", "new", 5)], vec![0])));
    assert_eq!(
        script.answers(),
        [
            "2 Release(ReleaseResponse)",
            "4 judged Decide(DecideResponse { over: true, revision: 0 })",
            "5 judged Commit(CommitResponse)"
        ]
    );
    assert_eq!(script.value("a"), Some(("old".to_owned(), 5)));
    assert_eq!(script.rows().len(), 1, "the second lock stands");
}

/// M6: that a share was done before only a leader in office can say: one that was deposed does not know of newer locks.
#[test]
fn a_share_without_its_lock_is_answered_by_a_leader_in_office() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    script.work(1, commit(60, share(ELSEWHERE, "a", vec![change("a", "new", 5)], vec![0])));
    assert_eq!(script.answers(), ["1 judged Commit(CommitResponse)"]);
    assert_eq!(script.value("a"), Some(("old".to_owned(), 5)));
}

/// M6: the record stays until each share is done, however often one of them is said to be.
#[test]
fn every_share_counts_once() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    let elsewhere_too = LockToken { seq: 78, ..ELSEWHERE };
    let other = share(ELSEWHERE, "y", vec![change("y", "new", 0)], vec![0]);
    let third = share(elsewhere_too, "z", vec![change("z", "new", 0)], vec![0]);
    script.work(2, decide(vec![share(token, "a", vec![change("a", "new", 5)], vec![1]), other, third]));
    script.number(40);
    for _ in 0..3 {
        script.pipeline.carried(token, ELSEWHERE);
        script.pump();
        script.settle();
        assert_eq!(script.rows().len(), 1, "one of two is done");
    }
    script.pipeline.carried(token, elsewhere_too);
    script.tick();
    script.settle();
    assert!(!script.pipeline.has_locks());
}

/// M5, H9: a late copy of the primary's lock is not asked what became of the transaction, in whatever order a new leader
/// finds the rows.
#[test]
fn the_oldest_record_knows() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    let other = share(ELSEWHERE, "z", vec![change("z", "new", 0)], vec![0]);
    script.work(2, decide(vec![share(token, "a", vec![change("a", "new", 5)], vec![1]), other]));
    script.number(40);
    script.locked(3, lock(M, "a", &["a"], true));
    assert_eq!(script.pipeline.outcome(M), Outcome::Committed(41));
    for reversed in [false, true] {
        let mut rows: Vec<StoredLock> = script.rows().into_iter().cloned().collect();
        if reversed {
            rows.reverse();
        }
        script.pipeline.on_leader(Term(7), rows, Vec::new(), &mut script.effects);
        assert_eq!(script.pipeline.outcome(M), Outcome::Committed(41), "reversed: {reversed}");
    }
}

/// M4: a late copy of a decision takes no second number, and hears the first one while the record stands.
#[test]
fn a_decision_that_comes_twice_is_told_what_it_was() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    let shares = || {
        let own = share(token, "a", vec![change("a", "new", 5)], vec![1]);
        vec![own, share(ELSEWHERE, "z", vec![change("z", "new", 0)], vec![0])]
    };
    script.work(2, decide(shares()));
    script.work(3, decide(shares()));
    let answers = script.answers();
    assert!(answers.len() == 1 && answers[0].contains("being decided"), "the first one has no number yet: {answers:?}");
    script.number(40);
    assert_eq!(script.answers(), ["2 Decide(DecideResponse { over: false, revision: 41 })"]);
    script.work(4, decide(shares()));
    script.number(50);
    assert_eq!(script.answers(), ["4 judged Decide(DecideResponse { over: false, revision: 41 })"]);
    assert_eq!(script.value("a"), Some(("new".to_owned(), 41)));
}

/// M3, H7: after the record is gone a decision finds nothing.
#[test]
fn a_decision_after_the_abort_does_nothing() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    for _ in 0..=SILENT_TICKS_MAX {
        script.tick();
    }
    script.settle();
    assert!(!script.pipeline.has_locks(), "the coordinator was silent for too long");
    assert_eq!(script.pipeline.outcome(M), Outcome::Over);
    script.work(2, decide(vec![share(token, "a", vec![change("a", "new", 5)], vec![0])]));
    script.number(40);
    assert_eq!(script.answers(), ["2 judged Decide(DecideResponse { over: true, revision: 0 })"]);
    assert_eq!(script.value("a"), Some(("old".to_owned(), 5)));
}

/// H43: a coordinator that is heard of is never given up.
#[test]
fn a_slow_coordinator_keeps_its_locks() {
    let mut script = Script::leading(10);
    script.locked(1, lock(M, "a", &["a"], true));
    for _ in 0..10 * SILENT_TICKS_MAX {
        assert!(script.pipeline.hold(M));
        script.tick();
    }
    assert!(script.pipeline.has_locks());
    assert!(!script.pipeline.hold(OTHER), "of another transaction nothing is known");
}

/// H8, M4: a participant kills nothing by itself; it asks, and goes by the primary's word.
#[test]
fn a_participant_asks_the_primary() {
    let mut script = Script::leading(10).with_key("z", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["z"], true));
    for _ in 0..ASK_TICKS {
        script.tick();
    }
    assert_eq!(script.asks(), [(token, key("a"))]);
    script.pipeline.told(token, Outcome::Later, 15);
    script.pump();
    assert!(script.pipeline.has_locks());
    script.pipeline.told(token, Outcome::Over, 0);
    script.pump();
    script.settle();
    assert!(!script.pipeline.has_locks());
    assert_eq!(script.value("z"), Some(("old".to_owned(), 5)));
}

/// M7: reads at or below the floor pass, and above it as far as the primary's word goes.
#[test]
fn reads_pass_below_the_floor_and_by_the_primarys_word() {
    let mut script = Script::leading(10).with_key("z", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["z"], true));
    assert_eq!(script.blocker("z", 10), None);
    assert!(matches!(script.blocker("z", 11), Some(Blocker::Lock { .. })));
    assert_eq!(script.blocker("y", 1000), None, "other keys are read as ever");
    assert_eq!(script.pipeline.frontier(1000), 10);
    script.pipeline.told(token, Outcome::Later, 20);
    assert_eq!(script.blocker("z", 20), None);
    assert!(script.blocker("z", 21).is_some());
    assert_eq!(script.pipeline.frontier(1000), 20);
    script.pipeline.told(token, Outcome::Committed(30), 0);
    assert_eq!(script.blocker("z", 29), None);
    assert!(script.blocker("z", 30).is_some());
    assert_eq!(script.pipeline.frontier(1000), 29);
    script.pipeline.wait_unlocked(token, 8, &mut script.effects);
    script.work(2, commit(30, share(token, "z", vec![change("z", "new", 5)], vec![3])));
    assert_eq!(script.answers(), ["wake 8 again"]);
    assert!(matches!(script.blocker("z", 30), Some(Blocker::InFlight(_))), "decided, and not applied yet");
    assert_eq!(script.pipeline.frontier(1000), 29);
    script.settle();
    assert_eq!(script.blocker("z", 30), None);
    assert_eq!(script.pipeline.frontier(1000), 1000);
}

/// M7: at the primary a read passes until the number is asked for, and waits from then on.
#[test]
fn reads_at_the_primary_wait_only_for_a_number_on_its_way() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    assert_eq!(script.blocker("a", 500), None);
    assert_eq!(script.pipeline.outcome(M), Outcome::Later);
    script.work(2, decide(vec![share(token, "a", vec![change("a", "new", 5)], vec![0])]));
    assert!(matches!(script.blocker("a", 500), Some(Blocker::InFlight(_))));
    assert!(matches!(script.pipeline.outcome(M), Outcome::Wait(_)));
    script.number(40);
    assert_eq!(script.blocker("a", 500), None);
    assert_eq!(script.pipeline.outcome(M), Outcome::Over, "nobody else had a share");
}

/// N6, M4: a decision that got no number has not happened; the transaction may still be decided or aborted.
#[test]
fn a_decision_without_a_number_is_taken_back() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    let own = || share(token, "a", vec![change("a", "new", 5)], vec![0]);
    script.work(2, decide(vec![own(), share(ELSEWHERE, "z", Vec::new(), Vec::new())]));
    let (batch, _) = script.asked();
    script.submit(3, put("a", "waits again"));
    script.pipeline.not_numbered(batch, "no sequencer", &mut script.effects);
    script.pump();
    assert_eq!(script.answers(), ["2 timed out", "3 timed out"]);
    assert_eq!(script.pipeline.outcome(M), Outcome::Later);
    script.submit(4, put("a", "behind the lock"));
    assert!(script.asks_nothing());
    script.work(5, decide(vec![own()]));
    script.number(40);
    assert_eq!(script.value("a"), Some(("behind the lock".to_owned(), 42)));
}

/// O1, O2: a new leader finds the locks in the applied rows and goes on with what was decided.
#[test]
fn a_new_leader_goes_on_from_the_rows() {
    let mut script = Script::leading(10).with_key("a", "old", 5).with_key("z", "old", 6);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    script.locked(2, lock(OTHER, "b", &["z"], true));
    let own = share(token, "a", vec![change("a", "new", 5)], vec![0]);
    let other = share(ELSEWHERE, "y", vec![change("y", "new", 0)], vec![1]);
    script.work(3, decide(vec![own, other]));
    script.number(40);
    assert_eq!(script.carried().len(), 1);
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    assert!(!script.pipeline.has_locks());
    script.answers();
    let rows = script.rows().into_iter().cloned().collect();
    script.pipeline.on_leader(Term(7), rows, Vec::new(), &mut script.effects);
    script.pump();
    let carried = script.carried();
    assert_eq!(carried.len(), 1, "the share is carried again");
    assert_eq!(carried[0].1, 41);
    script.submit(4, put("z", "waits"));
    assert!(script.asks_nothing(), "the undecided lock stands");
    assert!(script.blocker("z", 11).is_some());
}

/// A try does not wait, and nobody overtakes who waits.
#[test]
fn tries_answer_conflicts_and_locks_queue_behind_older_waiters() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    script.work(2, lock(OTHER, "a", &["a", "b"], false));
    assert!(script.lock_answer(2).expect("an answer").conflict);
    script.work(3, lock(OTHER, "a", &["a", "b"], true));
    script.work(4, lock(TxnId { high: 1, low: 3 }, "b", &["b"], true));
    script.settle();
    assert!(script.lock_answer(3).is_none() && script.lock_answer(4).is_none());
    script.work(5, commit(30, share(token, "a", vec![change("a", "new", 5)], vec![0])));
    script.settle();
    assert!(script.lock_answer(3).is_some(), "the elder first");
    assert!(script.lock_answer(4).is_none());
    script.work(6, Work::Release(OTHER));
    script.settle();
    assert!(script.lock_answer(4).is_some());
}

/// Shared locks: several may read, nobody writes.
#[test]
fn what_is_only_read_is_shared() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let shared = |txn| match lock(txn, "a", &["a"], false) {
        Work::Lock(mut request) => {
            request.ranges[0].exclusive = false;
            Work::Lock(request)
        }
        _ => unreachable!(),
    };
    script.locked(1, shared(M));
    script.locked(2, shared(OTHER));
    assert_eq!(script.blocker("a", 1000), None, "nobody will write here");
    script.submit(3, put("a", "waits"));
    assert!(script.asks_nothing());
    script.work(4, Work::Release(M));
    script.settle();
    assert!(script.asks_nothing());
    script.work(5, Work::Release(OTHER));
    script.settle();
    script.number(50);
    assert_eq!(script.value("a"), Some(("waits".to_owned(), 51)));
}

/// M8: a large share is done in chunks under the lock, goes on after a leader change, and unlocks at its end.
#[test]
fn a_wipe_goes_in_chunks_and_survives_its_leader() {
    let mut script = Script::leading(10);
    let keys = 5 * WIPE_KEYS / 2;
    for n in 0..keys {
        script = script.with_key(&format!("k{n:06}"), "old", 5);
    }
    let range = KeyRange { start: key("k"), end: key("l") };
    let ranges = vec![LockRange { start: range.start.clone(), end: range.end.clone(), exclusive: true }];
    let read = LockRead { start: range.start.clone(), end: range.end.clone(), count_only: true };
    let request =
        LockRequest { txn: Some(M), primary: key("a"), ranges, reads: vec![read], wait: true, ..Default::default() };
    let (token, data) = script.locked(1, Work::Lock(request));
    assert_eq!((data[0].count, data[0].kvs.len()), (keys as i64, 0));
    let wipe = Wipe { start: range.start.clone(), end: range.end.clone(), first_sub: 100, lease: 0 };
    let part = Share { key: range.start.clone(), token: Some(token), wipes: vec![wipe], ..Default::default() };
    script.work(2, commit(30, part.clone()));
    let row = script.proposed();
    script.apply(row);
    let first = script.proposed();
    let entry = RegionEntry::decode(first.1.clone()).expect("an entry");
    assert_eq!(entry.txns[0].changes.len(), WIPE_KEYS);
    assert_eq!((entry.txns[0].revision, entry.txns[0].subs[0]), (30, 100));
    script.apply(first);
    assert!(script.blocker("k000000", 30).is_some(), "half of it is seen by nobody");
    let all = KeyRange { start: key("a"), end: key("z") };
    assert_eq!(script.pipeline.locked(&all, 30, true), None, "who knows what is gone may read");
    assert_eq!(script.pipeline.wiped(&all, 29), []);
    let [left] = &script.pipeline.wiped(&all, 30)[..] else { panic!("one range is left") };
    assert!(left.contains(&key(&format!("k{:06}", keys - 1))) && left.end == key("l"));
    assert_eq!(script.blocker("k000000", 29), None);
    script.pipeline.on_follower(Term(6), None, &mut script.effects);
    script.effects.clear();
    let rows = script.rows().into_iter().cloned().collect();
    script.pipeline.on_leader(Term(7), rows, Vec::new(), &mut script.effects);
    script.pump();
    script.submit(3, put("k000000", "after"));
    script.work(4, commit(30, part));
    let second = script.proposed();
    let entry = RegionEntry::decode(second.1.clone()).expect("an entry");
    assert_eq!(entry.txns[0].subs[0], 100 + WIPE_KEYS as u32, "it goes on where the old leader was");
    script.apply(second);
    let third = script.proposed();
    let entry = RegionEntry::decode(third.1.clone()).expect("an entry");
    assert_eq!(entry.txns[0].changes.len(), keys - 2 * WIPE_KEYS);
    let last = format!("k{:06}", keys - 1);
    assert!(matches!(script.blocker(&last, 30), Some(Blocker::InFlight(_))));
    script.apply(third);
    script.number(30);
    assert_eq!(script.value("k000000"), Some(("after".to_owned(), 31)));
    assert_eq!(script.applied.0.len(), 1);
    assert_eq!(script.rows().len(), 0);
}

/// S3: a split waits for locks to go, and keeps new ones from being taken meanwhile; everything else goes on.
#[test]
fn a_barrier_for_a_split_waits_for_locks() {
    let mut script = Script::leading(10).with_key("a", "old", 5);
    let (token, _) = script.locked(1, lock(M, "a", &["a"], true));
    let barrier = script.pipeline.begin_barrier(Until::Unlocked).expect("no other");
    script.pump();
    script.submit(2, put("b", "goes on"));
    script.number(20);
    script.work(3, lock(OTHER, "c", &["c"], true));
    script.work(4, commit(30, share(token, "a", vec![change("a", "new", 5)], vec![0])));
    script.settle();
    assert!(script.effects.iter().any(|effect| matches!(effect, Effect::Drained)));
    assert!(script.lock_answer(3).is_none());
    script.pipeline.end_barrier(barrier);
    script.pump();
    script.settle();
    assert!(script.lock_answer(3).is_some());
}
