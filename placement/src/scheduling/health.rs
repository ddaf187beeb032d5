//! What is wrong with the cluster, to what, and what to do: for operators, worst first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use braid_proto::id::{RegionId, StoreId, Term};
use braid_proto::pb::HealthFinding;

use super::words::{begins_paused, drain_waits, listed};
use crate::founding;
use crate::leader::{Memory, Shared};
use crate::schedule::{Kind, RegionView, StoreState, View};

/// Share of a disk below which a store is about to refuse writes.
const NEARLY_FULL: f64 = 0.05;

#[derive(Default)]
struct Findings(Vec<HealthFinding>);

impl Findings {
    fn error(&mut self, text: String) {
        self.0.push(HealthFinding { severity: "error".to_owned(), text });
    }

    fn warning(&mut self, text: String) {
        self.0.push(HealthFinding { severity: "warning".to_owned(), text });
    }
}

/// Everything that is wrong; empty: the cluster is well.
pub fn findings(shared: &Shared, term: Term) -> Vec<HealthFinding> {
    let mut found = Findings::default();
    if let Some(why) = shared.office.status().behind {
        found.error(format!("the sequencer has stopped: {why}"));
    }
    let waiting_for = founding::waiting_for(shared, term);
    if !waiting_for.is_empty() {
        found.error(format!("the cluster has not begun: {waiting_for}; start the stores that are missing"));
    }
    members(shared, &mut found);
    let names: BTreeMap<StoreId, String> = shared.replica.read(|state| {
        state
            .stores()
            .map(|record| (StoreId(record.store.id), format!("{} ({})", record.store.id, record.name)))
            .collect()
    });
    let name = |id: StoreId| names.get(&id).map_or_else(|| id.to_string(), |name| format!("s{name}"));
    let memory = shared.memory(term);
    if let Err(why) = memory.scheduling.ready()
        && waiting_for.is_empty()
    {
        found.warning(format!("nothing is scheduled yet: {why}"));
    }
    regions(&memory, &mut found);
    stores(&memory, &name, &mut found);
    schedulers(shared, &memory, &name, &mut found);
    found.0.sort_by_key(|finding| finding.severity != "error");
    found.0
}

/// Members of placement that do not answer their leader.
fn members(shared: &Shared, found: &mut Findings) {
    let Some(handle) = shared.replica.handle() else { return };
    let silent = handle.report().map(|report| report.down_peers).unwrap_or_default();
    let region = handle.region();
    for peer in region.peers.iter().filter(|peer| silent.contains(&peer.id)) {
        let member = shared.members.iter().find(|member| member.id == peer.store_id);
        let (name, addr) = member.map_or(("?", "?"), |member| (&member.name, &member.peer_addr));
        let (left, all) = (region.peers.len() - silent.len(), region.peers.len());
        found.warning(format!(
            "placement member {name} at {addr} does not answer, {left} of {all} do: start it again; without a majority \
             nothing can be written"
        ));
    }
}

/// What a finding is about.
type Holds<'a> = dyn Fn(&RegionView) -> bool + 'a;

fn regions(memory: &Memory, found: &mut Findings) {
    let view = memory.scheduling.driver().view();
    let replicas = memory.scheduling.settings().config.replicas;
    let mut ids: BTreeSet<RegionId> = view.index().unwell.clone();
    let silent = || view.stores().filter(|store| !store.is_up());
    ids.extend(silent().flat_map(|store| store.replicas.iter().copied()));
    for (_, off) in view.index().by_voters.iter().filter(|(voters, _)| **voters != replicas) {
        ids.extend(off);
    }
    let looked_at = || ids.iter().filter_map(|id| view.region(*id));
    let without_quorum: BTreeSet<RegionId> =
        looked_at().filter(|region| region.voters_well(view) < region.quorum()).map(RegionView::id).collect();
    if !without_quorum.is_empty() {
        let (count, listed) = (without_quorum.len(), listed(without_quorum.iter().copied()));
        found.error(format!(
            "{count} regions have no quorum of voters that are well ({listed}): their keys cannot be read or written; \
             bring the stores of their replicas back"
        ));
    }
    let leads = |region: &&RegionView| view.store(region.leader_store()).is_some_and(|store| store.is_up());
    let mut leaderless: BTreeSet<RegionId> = memory.regions.leaderless().clone();
    leaderless.extend(silent().flat_map(|store| store.leaders.iter().copied()));
    leaderless.retain(|id| !without_quorum.contains(id));
    if !leaderless.is_empty() {
        let (count, listed) = (leaderless.len(), listed(leaderless.iter().copied()));
        found.error(format!(
            "{count} regions have no leader that is known ({listed}): a new one is elected within seconds if a majority \
             of their stores is up"
        ));
    }
    let serving = || looked_at().filter(leads).filter(|region| !without_quorum.contains(&region.id()));
    let of =
        |holds: &Holds| -> Vec<RegionId> { serving().filter(|region| holds(region)).map(RegionView::id).collect() };
    let ill = |region: &RegionView| has_silent_voter(region, view);
    let few = |region: &RegionView| !ill(region) && region.voters().count() < replicas;
    let many = |region: &RegionView| !ill(region) && region.voters().count() > replicas;
    let classes: [(&Holds, &str); 3] = [
        (&ill, "have replicas that do not answer: one more loss may stop them; see the stores that are not up"),
        (&few, "have fewer replicas than they should: the repair scheduler adds them where a store takes them"),
        (&many, "have more replicas than they should: the repair scheduler takes them away"),
    ];
    for (holds, what) in classes {
        let ids = of(holds);
        if !ids.is_empty() {
            found.warning(format!("{} regions ({}) {what}", ids.len(), listed(ids.iter().copied())));
        }
    }
}

