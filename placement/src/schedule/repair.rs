//! Replica repair: every region has as many voters as wanted, on stores that are there.
//!
//! Where it looks: regions whose last report says that something is wrong, regions with too few or too many voters, and
//! regions of stores that are lost: silent for longer than `store_down_ms_max`, or removed. A store that comes back
//! before that keeps everything. The regions with the fewest voters to spare come first.

use std::collections::BTreeSet;

use braid_proto::id::{PeerId, RegionId, StoreId};

use super::choose;
use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::view::{RegionView, around};

/// Regions looked at in one pass, of each kind.
const LOOKED_AT_MAX: usize = 128;

pub(super) fn propose(pass: &Pass) -> Proposal {
    let (view, config) = (pass.view, pass.config);
    let mut ill: Vec<(isize, RegionId)> = candidates(pass)
        .into_iter()
        .filter_map(|id| view.region(id))
        .filter(|region| is_ill(pass, region) && region.goal.as_ref().is_none_or(|_| is_urgent(pass, region)))
        .map(|region| (spare(pass, region), region.id()))
        .collect();
    ill.sort_unstable();
    let mut found = Findings::default();
    for (_, id) in &ill {
        let Some(region) = view.region(*id) else { continue };
        if region.goal.is_none()
            && let Some(why) = region.held(pass.now_ms).filter(|_| !is_ready(pass, region))
        {
            found.take(Err(why), config.plans_per_round);
            continue;
        }
        let plan = plan(pass, region);
        // What is under way already and goes to the same place is let be.
        if let (Some(goal), Ok((plan, _))) = (&region.goal, &plan)
            && (goal.stores == plan.goal.stores || !goal.stores.iter().any(|store| is_lost(pass, region, *store)))
        {
            continue;
        }
        if found.take(plan.and_then(|(plan, why)| pass.ready(plan, why)), config.plans_per_round) {
            break;
        }
    }
    let proposal = found.proposal("region", || idle(pass));
    match silent(pass) {
        Some(why) if !proposal.wants() => Proposal::waits(why),
        _ => proposal,
    }
}

/// Stores that are waited for, if any holds something.
fn silent(pass: &Pass) -> Option<String> {
    let silent: Vec<String> = pass
        .view
        .stores()
        .filter(|store| !store.is_up() && !store.replicas.is_empty())
        .filter(|store| !store.is_lost(pass.now_ms, pass.config.store_down_ms_max))
        .map(|store| store.id.to_string())
        .collect();
    let patience = pass.config.store_down_ms_max / 1_000;
    (!silent.is_empty()).then(|| {
        format!(
            "{} may still come back: replicas are rebuilt after {patience} s of silence (store-down-seconds-max)",
            silent.join(", ")
        )
    })
}

fn idle(pass: &Pass) -> String {
    let under_way = pass.view.index().unwell.len();
    if under_way > 0 {
        return format!("{under_way} regions are not well, nothing can be begun for them now");
    }
    format!("every region has its {} replicas", pass.config.replicas)
}

fn candidates(pass: &Pass) -> BTreeSet<RegionId> {
    let (index, seed) = (pass.view.index(), pass.seed());
    let mut ids: BTreeSet<RegionId> = around(&index.unwell, seed).take(LOOKED_AT_MAX).collect();
    for (voters, set) in &index.by_voters {
        if *voters != pass.config.replicas {
            ids.extend(around(set, seed).take(LOOKED_AT_MAX));
        }
    }
    let lost = pass.view.stores().filter(|store| store.is_lost(pass.now_ms, pass.config.store_down_ms_max));
    for store in lost {
        ids.extend(around(&store.replicas, seed).take(LOOKED_AT_MAX));
    }
    ids
}

/// Whether it can be repaired now at all: it does not rest, and no change is half done.
fn is_ready(pass: &Pass, region: &RegionView) -> bool {
    let rests = region.goal.is_none() && region.rests(pass.kind.priority(), pass.now_ms);
    !rests && !region.news.joint
}

/// Whether something is to be repaired.
fn is_ill(pass: &Pass, region: &RegionView) -> bool {
    let lost = region.stores().any(|store| is_lost(pass, region, store));
    let learners = region.peers().iter().any(|peer| peer.learner) && region.goal.is_none();
    let wrong = region.voters().count() != pass.config.replicas || lost || learners;
    // What is under way on a region that is between two sets of voters goes on.
    wrong && (region.goal.is_none() || !region.news.joint)
}

