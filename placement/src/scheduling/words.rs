//! Operators, stores and regions in words, as administrators read them.

use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::OperatorState;

use super::Scheduling;
use crate::schedule::{Ended, Kind, Operator};

/// Ids that a text lists at most.
const LISTED_MAX: usize = 5;

/// An operator that is under way.
pub fn running(operator: &Operator, now_ms: u64) -> OperatorState {
    OperatorState {
        id: operator.id.0,
        region_id: operator.plan.region.0,
        by: operator.plan.by.to_string(),
        why: operator.plan.why.clone(),
        steps: operator.plan.steps.iter().map(ToString::to_string).collect(),
        at: operator.at as u32,
        seconds: now_ms.saturating_sub(operator.started_ms) / 1_000,
        said: operator.said.clone(),
        state: "running".to_owned(),
    }
}

/// An operator that is under way, in a line: how old it is, at which step and since when, and what it says.
pub fn line(operator: &Operator, now_ms: u64) -> String {
    let seconds = |since_ms: u64| now_ms.saturating_sub(since_ms) / 1_000;
    let (steps, at) = (&operator.plan.steps, operator.at);
    let step = steps.get(at).map_or_else(|| "ends".to_owned(), ToString::to_string);
    let said = if operator.said.is_empty() { String::new() } else { format!(" ({})", operator.said) };
    format!(
        "{} on {} by {}, under way for {} s, is at step {} of {} for {} s: {step}{said}",
        operator.id,
        operator.plan.region,
        operator.plan.by,
        seconds(operator.started_ms),
        steps.len().min(at + 1),
        steps.len(),
        seconds(operator.step_since_ms)
    )
}

/// Whether a new cluster begins without a scheduler.
pub fn begins_paused(kind: Kind, defaults_paused: &[String]) -> bool {
    defaults_paused.iter().any(|name| name == kind.name())
}

/// That a scheduler is paused, and how it is resumed.
pub fn paused(kind: Kind, defaults_paused: &[String]) -> String {
    let default = if begins_paused(kind, defaults_paused) { ", as in every new cluster" } else { "" };
    format!("{kind} is paused{default}; `braid admin scheduler resume {kind}` lets it go on")
}

/// An operator that has ended.
pub fn ended(ended: &Ended) -> OperatorState {
    OperatorState {
        said: ended.outcome.to_string(),
        state: ended.outcome.name().to_owned(),
        ..running(&ended.operator, ended.at_ms)
    }
}

/// `r1, r2 and 7 more`.
pub fn listed(mut regions: impl ExactSizeIterator<Item = RegionId>) -> String {
    let count = regions.len();
    let first: Vec<String> = regions.by_ref().take(LISTED_MAX).map(|id| id.to_string()).collect();
    match count.saturating_sub(LISTED_MAX) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Why nothing moves away from a store that is to be emptied; empty if something does, or it is empty.
pub fn drain_waits(scheduling: &Scheduling, store: StoreId) -> String {
    let (driver, now_ms) = (scheduling.driver(), scheduling.now_ms());
    let Some(view) = driver.view().store(store).filter(|store| store.draining.is_some()) else { return String::new() };
    let leaves = |operator: &&Operator| {
        driver.view().region(operator.plan.region).is_some_and(|region| region.news.region.peer_on(store).is_some())
    };
    if view.replicas.is_empty() || driver.operators().active().any(|operator| leaves(&operator)) {
        return String::new();
    }
    if let Err(why) = scheduling.ready() {
        return why;
    }
    if driver.is_paused(Kind::Drain) {
        return "the drain scheduler is paused; `braid admin scheduler resume drain` lets it go on".to_owned();
    }
    let proposal = driver.propose(Kind::Drain, now_ms);
    if proposal.plans.is_empty() { proposal.said } else { String::new() }
}
