//! What stores and proxies tell placement, and what they learn from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::id::{ClusterId, Incarnation, Revision, StoreId, Term};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::placement_server::Placement;
use braid_proto::pb::{
    AdmitStore, AwaitDroppedRequest, AwaitDroppedResponse, CompactRequest, CompactResponse, PlacementHeader,
    ProxyHeartbeatRequest, ProxyHeartbeatResponse, ProxyMember, RegisterStoreRequest, RegisterStoreResponse,
    RouteRequest, RouteResponse, StatusRequest, StatusResponse, StoreHeartbeatRequest, StoreHeartbeatResponse,
};
use tonic::{Request, Response, Status};

use crate::compaction::{self, Failed};
use crate::founding;
use crate::leader::Shared;
use crate::presence::Beat;
use crate::state::Applied;

/// Routes that one answer holds at most.
const ROUTES_MAX: usize = 1_024;
/// How long a registration waits for placement's group; the store tries again.
const ADMIT_PATIENCE: Duration = Duration::from_secs(5);

/// A heartbeat that comes so long after another store has taken the name: the old store lives.
const STILL_SPEAKS: Duration = Duration::from_millis(1_500);
/// Between two looks whether it does.
const NAMESAKE_LOOK: Duration = Duration::from_millis(200);

/// See the module's page.
pub struct PlacementService {
    shared: Arc<Shared>,
}

impl PlacementService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn admit(&self, term: Term, request: &RegisterStoreRequest) -> Result<StoreId, RegisterFailure> {
        let ours = self.shared.cluster_id;
        if request.cluster_id != 0 && request.cluster_id != ours.0 {
            return Err(RegisterFailure::Refused(format!(
                "the store's folder belongs to cluster {}, this is cluster {ours}; point it at its own cluster's \
                 placement, or give it an empty folder",
                ClusterId(request.cluster_id)
            )));
        }
        if request.name.is_empty() || request.peer_addr.is_empty() {
            let what = if request.name.is_empty() { "a name" } else { "an address that others reach it at" };
            return Err(RegisterFailure::Refused(format!("the store must say {what}")));
        }
        let mut admit = AdmitStore {
            store_id: request.store_id,
            name: request.name.clone(),
            peer_addr: request.peer_addr.clone(),
            labels: request.labels.clone(),
            version: request.version.clone(),
            replaces: Vec::new(),
        };
        if let Some(known) = self.shared.replica.read(|state| state.is_known(&admit)) {
            return match self.removed(known) {
                None => Ok(known),
                Some(why) => Err(RegisterFailure::Refused(why)),
            };
        }
        let named_before =
            self.shared.record(StoreId(request.store_id)).is_some_and(|known| known.name == request.name);
        if !named_before {
            for namesake in self.shared.replica.read(|state| state.namesakes(&admit)) {
                self.outlive(term, namesake, request).await?;
                admit.replaces.push(namesake.0);
            }
        }
        let decided = tokio::time::timeout(ADMIT_PATIENCE, self.shared.replica.propose(term, Op::AdmitStore(admit)));
        match decided.await {
            Ok(Ok(Applied::Store(id))) => Ok(id),
            Ok(Ok(Applied::Refused(_))) => {
                let id = StoreId(request.store_id);
                Err(RegisterFailure::Refused(self.removed(id).unwrap_or_else(|| {
                    format!(
                        "cluster {ours} has no store {id}; give the store an empty folder so that it joins as a new one"
                    )
                })))
            }
            Ok(Ok(other)) => Err(RegisterFailure::Again(format!("registering came to {other:?}"))),
            Ok(Err(error)) => Err(RegisterFailure::Again(error.to_string())),
            Err(_) => Err(RegisterFailure::Again("placement's group does not decide; is a majority up?".to_owned())),
        }
    }

    /// Why a store that was removed is refused for ever.
    fn removed(&self, id: StoreId) -> Option<String> {
        let why = self.shared.record(id)?.removed?;
        Some(format!(
            "{id} has been removed from the cluster ({why}) and never comes back, because others hold its replicas now;              stop the process, and give it an empty folder if it shall join as a new store"
        ))
    }

    /// A store registers under the name of another one, `old`. Only one of them can be alive: the newcomer takes the
    /// place of one that has lost its folder, but not of one that speaks.
    async fn outlive(&self, term: Term, old: StoreId, request: &RegisterStoreRequest) -> Result<(), RegisterFailure> {
        let (came, name) = (Instant::now(), &request.name);
        if request.store_id != 0 {
            return Err(RegisterFailure::Refused(format!(
                "the name {name} belongs to {old}; start {} with its own --name, or remove {old} if it is gone for good",
                StoreId(request.store_id)
            )));
        }
        loop {
            let news = self.shared.news.notified();
            let (heard_at, up) = {
                let memory = self.shared.memory(term);
                (memory.presence.heard_at(old), memory.presence.is_up(old, Instant::now()))
            };
            // What was under way when the newcomer came may still arrive.
            if heard_at.is_some_and(|at| at > came + STILL_SPEAKS) {
                return Err(RegisterFailure::Refused(format!(
                    "{old} is up and has the name {name}; two stores need two names: start this one with another --name"
                )));
            }
            if !up {
                tracing::info!(%old, name, "a store comes with an empty folder: the old one is removed");
                return Ok(());
            }
            if self.shared.leading() != Some(term) {
                return Err(RegisterFailure::Again("placement's leader has changed".to_owned()));
            }
            // It speaks again or counts as silent within seconds.
            _ = tokio::time::timeout(NAMESAKE_LOOK, news).await;
        }
    }

    /// Takes a heartbeat of a known store.
    fn hear(&self, term: Term, beat: StoreHeartbeatRequest, answer: &mut StoreHeartbeatResponse) {
        let id = StoreId(beat.store_id);
        let mut guard = self.shared.memory(term);
        let memory = &mut *guard;
        match memory.presence.store_beat(&beat, Instant::now()) {
            Beat::Replaced(newer) => {
                answer.failed = format!(
                    "{id} was started again since ({newer}; this process is {}): two processes must not use one store's \
                     folder or a copy of it",
                    Incarnation(beat.incarnation)
                );
                return;
            }
            said => answer.want_full = said == Beat::WantFull,
        }
        answer.drop_below = memory.drop_below;
        if beat.full {
            memory.take_all_led(id, &beat.leaders);
        }
        for report in beat.leaders {
            memory.take_report(report);
        }
        answer.gone = memory.gone(beat.lonely);
        answer.gone.extend(memory.removed.tell(id, Instant::now()));
        drop(guard);
        self.shared.work.notify_one();
        if let Some(stats) = beat.stats {
            self.shared.office.hear(Revision(stats.heard_revision));
        }
        self.shared.news.notify_waiters();
    }
}

