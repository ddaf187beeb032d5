//! etcd's Cluster service: the members are the proxies, so that clients which follow the member list find them all.
//! Stores and placement members are not in it; `braid admin` shows those.

use std::sync::Arc;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::cluster_server::Cluster;
use braid_proto::etcd::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use braid_proto::pb::ProxyMember;
use tonic::{Request, Response, Status};

use crate::missing::missing;
use crate::shared::Shared;

/// The Cluster service of one proxy.
pub struct ClusterService {
    shared: Arc<Shared>,
}

impl ClusterService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    /// A linearizable list is placement's list now; otherwise the one of the last heartbeat.
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        let word = match request.get_ref().linearizable {
            true => self.shared.presence.ask(patience.deadline).await.map_err(|why| {
                tracing::debug!(%why, "no member list");
                Status::from(error::TIMEOUT)
            })?,
            false => self.shared.presence.word(),
        };
        let members = word.members.iter().map(member).collect();
        Ok(Response::new(MemberListResponse { header: self.shared.header(0), members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(by_starting())
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(by_starting())
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(missing("changing a member's addresses"))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(missing("promoting members"))
    }
}

fn member(proxy: &ProxyMember) -> Member {
    Member {
        id: proxy.member_id,
        name: proxy.name.clone(),
        peer_ur_ls: proxy.peer_urls.clone(),
        client_ur_ls: proxy.client_urls.clone(),
        is_learner: false,
    }
}

fn by_starting() -> Status {
    Status::unimplemented("braid: members are proxies; start or stop one to add or remove it")
}
