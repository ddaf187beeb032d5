//! Watches of any range, from now on or from a revision, with ids that the client chooses unless it has only one.

use std::pin::Pin;
use std::sync::Arc;

use braid_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::watch_server::Watch;
use braid_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use braid_proto::etcd::mvccpb::Event;
use braid_proto::etcd::mvccpb::event::EventType;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::State;

/// The watch service.
pub struct Watches {
    pub state: Arc<Mutex<State>>,
}

type Reply = Result<WatchResponse, Status>;

#[tonic::async_trait]
impl Watch for Watches {
    type WatchStream = Pin<Box<dyn Stream<Item = Reply> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (out, replies) = mpsc::channel(64);
        tokio::spawn(serve(Arc::clone(&self.state), request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }
}

/// One watch.
struct Open {
    request: WatchCreateRequest,
    /// First revision that it has not been told of from the past.
    from: i64,
}

/// Serves one stream until either side goes.
async fn serve(state: Arc<Mutex<State>>, mut requests: Streaming<WatchRequest>, out: mpsc::Sender<Reply>) {
    let mut watches: Vec<Open> = Vec::new();
    let mut events = state.lock().await.events.subscribe();
    loop {
        let replies = tokio::select! {
            request = requests.next() => match request {
                Some(Ok(WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) })) => {
                    let state = state.lock().await;
                    let (watch_id, start) = (request.watch_id, request.start_revision);
                    let watch = Open { from: if start > 0 { start } else { state.revision + 1 }, request };
                    let created = WatchResponse { watch_id, created: true, ..WatchResponse::default() };
                    let past = state.history.iter().filter(|event| watch.sees(event));
                    let replies = std::iter::once(created).chain(past.map(|event| response(watch_id, event.clone())));
                    let replies: Vec<_> = replies.collect();
                    watches.push(Open { from: state.revision + 1, ..watch });
                    replies
                }
                Some(Ok(WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) })) => {
                    watches.retain(|watch| watch.request.watch_id != cancel.watch_id);
                    vec![WatchResponse { watch_id: cancel.watch_id, canceled: true, ..WatchResponse::default() }]
                }
                _ => return,
            },
            event = events.recv() => {
                let Ok(event) = event else { return };
                let told = watches.iter().filter(|watch| watch.sees(&event));
                told.map(|watch| response(watch.request.watch_id, event.clone())).collect()
            }
        };
        for reply in replies {
            if out.send(Ok(reply)).await.is_err() {
                return;
            }
        }
    }
}

impl Open {
    fn sees(&self, event: &Event) -> bool {
        let kv = event.kv.as_ref().expect("every event has a key");
        let (request, noput) = (&self.request, i32::from(FilterType::Noput));
        let inside = match &request.range_end[..] {
            b"" => kv.key == request.key,
            b"\0" => kv.key >= request.key,
            end => kv.key >= request.key && kv.key[..] < *end,
        };
        let wanted = event.r#type() == EventType::Delete || !request.filters.contains(&noput);
        inside && wanted && kv.mod_revision >= self.from
    }
}

fn response(watch_id: i64, event: Event) -> WatchResponse {
    WatchResponse { watch_id, events: vec![event], ..WatchResponse::default() }
}
