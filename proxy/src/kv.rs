//! etcd's KV service. Each RPC has its file; this one unpacks requests and completes headers.

pub mod compact;
pub mod delete_range;
pub mod put;
pub mod range;
pub mod range_stream;
mod replicas;
pub mod txn;

use std::sync::Arc;

use braid_proto::error::{self, EtcdStatus};
use braid_proto::etcd::etcdserverpb::kv_server::Kv;
use braid_proto::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use braid_proto::pb::region_response;
use futures::stream::BoxStream;
use prost::Message;
use tonic::{Request, Response, Status};

use crate::shared::Shared;

/// The KV service of one proxy.
pub struct KvService {
    shared: Arc<Shared>,
}

impl KvService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = BoxStream<'static, Result<RangeStreamResponse, Status>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        let mut answer = range::range(&self.shared, request.into_inner(), patience).await?;
        answer.header = self.shared.complete(answer.header);
        Ok(Response::new(answer))
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let patience = self.shared.patience(request.metadata());
        let stream = range_stream::range_stream(Arc::clone(&self.shared), request.into_inner(), patience).await?;
        Ok(Response::new(stream))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        let mut answer = put::put(&self.shared, request.into_inner(), patience).await?;
        answer.header = self.shared.complete(answer.header);
        Ok(Response::new(answer))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        let mut answer = delete_range::delete_range(&self.shared, request.into_inner(), patience).await?;
        answer.header = self.shared.complete(answer.header);
        Ok(Response::new(answer))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        let mut answer = txn::txn(&self.shared, request.into_inner(), patience).await?;
        answer.header = self.shared.complete(answer.header);
        Ok(Response::new(answer))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        compact::compact(&self.shared, request, &metadata).await.map(Response::new)
    }
}

/// Fails if a write is larger than `--max-request-bytes`.
fn fits(request: &impl Message, bytes_max: usize) -> Result<(), EtcdStatus> {
    if request.encoded_len() > bytes_max { Err(error::REQUEST_TOO_LARGE) } else { Ok(()) }
}

/// The error for an answer that does not belong to the question, or is an error itself.
pub(crate) fn unexpected(answer: region_response::Result) -> Status {
    match answer {
        region_response::Result::Error(error) => error.into(),
        other => {
            tracing::error!(?other, "a store answered another question than it was asked");
            Status::internal("braid: a store answered another question than it was asked")
        }
    }
}
