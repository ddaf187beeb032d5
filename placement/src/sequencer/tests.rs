//! Scripts on the sequencer: each reproduces one hole of the protocol rules, or one thing that clients rely on.
//!
//! `Group` stands for placement's raft group: a replicated record, terms, and who has the lease.

use super::*;
use braid_proto::id::Incarnation;

const CLUSTER: ClusterId = ClusterId(7);
const MS: Duration = Duration::from_millis(1);

/// A replicated record that takes windows in log order, and the time.
#[derive(Default)]
struct Group {
    /// What is committed and applied everywhere.
    record: WindowRecord,
    term: u64,
    now: Duration,
}

impl Group {
    /// `member` is elected, has applied its term's first entry, and gets its first window.
    fn elect(&mut self, member: &mut Sequencer) -> Started {
        self.begin(member);
        let started = self.commit_next(member).expect("the first window starts the sequencer");
        if member.wants_window() {
            self.commit_next(member);
        }
        started
    }

    fn begin(&mut self, member: &mut Sequencer) {
        self.term += 1;
        member.begin(Term(self.term), &self.record, self.now);
    }

    /// Commits the window that `member` asks for.
    fn commit_next(&mut self, member: &mut Sequencer) -> Option<Started> {
        let window = member.next_window(self.now).expect("a window is wanted");
        self.commit(member, &window)
    }

    fn commit(&mut self, member: &mut Sequencer, window: &Window) -> Option<Started> {
        let taken = self.record.open(window.epoch, window.end, window.given);
        member.on_window(window, taken, self.now)
    }

    fn commit_handover(&mut self, handover: Handover) -> bool {
        self.record.close(handover.epoch, handover.last, handover.answers)
    }
}

fn sequencer() -> Sequencer {
    Sequencer::new(CLUSTER)
}

fn request(client: u64, seq: u64, count: u32) -> NumberRequest {
    NumberRequest { client_id: client, incarnation: 1, seq, count, cluster_id: CLUSTER.0, ..Default::default() }
}

fn heard(mut request: NumberRequest, answer: &NumberAnswer) -> NumberRequest {
    request.heard_epoch = answer.epoch;
    request.heard_revision = answer.base + i64::from(answer.count);
    request
}

/// Request, sample, lease check, answer, without a pause.
fn ask(member: &mut Sequencer, request: &NumberRequest) -> NumberAnswer {
    let prepared = member.prepare(request, Duration::ZERO);
    member.release(prepared, true)
}

/// The block of an answer that must not be a refusal: (epoch, base, count).
fn block(answer: NumberAnswer) -> (u64, i64, u32) {
    assert_eq!(answer.refusal, None, "refused");
    (answer.epoch, answer.base, answer.count)
}

fn refusal(answer: NumberAnswer) -> Refusal {
    assert_eq!((answer.base, answer.count), (0, 0), "a refusal carries no numbers");
    answer.refusal.expect("refused")
}

#[test]
fn the_empty_cluster_is_at_1_and_the_first_write_gets_2() {
    let (mut group, mut member) = (Group::default(), sequencer());
    let started = group.elect(&mut member);
    assert_eq!(started, Started { epoch: SequencerEpoch(1), base: Revision(1), holes: 0, raised: None });
    assert_eq!(block(ask(&mut member, &request(1, 1, 0))), (1, 1, 0));
    assert_eq!(block(ask(&mut member, &request(1, 2, 1))), (1, 1, 1));
    assert_eq!(block(ask(&mut member, &request(1, 3, 0))), (1, 2, 0));
}

#[test]
fn blocks_of_several_clients_follow_each_other_without_a_gap() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    assert_eq!(block(ask(&mut member, &request(1, 1, 3))), (1, 1, 3));
    assert_eq!(block(ask(&mut member, &request(2, 1, 2))), (1, 4, 2));
    assert_eq!(block(ask(&mut member, &request(1, 2, 0))), (1, 6, 0));
    assert_eq!(block(ask(&mut member, &request(1, 3, 1))), (1, 6, 1));
}

#[test]
fn n1_a_bound_is_the_number_before_whatever_is_given_next() {
    // H3: a failed compare asks in order with the numbers; whoever is numbered later is above its bound.
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let (_, bound, _) = block(ask(&mut member, &request(1, 1, 0)));
    let (_, base, _) = block(ask(&mut member, &request(2, 1, 1)));
    assert!(base + 1 > bound);
}

