//! Schedulers, their settings, and operators.

use std::collections::BTreeMap;

use braid_proto::id::{RegionId, Term};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{
    OperatorListRequest, OperatorState, SchedulerSetRequest, SchedulerState, SetScheduling, Setting as SettingState,
};

use super::{Failed, not_committed};
use crate::leader::Shared;
use crate::schedule::{Driver, Kind, settings};
use crate::scheduling::words;

/// What stands for all schedulers.
const ALL: &str = "all";

/// What each scheduler does or waits for, and every setting.
pub fn list(shared: &Shared, term: Term) -> (Vec<SchedulerState>, Vec<SettingState>) {
    shared.resync(term);
    let memory = shared.memory(term);
    let (scheduling, now_ms) = (&memory.scheduling, memory.scheduling.now_ms());
    let unready = scheduling.ready().err();
    let driver = scheduling.driver();
    let schedulers = driver.said().map(|(kind, said)| SchedulerState {
        name: kind.name().to_owned(),
        paused: driver.is_paused(kind),
        seconds_since: if said.at_ms == 0 { 0 } else { now_ms.saturating_sub(said.at_ms) / 1_000 },
        said: match (driver.is_paused(kind), &unready) {
            (true, Some(why)) => format!("{}; {why}", words::paused(kind, &shared.setup.paused)),
            (true, None) => would(driver, kind, &shared.setup.paused, now_ms),
            (false, Some(why)) => why.clone(),
            (false, None) => said.text,
        },
        started: said.started,
    });
    let settings = settings::TABLE.iter().map(|setting| SettingState {
        name: setting.name.to_owned(),
        value: setting.value(scheduling.settings()),
        about: setting.about.to_owned(),
        default_value: setting.value(&shared.setup.defaults),
    });
    (schedulers.collect(), settings.collect())
}

/// That a scheduler is paused, and what it would do if it were not.
fn would(driver: &Driver, kind: Kind, defaults_paused: &[String], now_ms: u64) -> String {
    format!("{}; it would say: {}", words::paused(kind, defaults_paused), driver.propose(kind, now_ms).said)
}

/// Pauses, resumes, sets.
pub async fn set(shared: &Shared, term: Term, request: SchedulerSetRequest) -> Result<(), Failed> {
    let (pause, resume) = (named(&request.pause)?, named(&request.resume)?);
    if let Some(both) = pause.iter().find(|name| resume.contains(name)) {
        return Err(format!("{both} cannot be paused and resumed at once"));
    }
    let mut settings: BTreeMap<String, String> = shared.replica.read(|state| state.scheduling().settings.clone());
    for (name, value) in &request.settings {
        if settings::Setting::named(name).is_none() {
            return Err(format!("there is no setting {name}; `braid admin scheduler settings` shows them"));
        }
        match value.is_empty() {
            true => _ = settings.remove(name),
            false => _ = settings.insert(name.clone(), value.clone()),
        }
    }
    shared.setup.defaults.with(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
    let change = SetScheduling { pause, resume, settings: request.settings };
    shared.commit(term, Op::SetScheduling(change)).await.map_err(not_committed)?;
    shared.resync(term);
    Ok(())
}

fn named(names: &[String]) -> Result<Vec<String>, Failed> {
    let mut kinds: Vec<Kind> = Vec::new();
    for name in names {
        match Kind::named(name) {
            Some(kind) => kinds.push(kind),
            None if name == ALL => kinds.extend(Kind::ALL),
            None => {
                let known = Kind::ALL.map(Kind::name).join(", ");
                return Err(format!("there is no scheduler {name}; there are {known}, and {ALL} for all of them"));
            }
        }
    }
    Ok(kinds.into_iter().map(|kind| kind.name().to_owned()).collect())
}

/// Operators under way, and if wanted those that have ended, the last one first.
pub fn operators(shared: &Shared, term: Term, request: &OperatorListRequest) -> Vec<OperatorState> {
    let memory = shared.memory(term);
    let (operators, now_ms) = (memory.scheduling.driver().operators(), memory.scheduling.now_ms());
    let running = operators.active().map(|operator| words::running(operator, now_ms));
    let ended = operators.history().filter(|_| request.ended).map(words::ended);
    let wanted = |state: &OperatorState| request.region_id == 0 || state.region_id == request.region_id;
    running.chain(ended).filter(wanted).collect()
}

/// Ends the operator of a region, or all of them.
pub fn cancel(shared: &Shared, term: Term, region: RegionId) -> Result<usize, Failed> {
    const WHY: &str = "an administrator cancelled it";
    let mut memory = shared.memory(term);
    if region.is_valid() {
        return match memory.scheduling.cancel(region, WHY) {
            true => Ok(1),
            false => Err(format!("no operator is under way on {region}; `braid admin operator list` shows them")),
        };
    }
    let all: Vec<RegionId> =
        memory.scheduling.driver().operators().active().map(|operator| operator.plan.region).collect();
    Ok(all.into_iter().filter(|region| memory.scheduling.cancel(*region, WHY)).count())
}
