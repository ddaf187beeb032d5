//! etcd's Election service: the candidates of an election are in its queue; the first of them leads, and the value of its key
//! is what it proclaims.

use std::sync::Arc;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{TxnRequest, request_op};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::v3electionpb::election_server::Election;
use braid_proto::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::follow::Follow;
use super::{
    Recipes, Withdrawal, created_at, found, get, op, own_key, own_revision, prefix, prefix_end, put, withdraw,
};
use crate::in_flight::Ticket;

/// The Election service of one proxy.
pub struct ElectionService(Arc<Recipes>);

impl ElectionService {
    /// A service on `recipes`.
    pub fn new(recipes: Arc<Recipes>) -> Self {
        Self(recipes)
    }

    fn require_leader<T>(&self, request: &Request<T>) -> bool {
        self.0.shared.patience(request.metadata()).require_leader
    }
}

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = BoxStream<'static, Result<LeaderResponse, Status>>;

    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let require_leader = self.require_leader(&request);
        campaign(&self.0, request.into_inner(), require_leader).await.map(Response::new)
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let require_leader = self.require_leader(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let LeaderKey { key, rev, lease, .. } = leader.ok_or_else(no_key)?;
        let lease = self.0.lease(lease, require_leader).await?;
        let header = proclaim(&self.0, &key, rev, value, lease, require_leader).await?;
        Ok(Response::new(ProclaimResponse { header: self.0.shared.header(header) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let require_leader = self.require_leader(&request);
        let (leader, revision) = self.0.first(&prefix(&request.get_ref().name), require_leader).await?;
        let leader = leader.ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(LeaderResponse { header: self.0.shared.header(revision), kv: Some(leader) }))
    }

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let require_leader = self.require_leader(&request);
        let ticket = self.0.shared.in_flight.begin().ok_or(error::TOO_MANY_REQUESTS)?;
        let observer = Observer {
            recipes: Arc::clone(&self.0),
            prefix: prefix(&request.get_ref().name),
            phase: Phase::Look,
            require_leader,
            _ticket: ticket,
        };
        let leaders = futures::stream::try_unfold(observer, |mut observer| async move {
            let leader = observer.next().await?;
            Ok(Some((leader, observer)))
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    /// Who does not lead (any more) has nothing to resign from, and is told nothing else.
    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let require_leader = self.require_leader(&request);
        let LeaderKey { key, rev, .. } = request.into_inner().leader.ok_or_else(no_key)?;
        let answer = self.0.txn(withdraw(&key, rev), require_leader).await?;
        Ok(Response::new(ResignResponse { header: self.0.shared.complete(answer.header) }))
    }
}

fn no_key() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

async fn campaign(
    recipes: &Arc<Recipes>,
    request: CampaignRequest,
    require_leader: bool,
) -> Result<CampaignResponse, Status> {
    let CampaignRequest { name, lease, value } = request;
    let lease = recipes.lease(lease, require_leader).await?;
    let prefix = prefix(&name);
    let key = own_key(&prefix, lease);
    let join = TxnRequest {
        compare: vec![created_at(&key, 0)],
        success: vec![put(&key, value.clone(), lease)],
        failure: vec![op(request_op::Request::RequestRange(get(&key)))],
    };
    let joined = recipes.txn(join, require_leader).await?;
    let own = own_revision(&joined)?;
    let withdrawal = Withdrawal::of(recipes, &key, own);
    // Whoever is a candidate already may have another value by now.
    let before = found(joined.responses.first()).filter(|_| !joined.succeeded);
    if before.is_some_and(|before| before.value != value)
        && let Err(status) = proclaim(recipes, &key, own, value, lease, require_leader).await
    {
        withdrawal.now().await;
        return Err(status);
    }
    let waited = recipes.wait_for_turn(&prefix, own, require_leader).await;
    // A candidate that has met an error may come back and find its place kept.
    withdrawal.keep();
    waited?;
    let leader = LeaderKey { name, key, rev: own, lease };
    Ok(CampaignResponse { header: recipes.shared.complete(joined.header), leader: Some(leader) })
}

/// Sets the value of a leadership that still stands; returns the revision.
async fn proclaim(
    recipes: &Recipes,
    key: &Bytes,
    created: i64,
    value: Bytes,
    lease: i64,
    require_leader: bool,
) -> Result<i64, Status> {
    let request = TxnRequest {
        compare: vec![created_at(key, created)],
        success: vec![put(key, value, lease)],
        failure: Vec::new(),
    };
    let answer = recipes.txn(request, require_leader).await?;
    if answer.succeeded { Ok(answer.header.unwrap_or_default().revision) } else { Err(not_leader()) }
}

/// Tells every leader and every value, one after the other.
struct Observer {
    recipes: Arc<Recipes>,
    prefix: Bytes,
    phase: Phase,
    require_leader: bool,
    _ticket: Ticket,
}

enum Phase {
    /// Who leads?
    Look,
    /// Nobody: whoever comes first.
    Vacant(Follow),
    /// What becomes of this leader's key.
    Led(Follow),
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        loop {
            match &mut self.phase {
                Phase::Look => {
                    let (leader, revision) = self.recipes.first(&self.prefix, self.require_leader).await?;
                    match leader {
                        Some(leader) => return self.lead(leader, revision).await,
                        None => {
                            let end = prefix_end(&self.prefix);
                            let follow = self.recipes.follow(&self.prefix, &end, revision, self.require_leader);
                            self.phase = Phase::Vacant(follow.await?);
                        }
                    }
                }
                Phase::Vacant(follow) => match self.recipes.unless_stopped(follow.next()).await? {
                    Some((revision, event)) if event.r#type == EventType::Put as i32 => {
                        return self.lead(event.kv.unwrap_or_default(), revision).await;
                    }
                    Some(_) => {}
                    None => self.phase = Phase::Look,
                },
                Phase::Led(follow) => match self.recipes.unless_stopped(follow.next()).await? {
                    Some((revision, event)) if event.r#type == EventType::Put as i32 => {
                        return Ok(LeaderResponse { header: self.recipes.shared.header(revision), kv: event.kv });
                    }
                    Some(_) | None => self.phase = Phase::Look,
                },
            }
        }
    }

    async fn lead(&mut self, leader: KeyValue, revision: i64) -> Result<LeaderResponse, Status> {
        let follow = self.recipes.follow(&leader.key, b"", revision, self.require_leader).await?;
        self.phase = Phase::Led(follow);
        Ok(LeaderResponse { header: self.recipes.shared.header(revision), kv: Some(leader) })
    }
}
