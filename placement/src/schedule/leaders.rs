//! Balance of leaders: stores lead about as many regions, by weight. Nothing is copied for it.
//!
//! As with bytes, a transfer is made only if the giving store leads at least as many as the taking one afterwards, and
//! hot regions are left to the hot scheduler.

use super::plan::Plan;
use super::replicas::differ;
use super::scheduler::{Pass, Proposal};
use super::view::{RegionView, StoreView, around};
use super::{choose, hot};

/// Stores with many leaders tried in one pass.
const SOURCES_MAX: usize = 16;
/// Leaders of a store looked at in one pass.
const LOOKED_AT_MAX: usize = 128;

pub(super) fn propose(pass: &Pass) -> Proposal {
    let view = pass.view;
    let mut stores: Vec<&StoreView> = view.in_service().collect();
    stores.sort_by(|a, b| b.led().total_cmp(&a.led()).then(a.id.cmp(&b.id)));
    let ([most, ..], [.., least]) = (&stores[..], &stores[..]) else {
        return Proposal::nothing("no store is in service");
    };
    if most.id == least.id {
        return Proposal::nothing("there is only one store in service");
    }
    let mean = choose::mean(view, |store| store.planned.leaders);
    let tolerance = pass.config.leader_tolerance;
    let differ = differ("leaders", most.id, least.id, most.led() - least.led(), mean, tolerance);
    if most.led() - least.led() <= tolerance * mean {
        return Proposal::nothing(differ);
    }
    for source in stores.iter().take(SOURCES_MAX) {
        let Some((region, target)) = best(pass, source, tolerance * mean) else { continue };
        let plan = Plan::transfer(region, target.id);
        let why =
            format!("{} leads {} regions, {} {}", source.id, source.planned.leaders, target.id, target.planned.leaders);
        return match pass.ready(plan, why) {
            Ok(plan) => Proposal::one(plan),
            Err(why) => Proposal::waits(format!("{differ}; waits: {why}")),
        };
    }
    let sources = || stores.iter().take(SOURCES_MAX);
    if !sources().any(|source| stores.iter().any(|target| is_less(source, target, tolerance * mean))) {
        return Proposal::nothing(format!("{differ}, but one leader more or less makes them no more even"));
    }
    match sources().find_map(|source| passing(pass, source, tolerance * mean)) {
        Some(why) => Proposal::waits(format!("{differ}; waits: {why}")),
        None => Proposal::stays(format!(
            "{differ}, and that stays so: no region led by {} has a replica that could lead on a store that leads clearly \
             fewer, or it is hot and left to the hot scheduler",
            most.id
        )),
    }
}

/// Why a leader that would make stores more even is not transferred now, if that passes.
fn passing(pass: &Pass, source: &StoreView, tolerated: f64) -> Option<String> {
    let (view, replicas) = (pass.view, pass.config.replicas);
    let mut led = around(&source.leaders, pass.seed()).take(LOOKED_AT_MAX).filter_map(|id| view.region(id));
    led.find_map(|region| {
        let others = region.voter_stores().into_iter().filter(|id| *id != source.id);
        let targets = others.filter_map(|id| view.store(id)).filter(|target| target.is_in_service());
        let targets: Vec<&StoreView> = targets.filter(|target| is_less(source, target, tolerated)).collect();
        let held = || region.held(pass.now_ms).or_else(|| region.ailment(view, replicas));
        let silent = || targets.iter().find(|target| !target.is_fresh()).map(|target| choose::silent(target));
        if targets.is_empty() { None } else { held().or_else(silent) }
    })
}

/// Whether a transfer makes two stores more even, and they differ by more than is tolerated.
fn is_less(source: &StoreView, target: &StoreView, tolerated: f64) -> bool {
    let apart = source.led() - target.led();
    apart > tolerated && apart >= 1.0 / source.weight + 1.0 / target.weight
}

/// The region whose leader goes to the store that leads least.
fn best<'a>(pass: &Pass<'a>, source: &'a StoreView, tolerated: f64) -> Option<(&'a RegionView, &'a StoreView)> {
    let view = pass.view;
    let regions = around(&source.leaders, pass.seed()).take(LOOKED_AT_MAX).filter_map(|id| view.region(id));
    let free = regions
        .filter(|region| region.is_free(pass.now_ms) && region.is_calm() && !hot::is_hot(view, pass.config, region));
    let with_target = free.filter_map(|region| {
        let target = view.store(choose::next_leader(view, region, source.id)?)?;
        is_less(source, target, tolerated).then_some((region, target))
    });
    with_target.min_by(|(_, a), (_, b)| a.led().total_cmp(&b.led()))
}
