//! How members ask each other who they are. The trait is the seam: tests put members of their own behind it.

use std::collections::HashMap;
use std::time::Duration;

use braid_proto::id::ClusterId;
use braid_proto::pb::members_client::MembersClient;
use braid_proto::pb::{JoinRequest, JoinResponse, MemberRequest, MemberResponse};
use braid_proto::service::BoxFuture;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::placement::MemberConfig;

/// How long a member may take to say who it is.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a leader may take to bring a member a step further.
const JOIN: Duration = Duration::from_secs(10);

/// What a member says of itself, or why it says nothing.
pub type Says = Result<MemberResponse, String>;

/// The other members.
pub trait Others: Send + Sync + 'static {
    /// Who a member is.
    fn ask(&self, member: &MemberConfig) -> BoxFuture<Says>;

    /// Asks a member, if it leads, to let the asker take part; `None`: no answer.
    fn join(&self, member: &MemberConfig, request: JoinRequest) -> BoxFuture<Option<JoinResponse>>;
}

/// Members over gRPC; connections are kept.
pub struct GrpcOthers {
    cluster_id: ClusterId,
    channels: Mutex<HashMap<u64, Channel>>,
}

impl GrpcOthers {
    /// The members of this cluster.
    pub fn new(cluster_id: ClusterId) -> Self {
        Self { cluster_id, channels: Mutex::default() }
    }

    fn client(&self, member: &MemberConfig) -> Result<MembersClient<Channel>, String> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(&member.id) {
            return Ok(MembersClient::new(channel.clone()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", member.peer_addr));
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        let channel = endpoint.connect_timeout(ANSWER).tcp_nodelay(true).connect_lazy();
        channels.insert(member.id, channel.clone());
        Ok(MembersClient::new(channel))
    }
}

impl Others for GrpcOthers {
    fn ask(&self, member: &MemberConfig) -> BoxFuture<Says> {
        let (client, id) = (self.client(member), member.id);
        let request = MemberRequest { cluster_id: self.cluster_id.0 };
        Box::pin(async move {
            let mut client = client?;
            let answer = tokio::time::timeout(ANSWER, client.get_member(request)).await;
            let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(said)?.into_inner();
            match answer.member_id == id {
                true => Ok(answer),
                false => Err("another member answers there".to_owned()),
            }
        })
    }

    fn join(&self, member: &MemberConfig, request: JoinRequest) -> BoxFuture<Option<JoinResponse>> {
        let client = self.client(member);
        Box::pin(async move {
            let mut client = client.ok()?;
            Some(tokio::time::timeout(JOIN, client.join(request)).await.ok()?.ok()?.into_inner())
        })
    }
}

/// What a member refuses, or that nobody is there.
fn said(status: Status) -> String {
    match status.code() {
        Code::FailedPrecondition => status.message().to_owned(),
        Code::Unimplemented => "it runs a version that cannot be asked".to_owned(),
        _ => "no answer".to_owned(),
    }
}
