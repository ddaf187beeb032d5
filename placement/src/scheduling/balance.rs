//! How far the cluster is from balance: what is under way, what schedulers would begin, and why they do not.

use std::collections::BTreeSet;

use braid_proto::pb::BalanceResponse;

use super::{Scheduling, words};
use crate::schedule::choose::mean;
use crate::schedule::{Kind, Operator, StoreView};

/// Operators under way that are waited for by name; the others are counted.
const NAMED_MAX: usize = 5;

/// What is still to be done. `defaults_paused` names the schedulers that a cluster begins without: nobody waits for them.
pub fn balance(scheduling: &Scheduling, defaults_paused: &[String]) -> BalanceResponse {
    let (driver, now_ms) = (scheduling.driver(), scheduling.now_ms());
    let (view, config, operators) = (driver.view(), driver.config(), driver.operators());
    let (mut waits_for, mut stays) = (Vec::from_iter(scheduling.ready().err()), Vec::new());
    let mut wanted = BTreeSet::new();
    for kind in Kind::ALL {
        let proposal = driver.propose(kind, now_ms);
        if proposal.stays {
            stays.push(format!("{kind}: {}", proposal.said));
        }
        if !proposal.wants() {
            continue;
        }
        if driver.is_paused(kind) {
            let paused = format!("{}: {}", words::paused(kind, defaults_paused), proposal.said);
            if words::begins_paused(kind, defaults_paused) {
                stays.push(paused);
                continue;
            }
            waits_for.push(paused);
        } else if proposal.plans.is_empty() {
            waits_for.push(format!("{kind}: {}", proposal.said));
        } else if let Some(why) = driver.refuses(&proposal.plans, now_ms) {
            waits_for.push(format!("{kind}: {}, waits: {why}", proposal.said));
        }
        wanted.insert(kind);
    }
    waits_for.extend(under_way(scheduling));
    let draining = view.stores().filter(|store| store.draining.is_some() && !store.replicas.is_empty()).count();
    let replicas_to_repair = replicas_to_repair(scheduling, now_ms);
    let count = operators.active().len();
    // What its scheduler does not want moved, nothing moves.
    let beyond = |kind, of: fn(&StoreView) -> u64, tolerance| match wanted.contains(&kind) {
        true => beyond(scheduling, of, tolerance),
        false => 0,
    };
    let bytes_to_move = beyond(Kind::Replicas, |store| store.planned.bytes, config.balance_tolerance);
    let leaders_to_move = beyond(Kind::Leaders, |store| store.planned.leaders, config.leader_tolerance);
    let rests = wanted.is_empty() && draining == 0 && view.wishes.is_empty() && replicas_to_repair == 0;
    BalanceResponse {
        header: None,
        balanced: scheduling.ready().is_ok() && count == 0 && rests,
        bytes_to_move,
        leaders_to_move: leaders_to_move as u32,
        replicas_to_repair: replicas_to_repair as u32,
        operators: count as u32,
        operators_done: operators.tally().done(),
        bytes_moved: operators.tally().copied_bytes,
        waits_for,
        stays,
    }
}

/// The operators under way, those that take longest first.
fn under_way(scheduling: &Scheduling) -> Vec<String> {
    let mut active: Vec<&Operator> = scheduling.driver().operators().active().collect();
    active.sort_by_key(|operator| (operator.started_ms, operator.id));
    let named = active.iter().take(NAMED_MAX).map(|operator| words::line(operator, scheduling.now_ms()));
    let mut lines: Vec<String> = named.collect();
    if let Some(more) = active.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        lines.push(format!("{more} more operators, which `braid admin operator list` shows"));
    }
    lines
}

/// What stores have more than the mean, if they differ by more than is tolerated; half of that on either side is left.
fn beyond(scheduling: &Scheduling, of: fn(&StoreView) -> u64, tolerance: f64) -> u64 {
    let view = scheduling.driver().view();
    let shares = || view.in_service().map(|store| of(store) as f64 / store.weight);
    let mean = mean(view, of);
    let apart = shares().fold(0.0, f64::max) - shares().fold(f64::INFINITY, f64::min);
    // One leader more or less cannot be evened out.
    if apart <= tolerance * mean || (apart <= 1.0 && mean > 0.0) {
        return 0;
    }
    let most = mean * (1.0 + tolerance / 2.0);
    view.in_service().map(|store| ((of(store) as f64 / store.weight - most).max(0.0) * store.weight) as u64).sum()
}

/// Voters too few or too many, replicas of stores that are given up, and learners that nobody brings up.
fn replicas_to_repair(scheduling: &Scheduling, now_ms: u64) -> usize {
    let driver = scheduling.driver();
    let (view, config) = (driver.view(), driver.config());
    let off: usize =
        view.index().by_voters.iter().map(|(voters, regions)| voters.abs_diff(config.replicas) * regions.len()).sum();
    let lost = view.stores().filter(|store| store.is_lost(now_ms, config.store_down_ms_max));
    let lost: usize = lost.map(|store| store.replicas.len()).sum();
    let unwell = view.index().unwell.iter().filter_map(|id| view.region(*id));
    let learners = unwell.filter(|region| region.goal.is_none() && region.peers().iter().any(|peer| peer.learner));
    off + lost + learners.count()
}
