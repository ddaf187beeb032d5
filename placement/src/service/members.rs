//! What the members of placement's group tell each other about themselves.

use std::sync::Arc;

use braid_proto::id::ClusterId;
use braid_proto::pb::members_server::Members;
use braid_proto::pb::{JoinRequest, JoinResponse, MemberRequest, MemberResponse};
use tonic::{Request, Response, Status};

use crate::leader::Shared;
use crate::membership::join;

/// See the module's page.
pub struct MembersService {
    shared: Arc<Shared>,
}

impl MembersService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Refuses a member of another cluster.
    fn admit(&self, theirs: u64) -> Result<(), Status> {
        let (theirs, ours) = (ClusterId(theirs), self.shared.cluster_id);
        if theirs == ours {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "it is of cluster {ours}, not {theirs}; make --initial-cluster and its token equal everywhere"
        )))
    }
}

#[tonic::async_trait]
impl Members for MembersService {
    async fn get_member(&self, request: Request<MemberRequest>) -> Result<Response<MemberResponse>, Status> {
        self.admit(request.into_inner().cluster_id)?;
        Ok(Response::new(self.shared.says()))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.cluster_id)?;
        let (header, term) = self.shared.header();
        let answer = match term {
            Some(term) => join::join(&self.shared, term, request).await,
            None => JoinResponse::default(),
        };
        Ok(Response::new(JoinResponse { header: Some(header), ..answer }))
    }
}