#[test]
fn n5_a_repeated_request_gets_the_same_block() {
    // H42: the answer was lost; a second block would leave the first one unused.
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let first = request(1, 1, 2);
    assert_eq!(block(ask(&mut member, &first)), (1, 1, 2));
    assert_eq!(block(ask(&mut member, &request(2, 1, 5))), (1, 3, 5));
    assert_eq!(block(ask(&mut member, &first)), (1, 1, 2));
    assert_eq!(block(ask(&mut member, &request(1, 2, 1))), (1, 8, 1));
    assert!(matches!(refusal(ask(&mut member, &first)), Refusal::Stale(_)), "the first request is over");
}

#[test]
fn n5_a_new_life_of_a_client_starts_its_sequence_again() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    ask(&mut member, &request(1, 9, 2));
    let mut reborn = request(1, 1, 1);
    reborn.incarnation = 2;
    assert_eq!(block(ask(&mut member, &reborn)), (1, 3, 1));
    assert!(matches!(refusal(ask(&mut member, &request(1, 10, 1))), Refusal::Stale(_)), "the old life is over");
}

#[test]
fn n3_a_paused_sequencer_that_was_replaced_answers_nothing() {
    // H11, in the order that would hurt: sampled, paused, replaced, resumed.
    let mut group = Group::default();
    let (mut p1, mut p2) = (sequencer(), sequencer());
    group.elect(&mut p1);
    ask(&mut p1, &request(4, 1, 1));
    let bound = p1.prepare(&request(1, 1, 0), group.now);
    let numbers = p1.prepare(&request(2, 1, 3), group.now);
    // P1's lease runs out while it is paused; P2 gives out revisions that are acknowledged.
    group.elect(&mut p2);
    let (_, acked, _) = block(ask(&mut p2, &request(3, 1, 1)));
    assert!(acked > 5);
    assert!(matches!(refusal(p1.release(bound, false)), Refusal::NotLeader(_)));
    assert!(matches!(refusal(p1.release(numbers, false)), Refusal::NotLeader(_)));
    // Even with the news of its end still on the way, a fresh question finds no lease.
    let fresh = p1.prepare(&request(1, 2, 0), group.now);
    assert!(matches!(refusal(p1.release(fresh, false)), Refusal::NotLeader(_)));
}

#[test]
fn n3_what_was_sampled_in_an_earlier_office_never_leaves_under_a_later_lease() {
    let mut group = Group::default();
    let (mut p1, mut p2) = (sequencer(), sequencer());
    group.elect(&mut p1);
    let old = p1.prepare(&request(1, 1, 1), group.now);
    group.elect(&mut p2);
    ask(&mut p2, &request(3, 1, 1));
    group.elect(&mut p1);
    // P1 leads again and its lease holds: the caller's check is true, and still the sample is from before P2.
    assert!(matches!(refusal(p1.release(old, true)), Refusal::NotLeader(_)));
    // The repeat gets a new block, above everything that P2 gave out.
    let (epoch, base, _) = block(ask(&mut p1, &request(1, 1, 1)));
    assert_eq!(epoch, 3);
    assert!(base >= 2001);
}

#[test]
fn n3_a_sample_is_not_saved_by_stepping_down_in_between() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let prepared = member.prepare(&request(1, 1, 1), group.now);
    member.step_down(Term(2), "10.0.0.2:2380".into());
    assert_eq!(refusal(member.release(prepared, true)), Refusal::NotLeader("10.0.0.2:2380".into()));
    assert_eq!(refusal(ask(&mut member, &request(1, 1, 1))), Refusal::NotLeader("10.0.0.2:2380".into()));
}

#[test]
fn n3_a_withheld_block_stays_its_clients() {
    // The lease lapses for a moment within the office: the numbers are not lost.
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    assert_eq!(block(ask(&mut member, &request(2, 1, 1))), (1, 1, 1));
    let prepared = member.prepare(&request(1, 1, 2), group.now);
    assert!(matches!(refusal(member.release(prepared, false)), Refusal::NotLeader(_)));
    assert_eq!(block(ask(&mut member, &request(2, 2, 1))), (1, 4, 1));
    assert_eq!(block(ask(&mut member, &request(1, 1, 2))), (1, 2, 2));
}

#[test]
fn a_leader_that_never_had_its_lease_asks_for_patience() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let prepared = member.prepare(&request(1, 1, 1), group.now);
    assert!(matches!(refusal(member.release(prepared, false)), Refusal::Busy(_)));
    assert_eq!(block(ask(&mut member, &request(1, 1, 1))), (1, 1, 1));
}

