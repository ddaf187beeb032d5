//! One planted fault each.

use std::collections::BTreeSet;

use braid_loadtest::linear::{Verdict, check};

use super::simulate::{Fault, Options, simulate};

/// Histories with the fault that each test looks at.
const HISTORIES: usize = 10;

/// Of a thousand requests, so many are not answered where the fault is about one of those: otherwise most simulations
/// would end without an occasion.
const UNANSWERED: u64 = 200;

/// What else is seen when the server goes on with a state that no order of the requests gives.
const CONFUSED: &[&str] =
    &["lost write", "repeated write", "snapshot", "split transaction", "stale read", "wrong answer"];

/// Checks histories with a fault; gives the verdicts of those in which there was an occasion for it.
fn verdicts(fault: Fault, options: &Options) -> Vec<Verdict> {
    let seeds = (0..).map(|seed| simulate(seed, options, Some(fault)));
    let with_fault = seeds.take(20 * HISTORIES).filter(|simulated| simulated.committed).take(HISTORIES);
    let verdicts: Vec<_> = with_fault.map(|simulated| check(&simulated.history).expect("it can be judged")).collect();
    assert_eq!(verdicts.len(), HISTORIES, "too few occasions for {fault:?}");
    verdicts
}

/// Every history with the fault must show `always`, and nothing beside it but `perhaps`.
fn must_find(fault: Fault, always: &str, perhaps: &[&str]) {
    must_find_one(fault, &[always], perhaps, &Options::default());
}

/// Every history with the fault must show one of `always`, and nothing beside it but `perhaps`.
fn must_find_one(fault: Fault, always: &[&str], perhaps: &[&str], options: &Options) {
    let allowed: BTreeSet<&str> = perhaps.iter().chain(always).copied().collect();
    for verdict in verdicts(fault, options) {
        let texts: Vec<_> = verdict.violations.iter().map(ToString::to_string).collect();
        let found = verdict.properties();
        assert!(
            always.iter().any(|one| found.contains(one)) && found.is_subset(&allowed),
            "{fault:?}: {found:?}\n{}",
            texts.join("\n")
        );
        assert!(texts.iter().all(|text| text.contains("\n  ")), "no operation is named: {texts:?}");
    }
}

#[test]
fn thousands_of_right_histories_are_accepted() {
    let mut unknown_done = 0;
    for seed in 0..2_000 {
        let small = Options { requests: 50, unanswered: 60, old_reads: 3, ..Options::default() };
        let simulated = simulate(seed, &small, None);
        let verdict = check(&simulated.history).expect("it can be judged");
        assert!(verdict.violations.is_empty(), "seed {seed}: {}", verdict.violations[0]);
        unknown_done += verdict.unknown_done;
    }
    assert!(unknown_done > 500, "only {unknown_done} requests of unknown outcome took effect");
}

#[test]
fn right_histories_with_many_unknown_outcomes_are_accepted() {
    let mut unknown_done = 0;
    for seed in 0..300 {
        let options = Options { requests: 200, unanswered: 400, holes: 100, ..Options::default() };
        let simulated = simulate(seed, &options, None);
        let verdict = check(&simulated.history).expect("it can be judged");
        assert!(verdict.violations.is_empty(), "seed {seed}: {}", verdict.violations[0]);
        unknown_done += verdict.unknown_done;
    }
    assert!(unknown_done > 3_000, "only {unknown_done} requests of unknown outcome took effect");
}

#[test]
fn a_stale_read_is_found() {
    must_find(Fault::StaleRead, "stale read", &[]);
}

#[test]
fn a_lost_write_is_found() {
    must_find(Fault::LostWrite, "lost write", &["wrong answer"]);
}

#[test]
fn a_lost_delete_is_found() {
    // Deleted again before anybody else looked, it was seen to be gone after all.
    must_find_one(Fault::LostDelete, &["lost write", "stale read"], CONFUSED, &Options::default());
}

#[test]
fn a_repeated_revision_is_found() {
    must_find(
        Fault::RepeatedRevision,
        "repeated revision",
        &["real time", "snapshot", "split transaction", "stale read", "wrong answer"],
    );
}

#[test]
fn a_half_shown_transaction_is_found() {
    must_find(Fault::SplitRead, "split transaction", &["invariant"]);
}

#[test]
fn a_half_done_transaction_of_unknown_outcome_is_found() {
    let options = Options { unanswered: UNANSWERED, ..Options::default() };
    must_find_one(Fault::SplitWrite, &["split transaction"], &["invariant"], &options);
}

#[test]
fn a_header_below_an_acknowledged_revision_is_found() {
    must_find(Fault::OldHeader, "real time", &[]);
}

#[test]
fn a_revision_below_an_acknowledged_one_is_found() {
    must_find(Fault::LateRevision, "real time", CONFUSED);
}

#[test]
fn a_write_done_twice_is_found() {
    must_find(Fault::RepeatedWrite, "repeated write", &[]);
}

#[test]
fn a_phantom_value_is_found() {
    must_find(Fault::Phantom, "phantom value", &[]);
}

#[test]
fn a_change_above_the_named_revision_is_found() {
    must_find(Fault::FutureRead, "snapshot", &[]);
}

#[test]
fn a_refused_write_that_is_done_is_found() {
    let options = Options { unanswered: UNANSWERED, ..Options::default() };
    must_find_one(Fault::RefusedWrite, &["refused write"], &[], &options);
}

#[test]
fn a_wrong_compare_is_found() {
    must_find(Fault::WrongCompare, "wrong answer", &["invariant"]);
}

#[test]
fn an_old_revision_that_changed_is_found() {
    must_find(Fault::ForgottenHistory, "snapshot", &["stale read", "lost write"]);
}

#[test]
fn money_that_appears_is_found() {
    must_find(Fault::Money, "invariant", &[]);
}
