//! Regions: the list, and what is begun on one of them.

use std::time::{Duration, Instant};

use braid_proto::id::{RegionId, StoreId, Term};
use braid_proto::key::KeyRange;
use braid_proto::pb::region_plan_request::Plan as Wanted;
use braid_proto::pb::split_region_request::By as SplitBy;
use braid_proto::pb::{
    AddPeer, AdminSplitRequest, MergeInto, MovePeer, OperatorState, Region, RegionListRequest, RegionPlanRequest,
    RegionState, RemovePeer, ScatterRequest,
};

use super::{Failed, not_committed};
use crate::leader::{Memory, Shared};
use crate::schedule::{By, Kind, Outcome, Plan, Priority, RegionView, Scattered, SplitAt, Step};
use crate::scheduling::{stock, words};

/// How long a split by size or load is waited for.
const SPLIT_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for news.
const PAUSE: Duration = Duration::from_millis(250);

/// The regions that are asked for, in key order, with what is under way on them.
pub fn list(shared: &Shared, term: Term, request: &RegionListRequest) -> Vec<RegionState> {
    let memory = shared.memory(term);
    let (operators, now_ms) = (memory.scheduling.driver().operators(), memory.scheduling.now_ms());
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    let here = |region: &Region| {
        (request.store_id == 0 || region.peer_on(StoreId(request.store_id)).is_some())
            && (request.region_id == 0 || region.id == request.region_id)
    };
    let states = memory.regions.overlapping(&KeyRange { start: request.start.clone(), end: request.end.clone() });
    let wanted = states.filter(|known| here(&known.region)).take(limit);
    wanted
        .map(|known| {
            let operator = operators.on(known.region.region_id()).map(|operator| words::running(operator, now_ms));
            RegionState { operator, ..known.state() }
        })
        .collect()
}

/// Splits a region where its leader finds a key, and waits for both halves.
pub async fn split(shared: &Shared, term: Term, request: AdminSplitRequest) -> Result<(Region, Region), Failed> {
    let at = match request.by() {
        SplitBy::Size => SplitAt::Size,
        SplitBy::Load => SplitAt::Load,
    };
    let id = RegionId(request.region_id);
    stock::fill(shared, term, Some(id)).await.map_err(not_committed)?;
    let operator = {
        let mut memory = shared.memory(term);
        let plan = Plan::split(region(&memory, id)?, at);
        begin(shared, &mut memory, plan)?
    };
    let deadline = Instant::now() + SPLIT_PATIENCE;
    loop {
        let news = shared.news.notified();
        if let Some(halves) = halves(&shared.memory(term), id, operator.id)? {
            return Ok(halves);
        }
        if Instant::now() >= deadline || shared.leading() != Some(term) {
            return Err(format!(
                "{id} is not split yet; `braid admin operator list --region {}` shows how far it is",
                id.0
            ));
        }
        _ = tokio::time::timeout(PAUSE, news).await;
    }
}

/// Both halves if the operator has ended well.
fn halves(memory: &Memory, id: RegionId, operator: u64) -> Result<Option<(Region, Region)>, Failed> {
    let operators = memory.scheduling.driver().operators();
    let operator = crate::schedule::OperatorId(operator);
    let Some(ended) = operators.ended(operator) else {
        return match operators.under_way(operator) {
            Some(_) => Ok(None),
            None => Err("placement's leader has changed; see whether the region was split".to_owned()),
        };
    };
    if ended.outcome != Outcome::Done {
        return Err(ended.outcome.to_string());
    }
    let child = ended.operator.plan.steps.iter().find_map(|step| match step {
        Step::Split { child, .. } => Some(*child),
        _ => None,
    });
    let known = |id: RegionId| memory.regions.get(id).map(|known| known.region.clone());
    // The left half may be reported before the right one.
    Ok(known(id).zip(child.and_then(known)))
}

