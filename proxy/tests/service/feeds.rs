//! What the stores of a [`World`] tell watches, behind a connection as real ones do.

use std::sync::Arc;

use braid_proto::key::KeyRange;
use braid_proto::pb::region_watch_server::{RegionWatch, RegionWatchServer};
use braid_proto::pb::{
    Follow, Joined, RegionEvent, RegionEvents, StoreFrontier, WatchFeed, WatchNews, WatchOrder, watch_news, watch_order,
};
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::process::Process;
use crate::world::World;

/// Serves the watches of all stores at one address.
pub fn serve(world: &Arc<World>) -> Process {
    let feeds = RegionWatchServer::new(Feeds { world: Arc::clone(world) });
    Process::start("127.0.0.1:0", Server::builder().add_service(feeds))
}

struct Feeds {
    world: Arc<World>,
}

#[tonic::async_trait]
impl RegionWatch for Feeds {
    type FollowStream = BoxStream<'static, Result<WatchFeed, Status>>;

    async fn follow(&self, request: Request<Streaming<WatchOrder>>) -> Result<Response<Self::FollowStream>, Status> {
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(run(Arc::clone(&self.world), request.into_inner(), tell));
        Ok(Response::new(UnboundedReceiverStream::new(told).boxed()))
    }
}

/// One stream, until the proxy ends it.
async fn run(
    world: Arc<World>,
    mut orders: Streaming<WatchOrder>,
    tell: mpsc::UnboundedSender<Result<WatchFeed, Status>>,
) {
    let mut follows: Vec<Follow> = Vec::new();
    let mut happened = world.happened();
    loop {
        let mut news = Vec::new();
        tokio::select! {
            order = orders.next() => match order.and_then(Result::ok).map(|order| order.order) {
                Some(Some(watch_order::Order::Follow(follow))) => {
                    let joined = Joined { id: follow.id, term: 1, frontier: follow.after };
                    news.push(watch_news::News::Joined(joined));
                    follows.push(follow);
                }
                Some(Some(watch_order::Order::Unfollow(gone))) => follows.retain(|follow| follow.id != gone.id),
                Some(_) => {}
                None => return,
            },
            changed = happened.changed() => if changed.is_err() { return },
        }
        let (revision, _) = world.bound();
        for follow in &mut follows {
            let range = KeyRange { start: follow.start.clone(), end: follow.end.clone() };
            for (at, events) in world.events(&range, follow.after).into_iter().filter(|(at, _)| *at <= revision) {
                let events = (0..).zip(events).map(|(sub, event)| RegionEvent { sub, event: Some(event) }).collect();
                let events = RegionEvents { ids: vec![follow.id], revision: at, events };
                news.push(watch_news::News::Events(events));
            }
            follow.after = revision;
        }
        news.push(watch_news::News::Frontier(StoreFrontier { revision, ..StoreFrontier::default() }));
        let news = news.into_iter().map(|news| WatchNews { news: Some(news) }).collect();
        if tell.send(Ok(WatchFeed { news })).is_err() {
            return;
        }
    }
}
