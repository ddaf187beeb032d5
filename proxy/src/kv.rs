//! etcd's KV service. Each RPC has its file; this one unpacks requests and completes headers.

pub mod compact;
pub mod delete_range;
pub mod put;
pub mod range;
pub mod range_stream;
pub mod txn;

use std::sync::Arc;

use braid_proto::error::{self, EtcdStatus};
use braid_proto::etcd::etcdserverpb::kv_server::Kv;
use braid_proto::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use braid_proto::id::RegionId;
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

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(compact::not_available())
    }
}

/// Fails if a write is larger than `--max-request-bytes`.
fn fits(request: &impl Message, bytes_max: usize) -> Result<(), EtcdStatus> {
    if request.encoded_len() > bytes_max { Err(error::REQUEST_TOO_LARGE) } else { Ok(()) }
}

/// The error for an answer that does not belong to the question, or is an error itself.
fn unexpected(answer: region_response::Result) -> Status {
    match answer {
        region_response::Result::Error(error) => error.into(),
        other => {
            tracing::error!(?other, "a store answered another question than it was asked");
            Status::internal("braid: a store answered another question than it was asked")
        }
    }
}

/// The error for a write that touches `regions`.
fn spread(what: &str, plural: &str, regions: &[RegionId]) -> Status {
    const NAMED: usize = 8;
    let mut names: Vec<String> = regions.iter().take(NAMED).map(RegionId::to_string).collect();
    if regions.len() > NAMED {
        names.push("...".to_owned());
    }
    Status::unimplemented(format!(
        "braid: this {what} touches keys of {} regions ({}); {plural} over several regions are not available in this \
         version",
        regions.len(),
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_spread_write_names_a_few_regions() {
        let status = spread("delete", "deletes", &[RegionId(7), RegionId(9)]);
        assert_eq!(
            status.message(),
            "braid: this delete touches keys of 2 regions (r7, r9); deletes over several regions are not available in \
             this version"
        );
        let many: Vec<RegionId> = (1..=20).map(RegionId).collect();
        assert!(
            spread("delete", "deletes", &many).message().contains("20 regions (r1, r2, r3, r4, r5, r6, r7, r8, ...)")
        );
    }
}