/// Begins an operator.
pub async fn plan(shared: &Shared, term: Term, request: RegionPlanRequest) -> Result<OperatorState, Failed> {
    let wanted = request.plan.ok_or("say what is to be done with the region")?;
    shared.memory(term).scheduling.ready()?;
    let (Wanted::AddPeer(AddPeer { region_id, .. })
    | Wanted::RemovePeer(RemovePeer { region_id, .. })
    | Wanted::MovePeer(MovePeer { region_id, .. })
    | Wanted::Merge(MergeInto { region_id, .. })) = &wanted;
    stock::fill(shared, term, Some(RegionId(*region_id))).await.map_err(not_committed)?;
    let mut memory = shared.memory(term);
    let plan = match wanted {
        Wanted::AddPeer(AddPeer { region_id, store_id }) => {
            add(shared, &memory, RegionId(region_id), StoreId(store_id))
        }
        Wanted::RemovePeer(RemovePeer { region_id, store_id }) => {
            drop_peer(&memory, RegionId(region_id), StoreId(store_id))
        }
        Wanted::MovePeer(wanted) => move_peer(shared, &memory, &wanted),
        Wanted::Merge(MergeInto { region_id, target_id }) => merge(&memory, RegionId(region_id), RegionId(target_id)),
    }?;
    begin(shared, &mut memory, plan)
}

fn begin(shared: &Shared, memory: &mut Memory, plan: Plan) -> Result<OperatorState, Failed> {
    if let Some(busy) = memory.scheduling.busy(plan.region) {
        return Err(busy);
    }
    let plan = plan.because(By::Admin, Priority::Admin, "an administrator wants it".to_owned());
    let id = memory.scheduling.start(plan)?;
    shared.work.notify_one();
    let (operators, now_ms) = (memory.scheduling.driver().operators(), memory.scheduling.now_ms());
    let running = operators.under_way(id).map(|operator| words::running(operator, now_ms));
    let state = running.or_else(|| operators.ended(id).map(words::ended));
    state.ok_or_else(|| "the operator ended at once".to_owned())
}

fn region(memory: &Memory, id: RegionId) -> Result<&RegionView, Failed> {
    let region = memory.scheduling.driver().view().region(id);
    region.ok_or_else(|| match memory.regions.get(id) {
        Some(_) => format!("no leader of {id} has been heard yet; `braid admin health` says what is missing"),
        None => format!("no region {id}; `braid admin region list` shows the regions"),
    })
}

