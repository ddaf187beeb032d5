//! One request to one region, tried until it is answered, must not be tried again, or its time is up.
//!
//! 1. Find the region of the request's first key. If the request reaches beyond it, say so.
//! 2. Ask the store that is said to lead; without a hint, one replica after the other. A store that could not be reached
//!    is passed over for a round, whatever the other replicas say of it.
//! 3. An answer ends it. A refusal goes through [`crate::retry`].
//!
//! The request is kept for the next attempt, so each attempt sends a copy: keys and values are shared, not copied.

use std::sync::Arc;
use std::time::Duration;

use braid_placement_client::PlacementClient;
use braid_proto::error;
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::key::KeyRange;
use braid_proto::pb::{
    NotLeader, Peer, Refusal, Region, RegionNotFound, RegionRequest, Store, refusal, region_request, region_response,
};
use braid_proto::service::RegionService;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::bound::no_leader;
use crate::deadline::Patience;
use crate::retry::{self, Kind, Lesson, Step};
use crate::route::Route;
use crate::router::{NoRoute, Router};
use crate::stores::Stores;

/// How long a request that has a route, if a doubtful one, waits for placement's word.
const REFRESH_PATIENCE: Duration = Duration::from_millis(500);

/// The regions of the cluster.
pub struct Regions {
    /// Where they are.
    pub router: Router,
    stores: Arc<Stores>,
}

/// What is asked of one region.
pub struct Ask<'a, C> {
    /// An internal key that the region holds.
    pub anchor: &'a [u8],
    /// Whether a region of this range holds everything that the operation touches.
    pub within: C,
    /// The operation.
    pub op: &'a region_request::Op,
    /// Whether it may be repeated when its outcome is unknown.
    pub kind: Kind,
    /// Whether any replica may answer.
    pub any_replica: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The operation touches several regions, or more keys than one entry of a region takes.
    Spread,
    /// What the client is told.
    Failed(Status),
}

/// What has been tried.
#[derive(Default)]
struct Attempts {
    count: u32,
    /// How often another replica had to be chosen.
    turns: usize,
    /// The store that did not lead or could not be reached last time, for one round.
    shunned: Option<StoreId>,
}

impl Regions {
    /// The regions of `cluster_id`, found through `placement`.
    pub fn connect(cluster_id: ClusterId, placement: Arc<PlacementClient>) -> Arc<Self> {
        let stores = Arc::new(Stores::new(cluster_id));
        let router = Router::new(placement, Arc::clone(&stores));
        Arc::new(Self { router, stores })
    }

    /// From now on `store` is called in this process.
    pub fn add_local(&self, store: StoreId, service: Arc<dyn RegionService>) {
        self.stores.add_local(store, service);
    }

    /// `store` has stopped.
    pub fn remove_local(&self, store: StoreId) {
        self.stores.remove_local(store);
    }

