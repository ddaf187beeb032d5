//! What placement's leader measures of regions, stores and moves. Gauges fall to 0 when it leads no more.

use metrics::{counter, gauge};

use crate::leader::Memory;
use crate::schedule::{By, Kind, StoreState, Tally};

const STORE_STATES: [&str; 4] = ["up", "disconnected", "down", "removed"];
const REGION_STATES: [&str; 4] = ["known", "leaderless", "unwell", "replicas-off"];

/// See the module's page.
pub struct Meters(());

impl Meters {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self(())
    }

    /// Measures; call it about once a second.
    pub fn set(&self, memory: &mut Memory) {
        let scheduling = &mut memory.scheduling;
        let (view, operators) = (scheduling.driver.view(), scheduling.driver.operators());
        for (by, name) in wanting() {
            let count = operators.active().filter(|operator| operator.plan.by == by).count();
            gauge!("braid_placement_operators", "by" => name).set(count as f64);
        }
        for state in STORE_STATES {
            let count = view.stores().filter(|store| name(&store.state) == state).count();
            gauge!("braid_placement_stores", "state" => state).set(count as f64);
        }
        let right = scheduling.settings.config.replicas;
        let off = view.index().by_voters.iter().filter(|(voters, _)| **voters != right).map(|(_, set)| set.len()).sum();
        let counts = [memory.regions.len(), memory.regions.leaderless().len(), view.index().unwell.len(), off];
        for (state, count) in REGION_STATES.into_iter().zip(counts) {
            gauge!("braid_placement_regions", "state" => state).set(count as f64);
        }
        let tally = operators.tally().clone();
        count(&scheduling.counted, &tally);
        scheduling.counted = tally;
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        wanting().for_each(|(_, name)| gauge!("braid_placement_operators", "by" => name).set(0.0));
        STORE_STATES.into_iter().for_each(|state| gauge!("braid_placement_stores", "state" => state).set(0.0));
        REGION_STATES.into_iter().for_each(|state| gauge!("braid_placement_regions", "state" => state).set(0.0));
    }
}

fn wanting() -> impl Iterator<Item = (By, &'static str)> {
    Kind::ALL.into_iter().map(|kind| (By::Scheduler(kind), kind.name())).chain([(By::Admin, "admin")])
}

fn name(state: &StoreState) -> &'static str {
    match state {
        StoreState::Up => "up",
        StoreState::Disconnected { .. } => "disconnected",
        StoreState::Down { .. } => "down",
        StoreState::Removed => "removed",
    }
}

/// A part of a tally.
type Count = fn(&Tally) -> u64;

/// Counts what has come since the last time.
fn count(before: &Tally, now: &Tally) {
    for (by, name) in wanting() {
        for how in ["done", "failed", "cancelled", "replaced"] {
            let of = |tally: &Tally| tally.ended.get(&(by, how)).copied().unwrap_or(0);
            if of(now) > of(before) {
                counter!("braid_placement_operators_ended_total", "by" => name, "end" => how)
                    .increment(of(now) - of(before));
            }
        }
    }
    let moves: [(&'static str, Count); 4] = [
        ("replica", |tally| tally.copies),
        ("leader", |tally| tally.transfers),
        ("split", |tally| tally.splits),
        ("merge", |tally| tally.merges),
    ];
    for (what, of) in moves {
        counter!("braid_placement_moves_total", "what" => what).increment(of(now) - of(before));
    }
    counter!("braid_placement_moved_bytes_total").increment(now.copied_bytes - before.copied_bytes);
}