enum RegisterFailure {
    Refused(String),
    Again(String),
}

#[tonic::async_trait]
impl Placement for PlacementService {
    async fn register_store(
        &self,
        request: Request<RegisterStoreRequest>,
    ) -> Result<Response<RegisterStoreResponse>, Status> {
        let request = request.into_inner();
        let (header, term) = self.shared.header();
        let Some(term) = term else {
            return Ok(Response::new(RegisterStoreResponse { header: Some(header), ..Default::default() }));
        };
        let answer = match self.admit(term, &request).await {
            Ok(id) => {
                self.shared.memory(term).presence.store_joined(id, Instant::now());
                self.shared.news.notify_waiters();
                RegisterStoreResponse { header: Some(header), store_id: id.0, failed: String::new() }
            }
            Err(RegisterFailure::Refused(failed)) => {
                RegisterStoreResponse { header: Some(header), store_id: 0, failed }
            }
            Err(RegisterFailure::Again(why)) => return Err(Status::unavailable(why)),
        };
        Ok(Response::new(answer))
    }

    async fn store_heartbeat(
        &self,
        request: Request<StoreHeartbeatRequest>,
    ) -> Result<Response<StoreHeartbeatResponse>, Status> {
        let beat = request.into_inner();
        let (header, term) = self.shared.header();
        let mut answer = StoreHeartbeatResponse { header: Some(header), ..Default::default() };
        let Some(term) = term else { return Ok(Response::new(answer)) };
        let ours = self.shared.cluster_id;
        if let Some(why) = self.removed(StoreId(beat.store_id)).filter(|_| beat.cluster_id == ours.0) {
            answer.failed = why;
            return Ok(Response::new(answer));
        }
        if beat.cluster_id != ours.0 || self.shared.store(StoreId(beat.store_id)).is_none() {
            let (id, theirs) = (StoreId(beat.store_id), ClusterId(beat.cluster_id));
            answer.failed = format!("{id} of cluster {theirs} is no store of this cluster, {ours}");
            return Ok(Response::new(answer));
        }
        self.hear(term, beat, &mut answer);
        answer.stores = self.shared.stores();
        answer.compacted = self.shared.replica.read(|state| state.marks().boundary());
        Ok(Response::new(answer))
    }