fn has_silent_voter(region: &RegionView, view: &View) -> bool {
    let is_down = |id: u64| region.news.down.iter().any(|down| down.0 == id);
    region
        .voters()
        .any(|peer| is_down(peer.id) || !view.store(StoreId(peer.store_id)).is_some_and(|store| store.is_up()))
}

fn stores(memory: &Memory, name: &impl Fn(StoreId) -> String, found: &mut Findings) {
    let scheduling = &memory.scheduling;
    let (config, view, now) = (&scheduling.settings().config, scheduling.driver().view(), Instant::now());
    for store in view.stores() {
        let (id, name, held) = (store.id, name(store.id), store.replicas.len());
        let silent = memory.presence.silence(id, now).as_secs();
        match store.state {
            StoreState::Up => {}
            StoreState::Removed if held == 0 => continue,
            StoreState::Removed => {
                found.warning(format!(
                    "{name} has been removed and {held} regions still count on it: they are repaired"
                ));
                continue;
            }
            StoreState::Disconnected { .. } => {
                found.warning(format!("{name} has not been heard for {silent} s: see whether its process runs"));
            }
            StoreState::Down { .. } if store.is_lost(scheduling.now_ms(), config.store_down_ms_max) => {
                found.error(format!(
                    "{name} has been silent for {silent} s: {held} regions with a replica there are repaired elsewhere; \
                     start it again, or remove it with `braid admin store remove`"
                ));
            }
            StoreState::Down { .. } => {
                let patience = config.store_down_ms_max / 1_000;
                found.error(format!(
                    "{name} has been silent for {silent} s: start it again; after {patience} s the replicas of its {held} \
                     regions are rebuilt elsewhere"
                ));
            }
        }
        let free =
            if store.capacity_bytes == 0 { 1.0 } else { store.available_bytes as f64 / store.capacity_bytes as f64 };
        let percent = free * 100.0;
        if free < NEARLY_FULL {
            found.error(format!(
                "{name} has {percent:.1} % of its disk free and is about to refuse writes: free some space"
            ));
        } else if free < config.space_reserve {
            found.warning(format!(
                "{name} has {percent:.1} % of its disk free: no replicas are moved there; add stores"
            ));
        }
    }
    let in_service = view.in_service().count();
    if in_service < config.replicas && view.stores().next().is_some() {
        found.warning(format!(
            "{in_service} stores are in service, {} replicas of a region need as many: add stores",
            config.replicas
        ));
    }
}

fn schedulers(shared: &Shared, memory: &Memory, name: &impl Fn(StoreId) -> String, found: &mut Findings) {
    let driver = memory.scheduling.driver();
    let expected = |kind: Kind| begins_paused(kind, &shared.setup.paused);
    let paused: Vec<&str> =
        Kind::ALL.into_iter().filter(|kind| driver.is_paused(*kind) && !expected(*kind)).map(Kind::name).collect();
    if !paused.is_empty() {
        found.warning(format!(
            "schedulers are paused: {}; `braid admin scheduler resume` lets them go on",
            paused.join(", ")
        ));
    }
    for store in driver.view().stores().filter(|store| store.draining.is_some()) {
        let why = drain_waits(&memory.scheduling, store.id);
        if !why.is_empty() && store.state != StoreState::Removed {
            found.warning(format!("the drain of {} waits: {why}", name(store.id)));
        }
    }
}
