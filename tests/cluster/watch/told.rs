//! A client that watches over gRPC and checks with every response that nothing comes twice, back or behind a bookmark.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::watch_client::WatchClient;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::harness::{PATIENCE, wait_for};

/// Between two questions how far the watch is, as kube-apiserver asks.
const ASK: Duration = Duration::from_millis(100);

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub revision: i64,
    pub key: Bytes,
    /// The value, or nothing if it was deleted.
    pub now: Option<KeyValue>,
    /// What was there before.
    pub before: Option<KeyValue>,
}

/// A watch over all keys, from `start` on, that wants to know what was there before.
pub fn everything(start: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: start,
        prev_kv: true,
        ..WatchCreateRequest::default()
    }
}

/// Each event says what the last one on its key left, and whether it created the key. `told` begins with the first event
/// of all.
pub fn check_previous(told: &[Told]) {
    let mut live: HashMap<&Bytes, &KeyValue> = HashMap::new();
    for event in told {
        assert_eq!(event.before.as_ref(), live.get(&event.key).copied(), "before {event:?}");
        match &event.now {
            Some(now) => {
                let creates = now.create_revision == now.mod_revision;
                assert_eq!((creates, now.version == 1), (event.before.is_none(), creates), "{event:?}");
                live.insert(&event.key, now);
            }
            None => _ = live.remove(&event.key),
        }
    }
}

/// What a watch was told, response by response, and up to where it was promised to be complete.
#[derive(Default)]
struct Heard {
    responses: Vec<Vec<Told>>,
    bookmark: i64,
    bookmarks: usize,
}

/// A watch that is read.
pub struct Watching {
    heard: Arc<Mutex<Heard>>,
    reading: JoinHandle<Status>,
}

/// A watch that is not read yet.
pub struct Asleep {
    responses: Streaming<WatchResponse>,
    _requests: mpsc::Sender<WatchRequest>,
}

fn request(union: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(union) }
}

async fn open(endpoint: &str, create: WatchCreateRequest, strict: bool) -> Asleep {
    let client = WatchClient::connect(endpoint.to_owned()).await.expect("the proxy listens");
    let (requests, outgoing) = mpsc::channel(4);
    requests.send(request(RequestUnion::CreateRequest(create))).await.expect("room for one");
    let mut call = Request::new(ReceiverStream::new(outgoing));
    if strict {
        call.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
    }
    let mut client = client.max_decoding_message_size(usize::MAX);
    let mut responses = client.watch(call).await.expect("a stream").into_inner();
    let created = responses.message().await.expect("a stream that stands").expect("an answer");
    assert!(created.created && !created.canceled, "{created:?}");
    Asleep { responses, _requests: requests }
}

impl Watching {
    pub async fn start(endpoint: &str, create: WatchCreateRequest) -> Self {
        Self::read(open(endpoint, create, false).await)
    }

    /// One that wants to be ended when there is no leader.
    pub async fn strict(endpoint: &str, create: WatchCreateRequest) -> Self {
        Self::read(open(endpoint, create, true).await)
    }

    /// One whose client does not read.
    pub async fn asleep(endpoint: &str, create: WatchCreateRequest) -> Asleep {
        open(endpoint, create, false).await
    }

    fn read(Asleep { mut responses, _requests: requests }: Asleep) -> Self {
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let telling = Arc::clone(&heard);
        let reading = tokio::spawn(async move {
            let mut ask = tokio::time::interval(ASK);
            loop {
                let response = tokio::select! {
                    response = responses.message() => response,
                    _ = ask.tick() => {
                        // One that is not read yet is as good.
                        _ = requests.try_send(request(RequestUnion::ProgressRequest(WatchProgressRequest {})));
                        continue;
                    }
                };
                match response {
                    Ok(Some(response)) => telling.lock().take(response),
                    Ok(None) => return Status::ok("the stream ended"),
                    Err(status) => return status,
                }
            }
        });
        Self { heard, reading }
    }

    pub fn newest(&self) -> i64 {
        self.heard.lock().newest()
    }

    pub fn responses(&self) -> Vec<Vec<Told>> {
        self.heard.lock().responses.clone()
    }

    /// Waits until everything up to `revision` has been told and promised, and ends the watch. Returns that.
    pub fn until(self, revision: i64) -> Vec<Told> {
        wait_for(&format!("the event of revision {revision}; the newest is {}", self.newest()), || {
            assert!(!self.reading.is_finished(), "the watch has ended");
            let heard = self.heard.lock();
            (heard.newest() >= revision && heard.bookmark >= revision).then_some(())
        });
        self.reading.abort();
        let heard = self.heard.lock();
        assert!(heard.bookmarks > 0);
        heard.responses.iter().flatten().filter(|told| told.revision <= revision).cloned().collect()
    }

    /// Waits until the stream ends; how it does.
    pub async fn end(self) -> Status {
        self.reading.await.expect("the reader does not panic")
    }
}

impl Asleep {
    /// Reads until the watch is cancelled by a compaction. Returns the events, and where history begins.
    pub async fn wake(mut self) -> (Vec<Told>, i64) {
        let mut heard = Heard::default();
        loop {
            let response = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an end in time");
            let response = response.expect("a stream that stands").expect("more to come");
            if response.canceled {
                let header = response.header.expect("a header");
                assert_eq!((header.revision, response.cancel_reason.as_str()), (0, ""));
                return (heard.responses.concat(), response.compact_revision);
            }
            heard.take(response);
        }
    }
}

impl Heard {
    fn newest(&self) -> i64 {
        self.responses.last().and_then(|events| events.last()).map_or(0, |told| told.revision)
    }

    fn take(&mut self, response: WatchResponse) {
        assert!(!response.canceled && !response.created, "{response:?}");
        let said = response.header.as_ref().expect("a header").revision;
        if response.events.is_empty() {
            assert_eq!(response.watch_id, -1, "only what was asked for");
            assert!(said >= self.bookmark && said >= self.newest(), "@{said} after @{}", self.bookmark);
            self.bookmark = said;
            self.bookmarks += 1;
            return;
        }
        let events: Vec<Told> = response.events.into_iter().map(told).collect();
        let (first, last) = (events[0].revision, events[events.len() - 1].revision);
        assert!(first > self.newest(), "@{first} after @{}", self.newest());
        assert!(first > self.bookmark, "@{first} although @{} was promised to be all", self.bookmark);
        assert!(events.is_sorted_by(|a, b| a.revision <= b.revision) && said >= last, "{events:?}");
        self.responses.push(events);
    }
}

fn told(event: Event) -> Told {
    let deleted = event.r#type() == EventType::Delete;
    let kv = event.kv.expect("a key");
    Told { revision: kv.mod_revision, key: kv.key.clone(), now: (!deleted).then_some(kv), before: event.prev_kv }
}