    async fn proxy_heartbeat(
        &self,
        request: Request<ProxyHeartbeatRequest>,
    ) -> Result<Response<ProxyHeartbeatResponse>, Status> {
        let beat = request.into_inner();
        let (header, term) = self.shared.header();
        let mut answer = ProxyHeartbeatResponse { header: Some(header), ..Default::default() };
        let Some(term) = term else { return Ok(Response::new(answer)) };
        if beat.cluster_id != 0 && beat.cluster_id != self.shared.cluster_id.0 {
            let (theirs, ours) = (ClusterId(beat.cluster_id), self.shared.cluster_id);
            return Err(Status::failed_precondition(format!("the proxy is of cluster {theirs}, this is {ours}")));
        }
        let member = ProxyMember {
            member_id: beat.member_id,
            name: beat.name,
            client_urls: beat.client_urls,
            peer_urls: beat.peer_urls,
        };
        let now = Instant::now();
        let mut memory = self.shared.memory(term);
        memory.presence.proxy_beat(member, now);
        answer.members = memory.presence.proxies(now);
        drop(memory);
        answer.leader_member = self.shared.member;
        answer.raft_term = term.0;
        answer.raft_index = self.shared.replica.handle().map_or(0, |handle| handle.applied_index());
        Ok(Response::new(answer))
    }

    async fn get_routes(&self, request: Request<RouteRequest>) -> Result<Response<RouteResponse>, Status> {
        let request = request.into_inner();
        let (header, term) = self.shared.header();
        let mut answer = RouteResponse { header: Some(header), ..Default::default() };
        let Some(term) = term else { return Ok(Response::new(answer)) };
        let limit = (request.limit.max(1) as usize).min(ROUTES_MAX);
        answer.routes = self.shared.memory(term).regions.routes(&request.key, limit);
        answer.stores = self.shared.stores();
        answer.not_ready = founding::waiting_for(&self.shared, term);
        Ok(Response::new(answer))
    }

    async fn compact(&self, request: Request<CompactRequest>) -> Result<Response<CompactResponse>, Status> {
        let revision = Revision(request.into_inner().revision);
        let (header, term) = self.shared.header();
        let mut answer = CompactResponse { header: Some(header), ..Default::default() };
        let Some(term) = term else { return Ok(Response::new(answer)) };
        match compaction::compact(&self.shared, term, revision).await {
            Ok(newest) => answer.revision = newest.0,
            Err(Failed::Judged { newest, error }) => (answer.revision, answer.error) = (newest.0, Some(error.into())),
            Err(Failed::NotLeader) => {
                let not_leader = self.shared.leader_addr();
                answer.header = Some(PlacementHeader { not_leader, refused: true, ..Default::default() });
            }
            Err(Failed::NotYet(why)) => return Err(Status::unavailable(why)),
            Err(Failed::Unknown(why)) => return Err(Status::deadline_exceeded(why)),
        }
        Ok(Response::new(answer))
    }

    async fn await_dropped(
        &self,
        request: Request<AwaitDroppedRequest>,
    ) -> Result<Response<AwaitDroppedResponse>, Status> {
        let revision = Revision(request.into_inner().revision);
        let (mut header, term) = self.shared.header();
        if let Some(term) = term
            && !compaction::await_dropped(&self.shared, term, revision).await
        {
            header = self.shared.header().0;
            header.refused = true;
        }
        Ok(Response::new(AwaitDroppedResponse { header: Some(header) }))
    }

    async fn get_status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status(&self.shared)))
    }
}

/// State of placement as its leader sees it.
pub fn status(shared: &Shared) -> StatusResponse {
    let (header, term) = shared.header();
    let Some(term) = term else {
        return StatusResponse { header: Some(header), ..Default::default() };
    };
    let sequencer = shared.office.status();
    let waiting_for = match &sequencer.behind {
        Some(why) => why.clone(),
        None => founding::waiting_for(shared, term),
    };
    answer_status(header, term, shared, &sequencer, waiting_for)
}

fn answer_status(
    header: PlacementHeader,
    term: Term,
    shared: &Shared,
    sequencer: &crate::sequencer::SequencerStatus,
    waiting_for: String,
) -> StatusResponse {
    StatusResponse {
        header: Some(header),
        bootstrapped: shared.replica.read(crate::state::State::regions_started),
        leader_member: shared.member,
        term: term.0,
        applied_index: shared.replica.handle().map_or(0, |handle| handle.applied_index()),
        revision: sequencer.revision.0,
        window_end: sequencer.window_end.0,
        sequencer_epoch: sequencer.epoch.0,
        compacted: shared.replica.read(|state| state.marks().boundary()),
        waiting_for,
    }
}
