//! Stores: the list, what is kept of them, and their end.

use std::time::Instant;

use braid_proto::id::{StoreId, Term};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{
    DrainProgress, RemoveStore, SetStore, StoreRemoveRequest, StoreSetRequest, StoreState, StoredDrain,
};

use super::{Failed, not_committed};
use crate::leader::{Memory, Shared};
use crate::schedule::view::WEIGHT_MIN;
use crate::schedule::{RegionView, StoreState as Seen};
use crate::scheduling::words::{self, drain_waits};
use crate::state::StoreRecord;

/// Largest weight: a store that shall have a thousand times what another has.
const WEIGHT_MAX: f64 = 1_000.0;
/// Labels of a store, and bytes of a label's name and value: they travel with every heartbeat.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;

/// Every store that ever joined.
pub fn list(shared: &Shared, term: Term) -> Vec<StoreState> {
    shared.resync(term);
    let records: Vec<StoreRecord> = shared.replica.read(|state| state.stores().cloned().collect());
    let memory = shared.memory(term);
    records.into_iter().map(|record| state(&memory, record)).collect()
}

fn state(memory: &Memory, record: StoreRecord) -> StoreState {
    let (id, now, now_ms) = (StoreId(record.store.id), Instant::now(), memory.scheduling.now_ms());
    let seen = memory.scheduling.driver().view().store(id);
    let held = seen.map(|seen| seen.held).unwrap_or_default();
    let drain = record.drain.filter(|_| record.removed.is_none()).map(|drain| DrainProgress {
        seconds: now_ms.saturating_sub(drain.since_ms) / 1_000,
        replicas_at_start: drain.replicas as u32,
        replicas_left: held.replicas as u32,
        leaders_left: held.leaders as u32,
        waits_for: drain_waits(&memory.scheduling, id),
    });
    StoreState {
        store: Some(record.as_seen()),
        stats: memory.presence.stats(id),
        state: if record.removed.is_some() { "removed" } else { memory.presence.state(id, now) }.to_owned(),
        seconds_since_heartbeat: memory.presence.silence(id, now).as_secs(),
        weight: record.weight,
        drain,
        replicas: held.replicas as u32,
        leaders: held.leaders as u32,
        bytes: held.bytes,
        ops_per_second: held.ops,
        written_per_second: held.written,
        receiving: seen.map_or(0, |seen| seen.receiving as u32),
        sending: seen.map_or(0, |seen| seen.sending as u32),
        name: record.name,
    }
}

/// Changes what is kept of a store.
pub async fn set(shared: &Shared, term: Term, request: StoreSetRequest) -> Result<(), Failed> {
    let id = StoreId(request.store_id);
    let record = known(shared, id)?;
    check_labels(&record, &request)?;
    if let Some(weight) = request.weight
        && !(WEIGHT_MIN..=WEIGHT_MAX).contains(&weight)
    {
        return Err(format!(
            "a weight of {weight} is not possible, {WEIGHT_MIN} to {WEIGHT_MAX} are; drain a store to empty it"
        ));
    }
    shared.resync(term);
    let mut begun = None;
    if request.drain == Some(true) && record.drain.is_none() {
        begun = Some(begin_drain(shared, term, id)?);
    }
    let StoreSetRequest { store_id, labels, weight, drain } = request;
    let set = SetStore { store_id, labels, weight, drain, begun };
    shared.commit(term, Op::SetStore(set)).await.map_err(not_committed)?;
    shared.resync(term);
    Ok(())
}

/// The store, if it has joined and is not removed.
fn known(shared: &Shared, id: StoreId) -> Result<StoreRecord, Failed> {
    let record = shared
        .record(id)
        .ok_or_else(|| format!("there is no store {id}; `braid admin store list` shows the stores"))?;
    match &record.removed {
        Some(why) => Err(format!("{id} has been removed: {why}")),
        None => Ok(record),
    }
}

