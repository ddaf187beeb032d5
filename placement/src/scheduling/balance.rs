//! How far the cluster is from balance: what is under way, what schedulers would begin, and why they do not.

use braid_proto::pb::BalanceResponse;

use super::Scheduling;
use crate::schedule::choose::mean;
use crate::schedule::{Kind, StoreView};

/// What is still to be done. `defaults_paused` names the schedulers that a cluster begins without: nobody waits for them.
pub fn balance(scheduling: &Scheduling, defaults_paused: &[String]) -> BalanceResponse {
    let (driver, now_ms) = (scheduling.driver(), scheduling.now_ms());
    let (view, config, operators) = (driver.view(), driver.config(), driver.operators());
    let mut waits_for: Vec<String> = scheduling.ready().err().into_iter().collect();
    let mut wanted = false;
    for kind in Kind::ALL {
        let proposal = driver.propose(kind, now_ms);
        if !proposal.wants() {
            continue;
        }
        match driver.is_paused(kind) {
            true if defaults_paused.iter().any(|name| name == kind.name()) => continue,
            true => waits_for.push(format!("{kind} is paused: {}", proposal.said)),
            false if proposal.waits => waits_for.push(format!("{kind}: {}", proposal.said)),
            false => {}
        }
        wanted = true;
    }
    let draining = view.stores().filter(|store| store.draining.is_some() && !store.replicas.is_empty()).count();
    let replicas_to_repair = replicas_to_repair(scheduling, now_ms);
    let under_way = operators.active().len();
    let (bytes_to_move, leaders_to_move) = (
        beyond(scheduling, |store| store.planned.bytes, config.balance_tolerance),
        beyond(scheduling, |store| store.planned.leaders, config.leader_tolerance),
    );
    let rests = !wanted && draining == 0 && view.wishes.is_empty() && replicas_to_repair == 0;
    BalanceResponse {
        header: None,
        balanced: scheduling.ready().is_ok() && under_way == 0 && rests,
        bytes_to_move,
        leaders_to_move: leaders_to_move as u32,
        replicas_to_repair: replicas_to_repair as u32,
        operators: under_way as u32,
        operators_done: operators.tally().done(),
        bytes_moved: operators.tally().copied_bytes,
        waits_for,
    }
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
