//! The connection to one store that carries every follow there. A store of this process is called, the others are reached
//! over gRPC.
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
use braid_proto::service::RegionService;
use braid_store_client::stores::connection::{self, Down};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

/// The way to one store.
pub enum Link {
    /// Being connected, or open: orders are written in this order.
    Up(mpsc::UnboundedSender<WatchOrder>),
    /// Nothing is sent until the pause is over.
    Down,
    /// The next order connects.
    Idle,
}

/// How to reach a store.
pub enum Way {
    /// It lives in this process.
    Here(Arc<dyn RegionService>),
    /// It listens there; `None`: nobody has said where.
    There(Option<String>),
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
    way: Way,
    orders: mpsc::UnboundedReceiver<WatchOrder>,
    pause: impl FnOnce(Duration) -> Duration,
) {
    let opened = match way {
        Way::Here(service) => here(&*service, orders),
        Way::There(address) => there(cluster_id, store, address, orders).await,
    };
    let (why, stood) = match opened {
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

/// What a store says.
type Feeds = BoxStream<'static, Result<WatchFeed, Status>>;

fn here(service: &dyn RegionService, mut orders: mpsc::UnboundedReceiver<WatchOrder>) -> Result<Feeds, Down> {
    let orders = stream::poll_fn(move |context| orders.poll_recv(context)).boxed();
    Ok(service.follow(orders).ok_or(Down::Closed)?.map(Ok).boxed())
}

async fn there(
    cluster_id: ClusterId,
    store: StoreId,
    address: Option<String>,
    mut orders: mpsc::UnboundedReceiver<WatchOrder>,
) -> Result<Feeds, Down> {
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
    Ok(connection::opened(client.follow(orders)).await?.boxed())
}

/// Hands on what the store says until the connection ends; returns why it did.
async fn serve(listener: &dyn Listener, store: StoreId, mut feeds: Feeds) -> Down {
    loop {
        match feeds.next().await {
            Some(Ok(feed)) => listener.feed(store, feed),
            None => return Down::Closed,
            Some(Err(status)) => return Down::Refused(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::{RegionRequest, RegionResponse, StoreFrontier, WatchNews, watch_news, watch_order};
    use braid_proto::service::BoxFuture;
    use parking_lot::Mutex;

    use super::*;

    /// Answers every nudge with the frontier that it asks for.
    struct Echo;

    impl RegionService for Echo {
        fn call(&self, _: RegionRequest) -> BoxFuture<RegionResponse> {
            unreachable!("nothing is asked here")
        }

        fn follow(&self, orders: BoxStream<'static, WatchOrder>) -> Option<BoxStream<'static, WatchFeed>> {
            let feed = |order: WatchOrder| {
                let Some(watch_order::Order::Nudge(nudge)) = order.order else { panic!("{order:?}") };
                let frontier = StoreFrontier { revision: nudge.revision, ..StoreFrontier::default() };
                WatchFeed { news: vec![WatchNews { news: Some(watch_news::News::Frontier(frontier)) }] }
            };
            Some(orders.map(feed).boxed())
        }
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Listener for Heard {
        fn feed(&self, store: StoreId, feed: WatchFeed) {
            for news in feed.news {
                let Some(watch_news::News::Frontier(frontier)) = news.news else { panic!("{news:?}") };
                self.0.lock().push(format!("{store} is at {}", frontier.revision));
            }
        }

        fn lost(&self, store: StoreId) {
            self.0.lock().push(format!("{store} is lost"));
        }

        fn rested(&self, store: StoreId) {
            self.0.lock().push(format!("{store} has rested"));
        }
    }

    #[tokio::test]
    async fn a_store_of_this_process_is_called_until_its_stream_ends() {
        let heard = Arc::new(Heard::default());
        let (say, orders) = mpsc::unbounded_channel();
        for revision in [7, 9] {
            let order = Some(watch_order::Order::Nudge(braid_proto::pb::Nudge { revision }));
            say.send(WatchOrder { order, ..WatchOrder::default() }).expect("somebody listens");
        }
        drop(say);
        let listener = Arc::clone(&heard) as Arc<dyn Listener>;
        run(listener, ClusterId(1), StoreId(3), Way::Here(Arc::new(Echo)), orders, |_| Duration::ZERO).await;
        assert_eq!(*heard.0.lock(), ["s3 is at 7", "s3 is at 9", "s3 is lost", "s3 has rested"]);
    }
}
