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
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Streaming;

use super::connection::{self, Down, Pause};
use super::lost;
use super::outbox::Outbox;

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
        let mut pause = Pause::default();
        // Why it could not be reached, said once: a store may be away for days.
        let mut said = String::new();
        loop {
            std::future::poll_fn(|context| self.outbox.poll_waiting(context)).await;
            let mut stood = Duration::ZERO;
            match self.connect().await {
                Ok(answers) => {
                    said.clear();
                    let begun = Instant::now();
                    let end = self.serve(answers).await;
                    tracing::info!(store = %self.store_id, address = self.address, why = %end, "lost a store's connection");
                    stood = begun.elapsed();
                }
                Err(why) => {
                    let why = why.to_string();
                    if why != said {
                        tracing::info!(store = %self.store_id, address = self.address, why, "cannot reach a store");
                        said = why;
                    }
                }
            }
            metrics::counter!("braid_proxy_store_disconnects_total").increment(1);
            self.outbox.close();
            tokio::time::sleep(pause.after(stood)).await;
            self.outbox.wait();
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<Streaming<ResponseFrame>, Down> {
        let channel = connection::connect(&self.address).await?;
        let mut client = RegionStoreClient::new(channel).max_decoding_message_size(usize::MAX);
        let frames = Frames { shared: Arc::clone(self), connection: self.outbox.ended(), greeted: false };
        connection::opened(client.serve(frames)).await
    }

    /// Hands out answers until the connection ends; returns why it did.
    async fn serve(&self, mut answers: Streaming<ResponseFrame>) -> Down {
        self.outbox.open();
        loop {
            match answers.message().await {
                Ok(Some(frame)) => self.outbox.answer(frame.responses),
                Ok(None) => return Down::Closed,
                Err(status) => return Down::Refused(status),
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