fn check_labels(record: &StoreRecord, request: &StoreSetRequest) -> Result<(), Failed> {
    let wrong = |text: &String| text.len() > LABEL_BYTES_MAX || text.contains(['=', ',', '\n']);
    if request.labels.keys().any(String::is_empty) {
        return Err("a label needs a name: NAME=VALUE".to_owned());
    }
    if let Some((name, value)) = request.labels.iter().find(|(name, value)| wrong(name) || wrong(value)) {
        return Err(format!(
            "label {name}={value} is not possible: no '=', ',' or line break in names and values, and at most \
             {LABEL_BYTES_MAX} bytes"
        ));
    }
    let mut names: std::collections::BTreeSet<&String> = record.set_labels.keys().collect();
    names.extend(request.labels.keys());
    match names.len() > LABELS_MAX {
        true => Err(format!("{} labels of a store, {LABELS_MAX} are possible", names.len())),
        false => Ok(()),
    }
}

/// What a store holds as its drain begins, if enough others are left for its replicas.
fn begin_drain(shared: &Shared, term: Term, id: StoreId) -> Result<StoredDrain, Failed> {
    let memory = shared.memory(term);
    memory.scheduling.ready()?;
    let (view, replicas) = (memory.scheduling.driver().view(), memory.scheduling.settings().config.replicas);
    let lasts = |state: Seen| matches!(state, Seen::Up | Seen::Disconnected { .. });
    let others = view.stores().filter(|other| other.id != id && other.draining.is_none() && lasts(other.state));
    let (others, store) = (others.count(), view.store(id));
    let held = store.map_or((0, 0), |store| (store.replicas.len() as u64, store.leaders.len() as u64));
    if others < replicas && held.0 > 0 {
        return Err(format!(
            "without {id} there are {others} stores for {replicas} replicas of each region: add a store first"
        ));
    }
    Ok(StoredDrain { since_ms: memory.scheduling.now_ms(), replicas: held.0, leaders: held.1 })
}

/// A store never comes back.
pub async fn remove(shared: &Shared, term: Term, request: StoreRemoveRequest) -> Result<(), Failed> {
    let id = StoreId(request.store_id);
    known(shared, id)?;
    shared.resync(term);
    may_be_removed(shared, term, id, request.force)?;
    let why = "an administrator removed it".to_owned();
    shared.commit(term, Op::RemoveStore(RemoveStore { store_id: id.0, why })).await.map_err(not_committed)?;
    tracing::warn!(store = %id, force = request.force, "a store is removed for good");
    shared.resync(term);
    Ok(())
}

fn may_be_removed(shared: &Shared, term: Term, id: StoreId, force: bool) -> Result<(), Failed> {
    let memory = shared.memory(term);
    memory.scheduling.ready()?;
    let view = memory.scheduling.driver().view();
    let Some(store) = view.store(id) else { return Ok(()) };
    let held = store.replicas.len();
    if memory.presence.is_up(id, Instant::now()) && held > 0 {
        return Err(format!(
            "{id} is up and holds {held} replicas: empty it first with `braid admin store drain {id}`, or stop its process \
             if it is to be given up"
        ));
    }
    // Peers there were reported by others: what nobody has reported yet might be there too.
    let loses = |region: &&RegionView| {
        let others = region.voters().filter(|peer| peer.store_id != id.0 && region.is_well(view, peer)).count();
        region.voters().any(|peer| peer.store_id == id.0) && others < region.quorum()
    };
    let lost: Vec<_> =
        store.replicas.iter().filter_map(|id| view.region(*id)).filter(loses).map(RegionView::id).collect();
    if !lost.is_empty() && !force {
        return Err(format!(
            "{} regions ({}) would have no quorum of voters that are well without {id}: bring other stores of theirs back, or \
             wait until their replicas have caught up; --force gives up what only {id} holds",
            lost.len(),
            words::listed(lost.iter().copied())
        ));
    }
    Ok(())
}