#[test]
fn n4_nothing_is_answered_before_the_own_window_is_committed() {
    let (mut group, mut member) = (Group::default(), sequencer());
    assert!(matches!(refusal(ask(&mut member, &request(1, 1, 1))), Refusal::NotLeader(_)));
    group.begin(&mut member);
    assert!(matches!(refusal(ask(&mut member, &request(1, 1, 1))), Refusal::Busy(_)));
    let window = member.next_window(group.now).expect("asks at once");
    assert!(matches!(refusal(ask(&mut member, &request(1, 1, 1))), Refusal::Busy(_)));
    assert_eq!(member.on_window(&window, false, group.now), None, "dropped: ask again");
    assert!(matches!(refusal(ask(&mut member, &request(1, 1, 1))), Refusal::Busy(_)));
    assert!(group.commit_next(&mut member).is_some());
    assert_eq!(block(ask(&mut member, &request(1, 1, 1))), (1, 1, 1));
}

#[test]
fn n4_a_window_in_the_log_counts_once_the_terms_first_entry_is_applied() {
    // H12: P1's window is committed but P2 has not applied it when it is elected.
    let mut group = Group::default();
    let (mut p1, mut p2) = (sequencer(), sequencer());
    group.elect(&mut p1);
    let applied_at_p2 = group.record.clone();
    for seq in 1..=2 {
        ask(&mut p1, &request(1, seq, 400));
    }
    group.commit_next(&mut p1);
    let (_, base, count) = block(ask(&mut p1, &request(1, 3, 400)));
    let given = base + i64::from(count);
    // Started from what it has applied, P2's window is refused by the record: it reaches less high than P1's.
    let mut hasty = sequencer();
    hasty.begin(Term(2), &applied_at_p2, group.now);
    let window = hasty.next_window(group.now).expect("asks at once");
    assert_eq!(window.epoch, SequencerEpoch(2));
    let mut record = group.record.clone();
    assert!(window.end.0 > record.end.0 || !record.open(window.epoch, window.end, window.given));
    // Started after the term's first entry it has applied everything committed before.
    let started = group.elect(&mut p2);
    assert!(started.base.0 >= given);
    let (_, base, _) = block(ask(&mut p2, &request(1, 4, 1)));
    assert!(base >= given);
}

#[test]
fn n4_reports_during_the_start_raise_it_and_never_lower_it() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.begin(&mut member);
    let window = member.next_window(group.now).expect("asks at once");
    let mut knows_more = request(1, 1, 1);
    knows_more.heard_epoch = 6;
    knows_more.heard_revision = 5_000;
    assert!(matches!(refusal(ask(&mut member, &knows_more)), Refusal::Busy(_)));
    let mut knows_less = request(2, 1, 1);
    knows_less.heard_revision = 12;
    ask(&mut member, &knows_less);
    assert_eq!(group.commit(&mut member, &window), None, "that window is too low by now");
    let started = group.commit_next(&mut member).expect("started");
    assert_eq!((started.epoch, started.base), (SequencerEpoch(7), Revision(5_000)));
    assert!(started.raised.is_some_and(|why| why.contains("@5000 of q6")), "and says so");
    assert_eq!(block(ask(&mut member, &knows_more)), (7, 5_000, 1));
}

#[test]
fn n3_a_sequencer_below_what_a_client_heard_stops_and_says_so() {
    // H47: placement's state was restored from a copy; a store knows more.
    for (epoch, revision) in [(1, 9_000), (3, 1)] {
        let (mut group, mut member) = (Group::default(), sequencer());
        group.elect(&mut member);
        let mut knows_more = request(1, 1, 1);
        knows_more.heard_epoch = epoch;
        knows_more.heard_revision = revision;
        let Refusal::Behind(why) = refusal(ask(&mut member, &knows_more)) else { panic!("must refuse") };
        assert!(why.contains(&format!("@{revision} of q{epoch}")), "{why}");
        assert!(matches!(refusal(ask(&mut member, &request(2, 1, 1))), Refusal::Behind(_)), "nobody is answered");
        assert_eq!(member.status().behind, Some(why));
        assert!(!member.wants_window());
        assert_eq!(member.stop(group.now), None, "nothing to hand over");
    }
}

