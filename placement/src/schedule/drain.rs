//! Drain: a store is emptied. First its leaders go, so that clients notice one short change each, then its replicas.

use braid_proto::id::StoreId;

use super::choose;
use super::plan::Plan;
use super::scheduler::{Findings, Pass, Proposal};
use super::view::{StoreView, View, around};

/// Regions of a store looked at in one pass.
const LOOKED_AT_MAX: usize = 128;

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Leaders that it had when the drain began.
    pub leaders_total: usize,
    /// Of them, those that are elsewhere.
    pub leaders_moved: usize,
    /// Replicas that it held when the drain began.
    pub replicas_total: usize,
    /// Of them, those that are elsewhere.
    pub replicas_moved: usize,
}

impl Progress {
    /// Whether the store is empty.
    pub fn is_done(&self) -> bool {
        self.replicas_moved == self.replicas_total
    }
}

/// How far the drain of a store is; `None` if it is not drained.
pub fn progress(view: &View, store: StoreId) -> Option<Progress> {
    let store = view.store(store)?;
    let drain = store.draining?;
    // More than at the beginning: splits, and operators that were on the way.
    let (replicas_total, leaders_total) =
        (drain.replicas.max(store.replicas.len()), drain.leaders.max(store.leaders.len()));
    Some(Progress {
        leaders_total,
        leaders_moved: leaders_total - store.leaders.len(),
        replicas_total,
        replicas_moved: replicas_total - store.replicas.len(),
    })
}

pub(super) fn propose(pass: &Pass) -> Proposal {
    let draining: Vec<&StoreView> = pass.view.stores().filter(|store| store.draining.is_some()).collect();
    if draining.is_empty() {
        return Proposal::nothing("no store is being drained");
    }
    let mut found = Findings::default();
    for store in &draining {
        if evict_leaders(pass, store, &mut found) || move_replicas(pass, store, &mut found) {
            break;
        }
    }
    found.proposal("region", || {
        let states = draining.iter().map(|store| match store.replicas.len() {
            0 => format!("{} is empty and can be removed", store.id),
            left => format!("{} still holds {left} replicas, and operators are under way on their regions", store.id),
        });
        states.collect::<Vec<_>>().join("; ")
    })
}

fn evict_leaders(pass: &Pass, store: &StoreView, found: &mut Findings) -> bool {
    for id in around(&store.leaders, pass.seed()).take(LOOKED_AT_MAX) {
        let Some(region) = pass.view.region(id).filter(|region| region.is_free(pass.now_ms)) else { continue };
        // Without another voter that can lead, the replica's move brings one.
        let Some(to) = choose::next_leader(pass.view, region, store.id) else { continue };
        let why = format!("{} is being drained of leaders", store.id);
        if found.take(pass.ready(Plan::transfer(region, to), why), pass.config.plans_per_round) {
            return true;
        }
    }
    false
}

fn move_replicas(pass: &Pass, store: &StoreView, found: &mut Findings) -> bool {
    for id in around(&store.replicas, pass.seed()).take(LOOKED_AT_MAX) {
        let Some(region) = pass.view.region(id).filter(|region| region.goal.is_none()) else { continue };
        let voters = region.voter_stores();
        let evictable = region.leader_store() == store.id && choose::next_leader(pass.view, region, store.id).is_some();
        let held = region.held(pass.now_ms).or_else(|| {
            // One after the other: repair goes first, then the leader.
            let surplus = !voters.contains(&store.id) || voters.len() > pass.config.replicas;
            surplus.then(|| format!("{id} has more peers than it shall have, which the repair scheduler takes away"))
        });
        if let Some(why) = held {
            found.take(Err(why), pass.config.plans_per_round);
            continue;
        }
        if evictable {
            continue;
        }
        let staying: Vec<StoreId> = voters.iter().filter(|other| **other != store.id).copied().collect();
        let plan = choose::target(pass.view, pass.config, region, &staying).and_then(|to| {
            let plan = Plan::replace(region, store.id, to, None).ok_or_else(|| format!("{id} is on {to} already"))?;
            pass.ready(plan, format!("{} is being drained", store.id))
        });
        if found.take(plan, pass.config.plans_per_round) {
            return true;
        }
    }
    false
}
