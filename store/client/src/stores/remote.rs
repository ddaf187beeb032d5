//! A store in another process: one bidirectional stream that carries the requests of all its regions.
//!
//! 1. The first request starts a task. It connects and opens the stream with an empty frame; the store's answer to that
//!    proves that it is the store we mean.
//! 2. The connection's own task then writes frames out of the [`Outbox`], and this one hands answers back.
//! 3. When the connection ends or goes silent (HTTP/2 pings), everything under way is answered. Until the next attempt
//!    to connect, requests are refused at once: another store most likely leads by then.
//! 4. Attempts come after growing pauses, and only while there is something to send.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use braid_proto::id::{ClusterId, StoreId};
use braid_proto::pb::region_store_client::RegionStoreClient;
use braid_proto::pb::{RegionRequest, RegionResponse, RequestFrame, ResponseFrame};
use braid_proto::service::{BoxFuture, RegionService};
use futures::Stream;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{error::Elapsed, timeout};
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use super::lost;
use super::outbox::Outbox;

/// How long connecting and the first answer may take each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection is probed so often, and given up when a probe is not answered for as long.
const PROBE: Duration = Duration::from_secs(2);
/// First pause before another attempt to connect, doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Bytes that a store may send before this process has read them. Answers may be large, and many share one stream.
const WINDOW_BYTES: u32 = 8 << 20;

/// Why there is no connection.
#[derive(Debug, Error)]
enum Down {
    #[error("{0} is no address")]
    Address(String),
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("no answer in time")]
    Silent(#[from] Elapsed),
    #[error("the store refuses the connection: {0}")]
    Refused(#[from] Status),
}

/// A store in another process. Dropping it ends the connection.
pub struct Remote {
    shared: Arc<Shared>,
    started: AtomicBool,
    /// Dropped with this: the task stops.
    alive: watch::Sender<()>,
}

struct Shared {
    cluster_id: ClusterId,
    store_id: StoreId,
    address: String,
    outbox: Outbox,
}

impl Remote {
    /// The store `store_id` at `address` ("host:port"). Connects with the first request.
    pub fn new(cluster_id: ClusterId, store_id: StoreId, address: String) -> Self {
        let shared = Arc::new(Shared { cluster_id, store_id, address, outbox: Outbox::default() });
        Self { shared, started: AtomicBool::new(false), alive: watch::channel(()).0 }
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    fn start_once(&self) {
        if self.started.load(Ordering::Relaxed) || self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut alive = self.alive.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = shared.run() => {}
                // Never sent: this ends when the sender is dropped.
                _ = alive.changed() => {}
            }
            shared.outbox.close();
        });
    }
}

impl RegionService for Remote {
    fn call(&self, request: RegionRequest) -> BoxFuture<RegionResponse> {
        self.start_once();
        let answer = self.shared.outbox.push(request);
        Box::pin(async move { answer.await.unwrap_or_else(|_| lost()) })
    }
}

impl Shared {
    async fn run(self: &Arc<Self>) {
        let mut pause = PAUSE_MIN;
        loop {
            std::future::poll_fn(|context| self.outbox.poll_waiting(context)).await;
            match self.connect().await {
                Ok(answers) => {
                    pause = PAUSE_MIN;
                    let end = self.serve(answers).await;
                    tracing::info!(store = %self.store_id, address = self.address, why = end, "lost a store's connection");
                }
                Err(why) => {
                    tracing::info!(store = %self.store_id, address = self.address, %why, "cannot reach a store");
                }
            }
            metrics::counter!("braid_proxy_store_disconnects_total").increment(1);
            self.outbox.close();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            self.outbox.wait();
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<Streaming<ResponseFrame>, Down> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|_| Down::Address(self.address.clone()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = timeout(CONNECT_TIMEOUT, endpoint.connect()).await??;
        let mut client = RegionStoreClient::new(channel).max_decoding_message_size(usize::MAX);
        let frames = Frames { shared: Arc::clone(self), connection: self.outbox.ended(), greeted: false };
        Ok(timeout(CONNECT_TIMEOUT, client.serve(frames)).await??.into_inner())
    }

    /// Hands out answers until the connection ends; returns why it did.
    async fn serve(&self, mut answers: Streaming<ResponseFrame>) -> String {
        self.outbox.open();
        loop {
            match answers.message().await {
                Ok(Some(frame)) => self.outbox.answer(frame.responses),
                Ok(None) => return "the store closed it".to_owned(),
                Err(status) => return status.message().to_owned(),
            }
        }
    }
}

/// What is written: the empty frame that opens the stream, then whatever the outbox has.
struct Frames {
    shared: Arc<Shared>,
    /// What the outbox knows this connection by.
    connection: u64,
    greeted: bool,
}

impl Stream for Frames {
    type Item = RequestFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RequestFrame>> {
        let requests = match self.greeted {
            true => std::task::ready!(self.shared.outbox.poll_frame(self.connection, context)),
            false => Some(Vec::new()),
        };
        let Some(requests) = requests else { return Poll::Ready(None) };
        self.greeted = true;
        let cluster_id = self.shared.cluster_id.0;
        Poll::Ready(Some(RequestFrame { cluster_id, to_store: self.shared.store_id.0, requests }))
    }
}
