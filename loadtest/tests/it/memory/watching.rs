//! Watches from now on, of any range, with ids that the client chooses.

use std::pin::Pin;
use std::sync::Arc;

use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::watch_server::Watch;
use braid_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use braid_proto::etcd::mvccpb::{Event, KeyValue};
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

/// Serves one stream until either side goes.
async fn serve(state: Arc<Mutex<State>>, mut requests: Streaming<WatchRequest>, out: mpsc::Sender<Reply>) {
    let mut watches: Vec<WatchCreateRequest> = Vec::new();
    let mut events = state.lock().await.events.subscribe();
    loop {
        let replies = tokio::select! {
            request = requests.next() => {
                let Some(Ok(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })) = request else {
                    return;
                };
                let created = WatchResponse { watch_id: create.watch_id, created: true, ..WatchResponse::default() };
                watches.push(create);
                vec![created]
            }
            event = events.recv() => {
                let Ok(kv) = event else { return };
                let told = watches.iter().filter(|watch| sees(watch, &kv));
                told.map(|watch| response(watch.watch_id, kv.clone())).collect()
            }
        };
        for reply in replies {
            if out.send(Ok(reply)).await.is_err() {
                return;
            }
        }
    }
}

fn sees(watch: &WatchCreateRequest, kv: &KeyValue) -> bool {
    match &watch.range_end[..] {
        b"" => kv.key == watch.key,
        b"\0" => kv.key >= watch.key,
        end => kv.key >= watch.key && kv.key[..] < *end,
    }
}

fn response(watch_id: i64, kv: KeyValue) -> WatchResponse {
    let event = Event { kv: Some(kv), ..Event::default() };
    WatchResponse { watch_id, events: vec![event], ..WatchResponse::default() }
}
