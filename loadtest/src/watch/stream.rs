//! One watch stream: its watches are made when it opens, and its responses are handed over unread.

use std::fmt;

use anyhow::{Context, bail, ensure};
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use tokio_stream::StreamExt;
use tonic::Streaming;
use tonic::client::Grpc;
use tonic::transport::Channel;

use super::wire::{Head, WatchCodec, WatchMessage};

/// What one watch looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// First key.
    pub key: Bytes,
    /// End of the range, exclusive; empty for one key.
    pub end: Bytes,
    /// First revision; 0 for what happens from now on.
    pub start_revision: i64,
}

impl Target {
    /// Every key, from now on.
    pub fn everything() -> Self {
        Self { key: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0"), start_revision: 0 }
    }

    /// One key, from now on.
    pub fn key(key: Bytes) -> Self {
        Self { key, end: Bytes::new(), start_revision: 0 }
    }
}

/// An open stream. Its watches are numbered from 0 in the order of their targets. They end when it is dropped.
pub struct WatchStream {
    responses: Streaming<WatchMessage>,
    watches: usize,
    /// Responses with events that came while other watches were still being made.
    early: Vec<WatchMessage>,
}

impl WatchStream {
    /// Opens a stream with a watch on each target, and waits until all of them stand.
    pub async fn open(channel: Channel, targets: Vec<Target>) -> anyhow::Result<Self> {
        let watches = targets.len();
        ensure!(watches > 0, "a watch stream needs a watch");
        // Ids are chosen here, from 1 on: 0 would let the server choose.
        let creates = targets.into_iter().zip(1..).map(|(target, watch_id)| {
            let create = WatchCreateRequest {
                key: target.key,
                range_end: target.end,
                start_revision: target.start_revision,
                watch_id,
                ..WatchCreateRequest::default()
            };
            WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
        });
        // The requests' side stays open without end: a server may take its end for the end of the watches.
        let requests = tokio_stream::iter(creates).chain(tokio_stream::pending());
        let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        client.ready().await.context("the connection is lost")?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let responses = client.streaming(tonic::Request::new(requests), path, WatchCodec).await;
        let responses = responses.map_err(|status| anyhow::anyhow!("no watch stream: {}", status.message()))?;
        let mut stream = Self { responses: responses.into_inner(), watches, early: Vec::new() };
        let mut missing = watches;
        while missing > 0 {
            let (head, message) = stream.receive().await?;
            match head.created {
                true => missing -= 1,
                false => stream.early.push(message),
            }
        }
        stream.early.reverse();
        Ok(stream)
    }

    /// How many watches it has.
    pub fn watches(&self) -> usize {
        self.watches
    }

    /// The next response with the number of its watch. A watch that ends is an error.
    pub async fn next(&mut self) -> anyhow::Result<(usize, WatchMessage)> {
        let (head, message) = match self.early.pop() {
            Some(message) => (message.head().map_err(tonic::Status::from)?, message),
            None => self.receive().await?,
        };
        let number = usize::try_from(head.watch_id - 1).ok().filter(|&number| number < self.watches);
        Ok((number.with_context(|| format!("a response for watch {}, which nobody made", head.watch_id))?, message))
    }

    async fn receive(&mut self) -> anyhow::Result<(Head, WatchMessage)> {
        let message = self.responses.message().await;
        let message = message.map_err(|status| anyhow::anyhow!("a watch stream broke: {}", status.message()))?;
        let message = message.context("the server ended a watch stream")?;
        let head = message.head().map_err(tonic::Status::from)?;
        if head.canceled {
            let whole = WatchResponse::decode(message.bytes().clone())?;
            bail!(
                "the server cancelled watch {}: {:?}, compact revision {}",
                head.watch_id,
                whole.cancel_reason,
                whole.compact_revision
            );
        }
        Ok((head, message))
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchStream").field("watches", &self.watches).finish_non_exhaustive()
    }
}