fn holds(region: &RegionView, store: StoreId) -> Result<(), Failed> {
    match region.news.region.peer_on(store) {
        Some(_) => Ok(()),
        None => Err(format!(
            "{store} holds no peer of {}: its peers are on {}",
            region.id(),
            region.stores().map(|store| store.to_string()).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// Whether a store may be given a peer of a region.
fn takes(shared: &Shared, memory: &Memory, region: &RegionView, id: StoreId) -> Result<(), Failed> {
    let record = shared
        .record(id)
        .ok_or_else(|| format!("there is no store {id}; `braid admin store list` shows the stores"))?;
    if let Some(why) = record.removed {
        return Err(format!("{id} has been removed: {why}"));
    }
    if region.news.region.peer_on(id).is_some() {
        return Err(format!("{id} holds a peer of {} already", region.id()));
    }
    let driver = memory.scheduling.driver();
    let store = driver.view().store(id).ok_or_else(|| format!("{id} has only just joined; try again in a moment"))?;
    crate::schedule::choose::accepts(store, region.news.bytes, driver.config())
}

fn add(shared: &Shared, memory: &Memory, id: RegionId, store: StoreId) -> Result<Plan, Failed> {
    let region = region(memory, id)?;
    takes(shared, memory, region, store)?;
    let driver = memory.scheduling.driver();
    let replicas = driver.config().replicas;
    if region.voters().count() >= replicas && !driver.is_paused(Kind::Repair) {
        return Err(format!(
            "{id} has its {replicas} replicas, and the repair scheduler would take another one away again: move a peer \
             instead, set `replicas` higher, or pause repair"
        ));
    }
    let stores: Vec<StoreId> = region.voter_stores().into_iter().chain([store]).collect();
    Plan::towards(region, &stores, None).ok_or_else(|| format!("{id} is on {store} already"))
}

fn move_peer(shared: &Shared, memory: &Memory, wanted: &MovePeer) -> Result<Plan, Failed> {
    let (from, to) = (StoreId(wanted.from_store), StoreId(wanted.to_store));
    let region = region(memory, RegionId(wanted.region_id))?;
    holds(region, from)?;
    takes(shared, memory, region, to)?;
    if !region.voter_stores().contains(&from) {
        return Err(format!("the peer of {} on {from} is a learner: remove it instead", region.id()));
    }
    let leads = region.leader_store() == from;
    Plan::replace(region, from, to, leads.then_some(to)).ok_or_else(|| format!("{} is on {to} already", region.id()))
}

fn drop_peer(memory: &Memory, id: RegionId, store: StoreId) -> Result<Plan, Failed> {
    let region = region(memory, id)?;
    holds(region, store)?;
    let driver = memory.scheduling.driver();
    let replicas = driver.config().replicas;
    let votes = region.voter_stores().contains(&store);
    let staying: Vec<StoreId> = region.voter_stores().into_iter().filter(|other| *other != store).collect();
    if staying.is_empty() {
        return Err(format!("{store} holds the only replica of {id}: move it to another store instead"));
    }
    if votes && staying.len() < replicas && !driver.is_paused(Kind::Repair) {
        return Err(format!(
            "{id} would have {} of {replicas} replicas, and the repair scheduler would add one again: move the peer to \
             another store instead, set `replicas` lower, or pause repair",
            staying.len()
        ));
    }
    let well = staying.iter().filter(|other| region.can_lead(driver.view(), **other)).count();
    if votes && well < staying.len() / 2 + 1 {
        let ailment = region.ailment(driver.view(), region.voters().count()).unwrap_or_default();
        return Err(format!(
            "{id} would have {well} voters that are well of {}, that is no quorum: bring their stores back first, or let \
             them catch up ({ailment})",
            staying.len()
        ));
    }
    Plan::towards(region, &staying, None).ok_or_else(|| format!("{id} is as it shall be"))
}

fn merge(memory: &Memory, id: RegionId, target: RegionId) -> Result<Plan, Failed> {
    let (source, into) = (region(memory, id)?, region(memory, target)?);
    let (one, other) = (&source.news.region, &into.news.region);
    let adjoin = |left: &Region, right: &Region| !left.end.is_empty() && left.end == right.start;
    if id == target || !(adjoin(one, other) || adjoin(other, one)) {
        return Err(format!(
            "{target} is no neighbour of {id}: only a region that begins where the other ends takes it"
        ));
    }
    if let Some(busy) = memory.scheduling.busy(target) {
        return Err(busy);
    }
    // A learner that an earlier plan left with the source is no hindrance: the plan puts its peers where the target's are.
    let view = memory.scheduling.driver().view();
    let unwell = [(source, source.all_well()), (into, into.is_calm())].into_iter().find(|(_, well)| !well);
    if let Some((region, _)) = unwell {
        let ailment = region.ailment(view, region.voters().count());
        let ailment =
            ailment.unwrap_or_else(|| format!("{} has no leader, or its voters are being changed", region.id()));
        return Err(format!("{id} cannot be merged into {target} as they are: {ailment}"));
    }
    Ok(Plan::merge(source, into))
}

/// Wants regions scattered: those that are named, or those that share keys with a range.
pub fn scatter(shared: &Shared, term: Term, request: &ScatterRequest) -> Result<Scattered, Failed> {
    let mut memory = shared.memory(term);
    let ids: Vec<RegionId> = match request.region_ids.is_empty() {
        false => request.region_ids.iter().copied().map(RegionId).collect(),
        true => {
            let range = KeyRange { start: request.start.clone(), end: request.end.clone() };
            let all = memory.regions.overlapping(&range).map(|known| known.region.region_id());
            // Without a leader a region cannot move, and schedulers do not know of it.
            all.filter(|id| memory.scheduling.driver().view().region(*id).is_some()).collect()
        }
    };
    for id in &ids {
        region(&memory, *id)?;
    }
    memory.scheduling.scatter(&ids)
}