    /// Asks one region.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub async fn ask<C: Fn(&KeyRange) -> bool>(
        &self,
        ask: Ask<'_, C>,
        patience: Patience,
    ) -> Result<region_response::Result, NoAnswer> {
        let mut attempts = Attempts::default();
        loop {
            let route = self.find(ask.anchor, patience).await.map_err(NoAnswer::Failed)?;
            if !(ask.within)(&route.range) {
                return Err(NoAnswer::Spread);
            }
            let store = self.choose(&route, &attempts, ask.any_replica);
            let refusal = match self.ask_replica(&route, store, ask.op, patience).await? {
                region_response::Result::Refusal(refusal) => refusal,
                answer => {
                    if !ask.any_replica && route.leader() != Some(store) {
                        route.follow(store);
                    }
                    return Ok(answer);
                }
            };
            tracing::trace!(region = %route.region, %store, attempt = attempts.count, ?refusal, "refused");
            match retry::decide(ask.kind, refusal, attempts.count) {
                Step::Spread => return Err(NoAnswer::Spread),
                Step::Fail(status) => return Err(NoAnswer::Failed(status.into())),
                Step::Again { lesson, refresh, pause, reason } => {
                    metrics::counter!("braid_proxy_retries_total", "reason" => reason).increment(1);
                    attempts.count += 1;
                    if patience.is_over() {
                        let leaderless = matches!(lesson, Lesson::NotThisStore | Lesson::Leader(_));
                        let status = if leaderless { no_leader(patience) } else { error::TIMEOUT };
                        return Err(NoAnswer::Failed(status.into()));
                    }
                    self.take_in(lesson, &route, store, ask.anchor, &mut attempts);
                    if refresh {
                        self.refresh(ask.anchor, patience).await;
                    }
                    if !pause.is_zero() {
                        route.wait(pause.min(patience.deadline - Instant::now())).await;
                    }
                }
            }
        }
    }

    /// The regions of `range` with their parts of it.
    ///
    /// # Errors
    /// Some are not known, and placement did not say in time.
    pub async fn pieces(&self, range: &KeyRange, patience: Patience) -> Result<Vec<(Arc<Route>, KeyRange)>, Status> {
        self.persist(patience, || self.router.pieces(range, patience.deadline)).await
    }

    /// The region of `key`, an internal key.
    ///
    /// # Errors
    /// It is not known, and placement did not say in time.
    pub async fn find(&self, key: &[u8], patience: Patience) -> Result<Arc<Route>, Status> {
        self.persist(patience, || self.router.find(key, patience.deadline)).await
    }

    /// Learns where stores are from somebody else than placement's routes.
    pub fn learn_stores(&self, stores: &[Store]) {
        self.stores.learn(stores);
    }

    /// `store`, if it lives in this process.
    pub fn local(&self, store: StoreId) -> Option<Arc<dyn RegionService>> {
        self.stores.local(store)
    }

    /// Where `store` listens ("host:port"), if that is known.
    pub fn address(&self, store: StoreId) -> Option<String> {
        self.stores.address(store)
    }

    /// The store that most likely leads a region: the hint, or the replica whose turn it is.
    pub fn likely_leader(&self, route: &Route, attempt: u32) -> StoreId {
        let turn = usize::try_from(attempt).unwrap_or(usize::MAX);
        let attempts = Attempts { turns: turn, ..Attempts::default() };
        route.leader().unwrap_or_else(|| next_peer(&route.peers, &attempts, false))
    }

    /// Takes in why `store` has refused, on a stream of its own, to do something for the region of `key`; `refusal` is
    /// absent when it cannot be reached. Returns after the pause that belongs before attempt number `attempt` + 1.
    pub async fn heed(&self, key: &[u8], store: StoreId, refusal: Option<Refusal>, attempt: u32, patience: Patience) {
        let lost = Refusal { reason: Some(refusal::Reason::NotLeader(NotLeader { leader: None })) };
        let unknown_address = self.address(store).is_none();
        let step = retry::decide(Kind::Read, refusal.unwrap_or(lost), attempt);
        let Step::Again { lesson, refresh, pause, .. } = step else { return };
        let Ok(route) = self.find(key, patience).await else { return };
        self.take_in(lesson, &route, store, key, &mut Attempts::default());
        if refresh || unknown_address {
            self.refresh(key, patience).await;
        }
        if !pause.is_zero() {
            route.wait(pause).await;
        }
    }

    /// Asks for routes until they are known or the time is up.
    async fn persist<T, F>(&self, patience: Patience, question: impl Fn() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, NoRoute>>,
    {
        let mut attempt = 2;
        loop {
            match question().await {
                Ok(routes) => return Ok(routes),
                Err(why) if patience.is_over() => {
                    tracing::debug!(%why, "no route");
                    return Err(no_leader(patience).into());
                }
                Err(why) => {
                    tracing::debug!(%why, "no route yet");
                    let until = patience.deadline.min(Instant::now() + retry::pause(attempt));
                    tokio::time::sleep_until(until).await;
                    attempt += 1;
                }
            }
        }
    }

    fn choose(&self, route: &Route, attempts: &Attempts, any_replica: bool) -> StoreId {
        if any_replica && attempts.turns == 0 {
            let local =
                route.peers.iter().map(|peer| StoreId(peer.store_id)).find(|store| self.stores.is_local(*store));
            if let Some(local) = local {
                return local;
            }
        }
        let usable = |hint: &StoreId| attempts.shunned != Some(*hint) && (!any_replica || attempts.turns == 0);
        let hint = route.leader().filter(usable);
        hint.unwrap_or_else(|| next_peer(&route.peers, attempts, any_replica))
    }

    /// Asks the replica of one region on `store`, once. A refusal is an answer here.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn ask_replica(
        &self,
        route: &Route,
        store: StoreId,
        op: &region_request::Op,
        patience: Patience,
    ) -> Result<region_response::Result, NoAnswer> {
        let request = RegionRequest {
            region_id: route.region.0,
            epoch: Some(route.epoch),
            timeout_ms: patience.left_ms(),
            op: Some(op.clone()),
        };
        let unknown = || region_response::Result::Refusal(Refusal::default());
        match self.stores.call(store, request) {
            // Nobody knows where that store is. Placement does, or it knows a newer region.
            None => Ok(region_response::Result::Refusal(Refusal {
                reason: Some(refusal::Reason::RegionNotFound(RegionNotFound {})),
            })),
            Some(answer) => match timeout_at(patience.deadline, answer).await {
                Ok(answer) => Ok(answer.result.unwrap_or_else(unknown)),
                Err(_) => Err(NoAnswer::Failed(error::TIMEOUT.into())),
            },
        }
    }

    /// Asks the replica of `region` on `store`, once, however old what is known of the region is. A refusal is an answer here.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn ask_store(
        &self,
        store: StoreId,
        region: &Region,
        op: &region_request::Op,
        patience: Patience,
    ) -> Result<region_response::Result, NoAnswer> {
        self.ask_replica(&Route::new(region.clone(), StoreId::INVALID), store, op, patience).await
    }

    fn take_in(&self, lesson: Lesson, route: &Arc<Route>, store: StoreId, anchor: &[u8], attempts: &mut Attempts) {
        let not_this_store = match lesson {
            Lesson::Nothing => false,
            Lesson::NotThisStore => true,
            Lesson::Leader(leader) if attempts.shunned == Some(leader) => {
                attempts.turn(&route.peers);
                false
            }
            Lesson::Leader(leader) => {
                route.follow(leader);
                false
            }
            Lesson::Regions(regions) => {
                self.router.learn(regions);
                // What it told is old: this replica lags behind a split that others have done.
                self.router.is_current(route, anchor)
            }
        };
        if not_this_store {
            route.forget_leader(store);
            attempts.shunned = Some(store);
            attempts.turn(&route.peers);
        }
    }

    async fn refresh(&self, key: &[u8], patience: Patience) {
        let until = patience.deadline.min(Instant::now() + REFRESH_PATIENCE);
        if let Err(why) = self.router.refresh(key, until).await {
            tracing::debug!(%why, "no newer route");
        }
    }
}

