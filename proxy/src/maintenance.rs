//! etcd's Maintenance service, as far as there is something to say.
//!
//! Status speaks of this endpoint, and of placement's raft group where etcd speaks of its one group. There are no alarms
//! in this version. Defragment succeeds without doing anything: space is reclaimed in the background, so there is
//! nothing that an operator's defragmentation job could do, and no reason for it to fail.

use std::sync::Arc;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use braid_proto::etcd::etcdserverpb::maintenance_server::Maintenance;
use braid_proto::etcd::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use futures::stream::Empty;
use tonic::{Request, Response, Status};

use crate::hash_kv;
use crate::missing::missing;
use crate::shared::Shared;

/// Version of etcd whose API this is. Clients choose features by it, so it is a plain x.y.z.
pub const ETCD_VERSION: &str = "3.5.21";
/// What etcd takes for a quota of 0.
const DEFAULT_QUOTA_BYTES: i64 = 2 << 30;

/// The Maintenance service of one proxy.
pub struct MaintenanceService {
    shared: Arc<Shared>,
}

impl MaintenanceService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = Empty<Result<SnapshotResponse, Status>>;

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        if request.get_ref().action() == AlarmAction::Activate {
            return Err(missing("raising an alarm"));
        }
        let header = self.shared.header(self.shared.revision().await);
        Ok(Response::new(AlarmResponse { header, alarms: Vec::new() }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let word = self.shared.presence.word();
        let leader = word.leader();
        let errors = if leader == 0 { vec![error::NO_LEADER.message.to_owned()] } else { Vec::new() };
        let db_size = i64::try_from((self.shared.config.db_bytes)()).unwrap_or(i64::MAX);
        let quota = self.shared.config.quota_bytes;
        Ok(Response::new(StatusResponse {
            header: self.shared.header(self.shared.revision().await),
            version: ETCD_VERSION.to_owned(),
            db_size,
            leader,
            raft_index: word.raft_index,
            raft_term: word.raft_term,
            raft_applied_index: word.raft_index,
            errors,
            db_size_in_use: db_size,
            is_learner: false,
            storage_version: String::new(),
            db_size_quota: if quota == 0 { DEFAULT_QUOTA_BYTES } else { quota },
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(missing("hashing the backend"))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let mut answer = hash_kv::hash_kv(&self.shared, request, &metadata).await?;
        answer.header = self.shared.complete(answer.header);
        Ok(Response::new(answer))
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(missing("the backup by snapshot"))
    }

    async fn move_leader(&self, _: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        Err(Status::unimplemented(
            "braid: there are many leaders; braid admin region transfer-leader moves one of a region",
        ))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(missing("the downgrade"))
    }
}