/// Whether it may take the place of an operator that is under way: a voter is lost.
fn is_urgent(pass: &Pass, region: &RegionView) -> bool {
    region.voter_stores().into_iter().any(|store| is_lost(pass, region, store))
}

/// Whether what a region has on a store is given up.
fn is_lost(pass: &Pass, region: &RegionView, store: StoreId) -> bool {
    let patience = pass.config.store_down_ms_max;
    let Some(known) = pass.view.store(store) else { return true };
    let peer = region.news.region.peer_on(store).map(|peer| PeerId(peer.id));
    let silent = region.down_since.iter().find(|(id, _)| Some(*id) == peer);
    known.is_lost(pass.now_ms, patience)
        || silent.is_some_and(|(_, since)| pass.now_ms.saturating_sub(*since) > patience)
}

/// Voters that are well beyond a quorum; negative: it has lost it.
fn spare(pass: &Pass, region: &RegionView) -> isize {
    region.voters_well(pass.view) as isize - region.quorum() as isize
}

fn plan(pass: &Pass, region: &RegionView) -> Result<(Plan, String), String> {
    let (view, config) = (pass.view, pass.config);
    let id = region.id();
    if spare(pass, region) < 0 {
        let (well, voters) = (region.voters_well(view), region.voters().count());
        return Err(format!("{id} has lost its quorum, {well} of {voters} voters are well; bring its stores back"));
    }
    if !region.news.leader.is_valid() {
        return Err(format!("no leader of {id} is known"));
    }
    let (lost, mut staying): (Vec<StoreId>, Vec<StoreId>) =
        region.voter_stores().into_iter().partition(|store| is_lost(pass, region, *store));
    if staying.len() > config.replicas {
        while staying.len() > config.replicas {
            let surplus = surplus(pass, region, &staying);
            staying.retain(|store| *store != surplus);
        }
        return towards(region, &staying, format!("more than {} replicas", config.replicas));
    }
    let mut none = None;
    while staying.len() < config.replicas {
        match choose::target(view, config, region, &staying) {
            Ok(store) => staying.push(store),
            Err(why) => {
                none = Some(why);
                break;
            }
        }
    }
    let gained = staying.len() > region.voters().count() - lost.len();
    if let Some(why) = none.filter(|_| !gained) {
        // Learners that nobody is to bring up are removed even so.
        return match region.peers().iter().any(|peer| peer.learner) {
            true => towards(region, &region.voter_stores(), "a learner was left over".to_owned()),
            false => Err(why),
        };
    }
    let why = match lost.first() {
        Some(store) => format!("the replica on {store} is lost"),
        None if region.voters().count() < config.replicas => {
            format!("{} of {} replicas", region.voters().count(), config.replicas)
        }
        None => "a learner was left over".to_owned(),
    };
    // Fewer replicas than wanted, because nobody takes the last ones: then the lost ones stay counted, so that the
    // quorum does not get smaller than it was.
    let missing = config.replicas.saturating_sub(staying.len());
    staying.extend(lost.into_iter().take(missing));
    towards(region, &staying, why)
}

fn towards(region: &RegionView, stores: &[StoreId], why: String) -> Result<(Plan, String), String> {
    let plan = Plan::towards(region, stores, None).ok_or_else(|| format!("{} is as it shall be", region.id()))?;
    Ok((plan, why))
}

/// The voter that is missed least: not well, on a store that is to be emptied, close to others, on a full store; the
/// leader only if it is that.
fn surplus(pass: &Pass, region: &RegionView, voters: &[StoreId]) -> StoreId {
    let view = pass.view;
    let missed = |id: &&StoreId| {
        let rest: Vec<StoreId> = voters.iter().filter(|other| other != id).copied().collect();
        let store = view.store(**id);
        let well = region.can_lead(view, **id);
        let stays = store.is_some_and(|store| store.draining.is_none());
        let emptier = store.map_or(u64::MAX, |store| u64::MAX - store.fill() as u64);
        let leads = region.leader_store() == **id;
        (well, stays, u64::MAX - view.crowding_added(&rest, **id), leads, emptier, **id)
    };
    *voters.iter().min_by_key(missed).expect("a region with too many voters has some")
}
