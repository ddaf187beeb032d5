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
use braid_store_client::stores::connection::{self, Down};
use futures::stream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Streaming;

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

/// Serves one connection to `store`, from the first order to its end and the pause after it.
pub async fn run(
    listener: Arc<dyn Listener>,
    cluster_id: ClusterId,
    store: StoreId,
    address: Option<String>,
    orders: mpsc::UnboundedReceiver<WatchOrder>,
    pause: impl FnOnce(Duration) -> Duration,
) {
    let (why, stood) = match open(cluster_id, store, address, orders).await {
        Ok(feeds) => {
            let begun = Instant::now();
            (serve(&*listener, store, feeds).await, begun.elapsed())
        }
        Err(why) => (why, Duration::ZERO),
    };
    tracing::info!(%store, %why, "no watch stream to a store");
    listener.lost(store);
    tokio::time::sleep(pause(stood)).await;
    listener.rested(store);
}

async fn open(
    cluster_id: ClusterId,
    store: StoreId,
    address: Option<String>,
    mut orders: mpsc::UnboundedReceiver<WatchOrder>,
) -> Result<Streaming<WatchFeed>, Down> {
    let address = address.ok_or(Down::Unknown)?;
    let channel = connection::connect(&address).await?;
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
    connection::opened(client.follow(orders)).await
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
