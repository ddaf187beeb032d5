use braid_proto::pb::{self, Peer};

use super::*;

fn refusal(reason: Reason) -> Refusal {
    Refusal { reason: Some(reason) }
}

fn not_leader(store_id: u64) -> Refusal {
    let leader = (store_id != 0).then_some(Peer::voter(9, store_id));
    refusal(Reason::NotLeader(pb::NotLeader { leader }))
}

fn busy(retry_after_ms: u32) -> Refusal {
    refusal(Reason::Busy(pb::Busy { what: "split".into(), retry_after_ms }))
}

fn unknown(why: &str) -> Refusal {
    refusal(Reason::Unknown(pb::Unknown { why: why.into() }))
}

fn again(reason: &'static str, lesson: Lesson, refresh: bool, pause_ms: u64) -> Step {
    Step::Again { lesson, refresh, pause: Duration::from_millis(pause_ms), reason }
}

fn check(kind: Kind, attempt: u32, given: Refusal, expect: Step) {
    assert_eq!(decide(kind, given.clone(), attempt), expect, "{kind:?} attempt {attempt}: {given:?}");
}

#[test]
fn what_certainly_did_not_happen_is_tried_again() {
    let region = Region { id: 7, ..Default::default() };
    let mismatch = |current| refusal(Reason::EpochMismatch(pb::EpochMismatch { current }));
    for kind in [Kind::Read, Kind::Write] {
        check(kind, 0, not_leader(3), again("not_leader", Lesson::Leader(StoreId(3)), false, 0));
        check(kind, 0, not_leader(0), again("no_leader", Lesson::NotThisStore, false, 0));
        check(kind, 0, mismatch(vec![region.clone()]), again("epoch", Lesson::Regions(vec![region.clone()]), false, 0));
        check(kind, 0, mismatch(vec![]), again("epoch", Lesson::Nothing, true, 0));
        let not_found = refusal(Reason::RegionNotFound(pb::RegionNotFound {}));
        check(kind, 0, not_found, again("region_not_found", Lesson::NotThisStore, true, 0));
        check(kind, 0, busy(25), again("busy", Lesson::Nothing, false, 25));
        let timed_out = refusal(Reason::TimedOut(pb::TimedOut::default()));
        check(kind, 0, timed_out, again("timed_out", Lesson::Nothing, false, 0));
    }
}

#[test]
fn a_write_that_may_have_happened_is_never_tried_again() {
    for attempt in [0, 1, 5, 1000] {
        check(Kind::Write, attempt, unknown(CONNECTION_LOST), Step::Fail(error::TIMEOUT_CONNECTION_LOST));
        check(Kind::Write, attempt, unknown("the peer is gone"), Step::Fail(error::TIMEOUT_LEADER_FAIL));
        check(Kind::Write, attempt, Refusal { reason: None }, Step::Fail(error::TIMEOUT_LEADER_FAIL));
    }
}

#[test]
fn a_read_is_always_tried_again() {
    for given in [unknown(CONNECTION_LOST), unknown(""), refusal(Reason::DiskFull(pb::DiskFull {})), Refusal::default()]
    {
        check(Kind::Read, 0, given, again("unanswered", Lesson::NotThisStore, false, 0));
    }
}

#[test]
fn a_full_disk_is_no_space_for_a_write() {
    check(Kind::Write, 0, refusal(Reason::DiskFull(pb::DiskFull {})), Step::Fail(error::NO_SPACE));
}

#[test]
fn pauses_grow_to_a_bound_and_placement_is_asked_now_and_then() {
    let pauses: Vec<u128> = (0..10).map(|attempt| pause(attempt).as_millis()).collect();
    assert_eq!(pauses, [0, 0, 10, 20, 40, 80, 160, 320, 320, 320]);
    assert_eq!(pause(u32::MAX), PAUSE_MAX);
    check(Kind::Write, 3, not_leader(0), again("no_leader", Lesson::NotThisStore, true, 20));
    check(Kind::Write, 4, not_leader(0), again("no_leader", Lesson::NotThisStore, false, 40));
    check(Kind::Write, 7, not_leader(1), again("not_leader", Lesson::Leader(StoreId(1)), true, 320));
}

#[test]
fn a_store_cannot_ask_for_an_endless_pause() {
    check(Kind::Write, 0, busy(3_600_000), again("busy", Lesson::Nothing, false, 320));
}