impl Attempts {
    /// Another replica's turn. After a round of them the shunned one may be asked again.
    fn turn(&mut self, peers: &[Peer]) {
        self.turns += 1;
        if self.turns.is_multiple_of(peers.len().max(1)) {
            self.shunned = None;
        }
    }
}

/// The replica whose turn it is when nobody is said to lead.
fn next_peer(peers: &[Peer], attempts: &Attempts, learners: bool) -> StoreId {
    let shunned = |store: u64| peers.len() > 1 && attempts.shunned == Some(StoreId(store));
    let mut candidates = peers.iter().filter(|peer| (learners || !peer.learner) && !shunned(peer.store_id));
    let count = candidates.clone().count().max(1);
    candidates.nth(attempts.turns % count).map_or(StoreId::INVALID, |peer| StoreId(peer.store_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(store_id: u64, learner: bool) -> Peer {
        Peer { learner, ..Peer::voter(store_id, store_id) }
    }

    #[test]
    fn replicas_take_turns_and_learners_only_answer_stale_reads() {
        let peers = [peer(1, false), peer(2, true), peer(3, false)];
        let next = |turns, learners| next_peer(&peers, &Attempts { turns, ..Default::default() }, learners).0;
        let turns = |learners| (0..5).map(|turn| next(turn, learners)).collect::<Vec<_>>();
        assert_eq!(turns(false), [1, 3, 1, 3, 1]);
        assert_eq!(turns(true), [1, 2, 3, 1, 2]);
        assert_eq!(next_peer(&[], &Attempts::default(), true), StoreId::INVALID);
    }

    #[test]
    fn a_shunned_store_comes_back_after_a_round() {
        let peers = [peer(1, false), peer(2, false), peer(3, false)];
        let mut attempts = Attempts { shunned: Some(StoreId(2)), ..Default::default() };
        let mut asked = Vec::new();
        for _ in 0..6 {
            attempts.turn(&peers);
            asked.push(next_peer(&peers, &attempts, false).0);
        }
        assert!(!asked[..2].contains(&2), "{asked:?}");
        assert!(asked[2..].contains(&2), "{asked:?}");
        let alone = Attempts { shunned: Some(StoreId(1)), ..Default::default() };
        assert_eq!(next_peer(&peers[..1], &alone, false), StoreId(1));
    }
}