#[test]
fn n3_a_replaced_sequencer_does_not_take_its_successor_for_a_restored_copy() {
    let mut group = Group::default();
    let (mut p1, mut p2) = (sequencer(), sequencer());
    group.elect(&mut p1);
    ask(&mut p1, &request(4, 1, 1));
    group.elect(&mut p2);
    let newest = ask(&mut p2, &request(1, 1, 1));
    let prepared = p1.prepare(&heard(request(1, 2, 1), &newest), group.now);
    assert!(matches!(refusal(p1.release(prepared, false)), Refusal::NotLeader(_)));
    assert_eq!(p1.status().behind, None);
}

#[test]
fn a_report_of_a_store_is_compared_like_a_request() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    ask(&mut member, &request(1, 1, 9));
    let fine = member.prepare_report(Revision(10));
    assert_eq!(member.release(fine, true).refusal, None);
    let beyond = member.prepare_report(Revision(11));
    assert!(matches!(member.release(beyond, true).refusal, Some(Refusal::Behind(_))));
}

#[test]
fn a_planned_handover_leaves_no_hole() {
    let mut group = Group::default();
    let (mut p1, mut p2) = (sequencer(), sequencer());
    group.elect(&mut p1);
    let lost = request(1, 1, 2);
    assert_eq!(block(ask(&mut p1, &lost)), (1, 1, 2));
    assert_eq!(block(ask(&mut p1, &request(2, 1, 3))), (1, 3, 3));
    let late = p1.prepare(&request(3, 1, 1), group.now);
    let handover = p1.stop(group.now).expect("it was serving");
    assert_eq!(handover.last, Revision(7));
    assert!(matches!(refusal(ask(&mut p1, &request(2, 2, 1))), Refusal::Busy(_)), "stopped");
    assert_eq!(block(p1.release(late, true)), (1, 6, 1), "it was prepared before and is in the exact last revision");
    assert!(group.commit_handover(handover));
    let started = group.elect(&mut p2);
    assert_eq!((started.base, started.holes), (Revision(7), 0));
    // An answer of the predecessor that was lost is repeated by the successor, in its own epoch.
    assert_eq!(block(ask(&mut p2, &lost)), (2, 1, 2));
    assert_eq!(block(ask(&mut p2, &request(2, 2, 1))), (2, 7, 1));
}

#[test]
fn a_window_that_was_on_its_way_cannot_reopen_a_closed_office() {
    let mut group = Group::default();
    let (mut p1, mut p2) = (sequencer(), sequencer());
    group.elect(&mut p1);
    ask(&mut p1, &request(1, 1, 600));
    let on_its_way = p1.next_window(group.now).expect("more than half is used");
    let handover = p1.stop(group.now).expect("it was serving");
    assert!(group.commit_handover(handover));
    assert_eq!(group.commit(&mut p1, &on_its_way), None);
    assert_eq!(group.elect(&mut p2).base, Revision(601));
    assert!(matches!(refusal(ask(&mut p1, &request(1, 2, 1))), Refusal::Busy(_)));
}

#[test]
fn a_crash_skips_the_rest_of_the_window_and_counts_it_once() {
    let mut group = Group::default();
    let (mut p1, mut p2, mut p3) = (sequencer(), sequencer(), sequencer());
    group.elect(&mut p1);
    ask(&mut p1, &request(1, 1, 10));
    let started = group.elect(&mut p2);
    assert_eq!((started.base, started.holes), (Revision(1_001), 1_000));
    let started = group.elect(&mut p3);
    assert_eq!((started.base, started.holes), (Revision(2_001), 1_000));
}

#[test]
fn what_a_sequencer_skipped_and_died_before_counting_is_counted_by_the_next() {
    let mut group = Group::default();
    let (mut p1, mut p2, mut p3) = (sequencer(), sequencer(), sequencer());
    group.elect(&mut p1);
    ask(&mut p1, &request(1, 1, 10));
    group.begin(&mut p2);
    let window = p2.next_window(group.now).expect("asks at once");
    assert!(group.record.open(window.epoch, window.end, window.given), "committed, and P2 dies before it hears of it");
    let started = group.elect(&mut p3);
    assert_eq!((started.base, started.holes), (Revision(2_001), 2_000));
}

#[test]
fn the_first_window_of_a_successor_is_as_long_as_the_last_one_was() {
    let mut group = Group { now: Duration::from_secs(1), ..Group::default() };
    let (mut p1, mut p2) = (sequencer(), sequencer());
    group.elect(&mut p1);
    let mut seq = 0;
    for _ in 0..2_000 {
        group.now += MS;
        seq += 1;
        ask(&mut p1, &request(1, seq, 20));
        if p1.wants_window() {
            group.commit_next(&mut p1);
        }
    }
    group.elect(&mut p2);
    let status = p2.status();
    assert!(status.window_end.0 - status.revision.0 > 15_000, "{status:?}");
}

