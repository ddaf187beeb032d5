//! The receiving side: frames and snapshots of other processes, for the hosts of this one.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::id::ClusterId;
use braid_proto::pb::raft_server::{Raft, RaftServer};
use braid_proto::pb::{Domain, RaftDone, RaftFrame, SnapshotChunk};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::receive::{Intake, PLACE_TIMEOUT};
use super::{LocalRegistry, MESSAGE_BYTES_MAX, SNAPSHOTS_AT_ONCE, name};
use crate::Inbound;

/// A sender that is silent for this long in the middle of a snapshot has gone.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(45);

/// The gRPC service `braid.Raft`. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct RaftService {
    cluster: ClusterId,
    hosts: LocalRegistry,
    places: Arc<Semaphore>,
    stopping: Arc<watch::Sender<bool>>,
}

impl RaftService {
    /// A service for the hosts of cluster `cluster` that are, or will be, registered in `hosts`.
    pub fn new(cluster: ClusterId, hosts: LocalRegistry) -> Self {
        RaftService {
            cluster,
            hosts,
            places: Arc::new(Semaphore::new(SNAPSHOTS_AT_ONCE)),
            stopping: Arc::new(watch::Sender::new(false)),
        }
    }

    /// The service with its message limits, to be added to a server.
    pub fn into_server(self) -> RaftServer<Self> {
        RaftServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Ends all calls and refuses new ones. Without it a graceful stop of the server waits for ever: frames never end.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// The host that `frame` is for.
    fn host(&self, frame: &RaftFrame) -> Result<Arc<dyn Inbound>, Status> {
        if frame.cluster_id != self.cluster.0 {
            return Err(Status::failed_precondition(format!(
                "this process belongs to cluster {:x}, the sender to cluster {:x}: check the addresses of both",
                self.cluster.0, frame.cluster_id
            )));
        }
        let domain = Domain::try_from(frame.domain)
            .map_err(|_| Status::invalid_argument(format!("there is no raft domain {}", frame.domain)))?;
        self.hosts.get(domain, frame.to_host).ok_or_else(|| {
            Status::not_found(format!("{} does not run here (any more, or yet)", name(domain, frame.to_host)))
        })
    }

    async fn until_stopped(&self) -> Status {
        // An error means that nobody can stop the service any more, and `self` rules that out.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
        Status::unavailable("this process is stopping")
    }

    async fn frames(&self, mut frames: Streaming<RaftFrame>) -> Result<Response<RaftDone>, Status> {
        while let Some(frame) = frames.message().await? {
            self.host(&frame)?.receive(frame);
        }
        Ok(Response::new(RaftDone {}))
    }

    async fn chunks(&self, mut chunks: Streaming<SnapshotChunk>) -> Result<Response<RaftDone>, Status> {
        let head = next(&mut chunks).await?.and_then(|chunk| chunk.head);
        let head = head.ok_or_else(|| Status::invalid_argument("a snapshot begins with its frame"))?;
        let inbound = self.host(&head)?;
        let place = timeout(PLACE_TIMEOUT, self.places.acquire()).await;
        let _place = place.map_err(|_| {
            Status::resource_exhausted(format!("{SNAPSHOTS_AT_ONCE} snapshots are being received already"))
        })?;
        let mut intake = Intake::start(head, inbound)?;
        while let Some(chunk) = next(&mut chunks).await? {
            if chunk.head.is_some() {
                return Err(Status::invalid_argument("a snapshot has one frame"));
            }
            if !intake.take(chunk.file, chunk.data).await {
                break;
            }
        }
        intake.finish().await?;
        Ok(Response::new(RaftDone {}))
    }
}

async fn next(chunks: &mut Streaming<SnapshotChunk>) -> Result<Option<SnapshotChunk>, Status> {
    match timeout(CHUNK_TIMEOUT, chunks.message()).await {
        Ok(chunk) => chunk,
        Err(_) => Err(Status::deadline_exceeded(format!("the sender sent nothing for {CHUNK_TIMEOUT:?}"))),
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn stream(&self, request: Request<Streaming<RaftFrame>>) -> Result<Response<RaftDone>, Status> {
        tokio::select! {
            done = self.frames(request.into_inner()) => done,
            stopped = self.until_stopped() => Err(stopped),
        }
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Result<Response<RaftDone>, Status> {
        tokio::select! {
            done = self.chunks(request.into_inner()) => done,
            stopped = self.until_stopped() => Err(stopped),
        }
    }
}
