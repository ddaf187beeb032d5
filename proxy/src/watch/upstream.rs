//! The connection to one store that carries every follow there.
//!
//! 1. The first follow for a store starts a task. It connects and opens the stream; the first order names the cluster
//!    and the store. Until then orders wait.
//! 2. Then orders go out as they come, and what the store says is handed to the hub in the order in which it came.
//! 3. When the connection ends, goes silent (HTTP/2 pings) or cannot be made, the hub places every follow anew. Until
//!    the pause before the next attempt is over, follows for this store come back at once: another store most likely
//!    leads by then. Pauses double until a connection has stood for a while.
//!
//! Orders that wait are bounded by what they are about: at most one follow and one unfollow for each piece that exists
//! or has existed since the last was sent, and few nudges, which [`super::merge::stream`] holds back.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::id::{ClusterId, StoreId};
use braid_proto::pb::region_watch_client::RegionWatchClient;
use braid_proto::pb::{WatchFeed, WatchOrder};
use futures::stream;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, error::Elapsed, timeout};
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

/// How long connecting and the first answer may take each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection is probed so often, and given up when a probe is not answered for as long.
const PROBE: Duration = Duration::from_secs(2);
/// First pause before another attempt to connect, doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Bytes that a store may send before this process has read them.
const WINDOW_BYTES: u32 = 8 << 20;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum Down {
    /// Nobody knows where the store is.
    #[error("nobody knows where it is")]
    Unknown,
    /// Its address cannot be one.
    #[error("{0} is no address")]
    Address(String),
    /// It cannot be reached.
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// It does not answer.
    #[error("no answer in time")]
    Silent(#[from] Elapsed),
    /// It refuses, or the connection broke.
    #[error("{0}")]
    Refused(#[from] Status),
    /// It has ended the stream.
    #[error("the store closed it")]
    Closed,
}

/// The way to one store.
pub enum Link {
    /// Being connected, or open: orders are written in this order.
    Up(mpsc::UnboundedSender<WatchOrder>),
    /// Nothing is sent until the pause is over.
    Down,
    /// The next order connects.
    Idle,
}

/// Who hears what a store says.
pub trait Listener: Send + Sync + 'static {
    /// The store says this.
    fn feed(&self, store: StoreId, feed: WatchFeed);
    /// The connection is gone, with whatever was ordered on it; the link becomes [`Link::Down`].
    fn lost(&self, store: StoreId);
    /// The pause is over: the link becomes [`Link::Idle`].
    fn rested(&self, store: StoreId);
}

/// Pauses between attempts to reach one store.
#[derive(Clone, Copy, Debug)]
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pause {
    /// The pause after a connection that stood for `stood`, and what comes next time.
    pub fn after(&mut self, stood: Duration) -> Duration {
        if stood > PAUSE_MAX {
            *self = Self::default();
        }
        let now = self.0;
        self.0 = (now * 2).min(PAUSE_MAX);
        now
    }
}

/// Serves one connection to `store`, from the first order to its end and the pause after it.
pub async fn run(
    listener: Arc<dyn Listener>,
    cluster_id: ClusterId,
    store: StoreId,
    address: Option<String>,
    orders: mpsc::UnboundedReceiver<WatchOrder>,
    pause: impl FnOnce(Duration) -> Duration,
) {
    let begun = Instant::now();
    let why = match open(cluster_id, store, address, orders).await {
        Ok(feeds) => serve(&*listener, store, feeds).await,
        Err(why) => why,
    };
    tracing::info!(%store, %why, "no watch stream to a store");
    listener.lost(store);
    tokio::time::sleep(pause(begun.elapsed())).await;
    listener.rested(store);
}

async fn open(
    cluster_id: ClusterId,
    store: StoreId,
    address: Option<String>,
    mut orders: mpsc::UnboundedReceiver<WatchOrder>,
) -> Result<Streaming<WatchFeed>, Down> {
    let address = address.ok_or(Down::Unknown)?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Down::Address(address.clone()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PROBE)
        .keep_alive_timeout(PROBE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let channel = timeout(CONNECT_TIMEOUT, endpoint.connect()).await??;
    let mut client = RegionWatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut greeted = false;
    let orders = stream::poll_fn(move |context| {
        orders.poll_recv(context).map(|order| {
            order.map(|order| match std::mem::replace(&mut greeted, true) {
                true => order,
                false => WatchOrder { cluster_id: cluster_id.0, to_store: store.0, ..order },
            })
        })
    });
    Ok(timeout(CONNECT_TIMEOUT, client.follow(orders)).await??.into_inner())
}

/// Hands on what the store says until the connection ends; returns why it did.
async fn serve(listener: &dyn Listener, store: StoreId, mut feeds: Streaming<WatchFeed>) -> Down {
    loop {
        match feeds.message().await {
            Ok(Some(feed)) => listener.feed(store, feed),
            Ok(None) => return Down::Closed,
            Err(status) => return Down::Refused(status),
        }
    }
}