#[test]
fn steady_use_never_waits_for_a_window() {
    // 50,000 numbers a second in requests of 50; committing a window takes 20 ms.
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let mut under_way: Option<(Duration, Window)> = None;
    let mut waited = Vec::new();
    let mut seq = 0;
    for _ in 0..10_000 {
        group.now += MS;
        if let Some((_, window)) = under_way.take_if(|(due, _)| *due <= group.now) {
            group.commit(&mut member, &window);
        }
        if let Some(window) = member.next_window(group.now) {
            under_way = Some((group.now + 20 * MS, window));
        }
        let answer = ask(&mut member, &request(1, seq + 1, 50));
        match answer.refusal {
            None => seq += 1,
            Some(Refusal::Busy(_)) => waited.push(group.now),
            Some(other) => panic!("{other:?}"),
        }
    }
    assert!(waited.iter().all(|at| *at < 200 * MS), "waits only while it learns the load: {waited:?}");
    let status = member.status();
    let ahead = status.window_end.0 - status.revision.0;
    assert!((25_000..=100_000).contains(&ahead), "a second or two of use ahead: {ahead}");
}

#[test]
fn a_request_larger_than_the_window_gets_a_window_that_fits() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let large = request(1, 1, 30_000);
    assert!(matches!(refusal(ask(&mut member, &large)), Refusal::Busy(_)));
    group.commit_next(&mut member);
    assert_eq!(block(ask(&mut member, &large)), (1, 1, 30_000));
}

#[test]
fn one_window_is_on_its_way_at_a_time_and_a_dropped_one_is_asked_again() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    assert_eq!(member.next_window(group.now), None);
    ask(&mut member, &request(1, 1, 600));
    let window = member.next_window(group.now).expect("more than half is used");
    assert_eq!(member.next_window(group.now), None);
    member.on_window(&window, false, group.now);
    assert!(member.next_window(group.now).is_some());
}

#[test]
fn a_window_of_an_earlier_office_is_not_taken_for_the_own_one() {
    let mut group = Group::default();
    let mut member = sequencer();
    group.begin(&mut member);
    let early = member.next_window(group.now).expect("asks at once");
    // It loses leadership; the window is committed nevertheless, before it leads again and hears of that.
    assert!(group.record.open(early.epoch, early.end, early.given));
    group.begin(&mut member);
    assert_eq!(member.on_window(&early, true, group.now), None);
    assert!(matches!(refusal(ask(&mut member, &request(1, 1, 1))), Refusal::Busy(_)));
    let started = group.commit_next(&mut member).expect("started");
    assert_eq!((started.epoch, started.base), (SequencerEpoch(2), Revision(1_001)));
}

#[test]
fn wrong_requests_are_refused_without_harm() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let mut foreign = request(1, 1, 1);
    foreign.cluster_id = 8;
    foreign.heard_revision = 1 << 40;
    assert!(matches!(refusal(ask(&mut member, &foreign)), Refusal::Stale(why) if why.contains("c8")));
    let greedy = request(1, 1, COUNT_MAX + 1);
    assert!(matches!(refusal(ask(&mut member, &greedy)), Refusal::Stale(why) if why.contains("at most")));
    assert_eq!(block(ask(&mut member, &request(1, 1, 1))), (1, 1, 1));
}

#[test]
fn answers_carry_the_marks_of_the_moment_they_were_sampled() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    let before = member.prepare(&request(1, 1, 0), group.now);
    member.set_marks(Marks { compacted: Some(Revision(1)), auth_revision: 3 });
    let before = member.release(before, true);
    assert_eq!((before.compacted, before.auth_revision), (0, 0));
    let after = ask(&mut member, &request(1, 2, 0));
    assert_eq!((after.compacted, after.auth_revision), (1, 3));
}

#[test]
fn incarnations_print_in_refusals() {
    let (mut group, mut member) = (Group::default(), sequencer());
    group.elect(&mut member);
    ask(&mut member, &request(1, 2, 1));
    let Refusal::Stale(why) = refusal(ask(&mut member, &request(1, 1, 1))) else { panic!("must be stale") };
    assert!(why.contains(&Incarnation(1).to_string()), "{why}");
}
