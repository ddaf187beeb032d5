//! A keep-alive stream with one question in flight.

use std::fmt;

use braid_proto::etcd::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::client::Leases;

/// An open stream.
pub struct KeepAlives {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    responses: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlives {
    /// Opens a stream with a question about lease `id`, and gives the answer along: a server may send nothing at all
    /// before it was asked.
    pub async fn open(leases: &mut Leases, id: i64) -> Result<(Self, LeaseKeepAliveResponse), Status> {
        let (requests, queue) = mpsc::channel(1);
        let sent = requests.send(LeaseKeepAliveRequest { id }).await;
        sent.map_err(|_| Status::internal("a new queue has no reader"))?;
        let responses = leases.lease_keep_alive(ReceiverStream::new(queue)).await?.into_inner();
        let mut stream = Self { requests, responses };
        let answer = stream.answer().await?;
        Ok((stream, answer))
    }

    /// Asks for one lease, and waits for the answer. After an error the stream is of no use.
    pub async fn ask(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let sent = self.requests.send(LeaseKeepAliveRequest { id }).await;
        sent.map_err(|_| Status::unavailable("the keep-alive stream is gone"))?;
        self.answer().await
    }

    /// Ends the stream. Gives an answer that nobody asked for, if there is one.
    pub async fn end(self) -> Result<Option<LeaseKeepAliveResponse>, Status> {
        let Self { requests, mut responses } = self;
        drop(requests);
        responses.message().await
    }

    async fn answer(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
        let answer = self.responses.message().await?;
        answer.ok_or_else(|| Status::unavailable("the server ended the keep-alive stream"))
    }
}

impl fmt::Debug for KeepAlives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAlives").finish_non_exhaustive()
    }
}
