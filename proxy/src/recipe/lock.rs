//! etcd's Lock service: the key of the caller's lease is in the queue of the lock's name; whoever is first owns the lock.

use std::sync::Arc;

use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, TxnRequest, request_op};
use braid_proto::etcd::v3lockpb::lock_server::Lock;
use braid_proto::etcd::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{Recipes, Withdrawal, created_at, first, found, get, op, own_key, own_revision, prefix, put};
use crate::kv::delete_range;

/// The Lock service of one proxy.
pub struct LockService(Arc<Recipes>);

impl LockService {
    /// A service on `recipes`.
    pub fn new(recipes: Arc<Recipes>) -> Self {
        Self(recipes)
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let require_leader = self.0.shared.patience(request.metadata()).require_leader;
        lock(&self.0, request.into_inner(), require_leader).await.map(Response::new)
    }

    /// Deletes any key: that it is a lock's is the caller's word.
    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let patience = self.0.shared.patience(request.metadata());
        let delete = DeleteRangeRequest { key: request.into_inner().key, ..DeleteRangeRequest::default() };
        let answer = delete_range::delete_range(&self.0.shared, delete, patience).await?;
        Ok(Response::new(UnlockResponse { header: self.0.shared.complete(answer.header) }))
    }
}

async fn lock(recipes: &Arc<Recipes>, request: LockRequest, require_leader: bool) -> Result<LockResponse, Status> {
    let lease = recipes.lease(request.lease, require_leader).await?;
    let prefix = prefix(&request.name);
    let key = own_key(&prefix, lease);
    let owner = op(request_op::Request::RequestRange(first(&prefix)));
    let join = TxnRequest {
        compare: vec![created_at(&key, 0)],
        success: vec![put(&key, Bytes::new(), lease), owner.clone()],
        failure: vec![op(request_op::Request::RequestRange(get(&key))), owner],
    };
    let joined = recipes.txn(join, require_leader).await?;
    let own = own_revision(&joined)?;
    if found(joined.responses.get(1)).is_none_or(|owner| owner.create_revision == own) {
        return Ok(LockResponse { header: recipes.shared.complete(joined.header), key });
    }
    let withdrawal = Withdrawal::of(recipes, &key, own);
    let waited = async {
        recipes.wait_for_turn(&prefix, own, require_leader).await?;
        recipes.range(get(&key), require_leader).await
    };
    match waited.await {
        Ok(answer) => {
            withdrawal.keep();
            // The lease, and the key with it, may have gone meanwhile.
            match answer.kvs.is_empty() {
                true => Err(Status::unknown("mutex: session is expired")),
                false => Ok(LockResponse { header: recipes.shared.complete(answer.header), key }),
            }
        }
        Err(status) => {
            withdrawal.now().await;
            Err(status)
        }
    }
}
