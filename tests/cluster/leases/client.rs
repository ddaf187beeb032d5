//! Clients over gRPC: plain calls, one that keeps a lease alive, one that notes what a watch tells it, and when.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_proto::etcd::etcdserverpb::kv_client::KvClient;
use braid_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use braid_proto::etcd::etcdserverpb::watch_client::WatchClient;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::v3electionpb::election_client::ElectionClient;
use braid_proto::etcd::v3lockpb::lock_client::LockClient;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::harness::PATIENCE;

/// Between two keep-alives; a lease of three seconds outlives the loss of several.
const KEEP: Duration = Duration::from_millis(400);
/// How long one question may take before it is asked again elsewhere.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Pause before that.
const AGAIN: Duration = Duration::from_millis(50);

/// Text as a key or value.
pub fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// What asks one proxy.
#[derive(Clone)]
pub struct Client {
    pub kv: KvClient<Channel>,
    pub lease: LeaseClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub lock: LockClient<Channel>,
    pub election: ElectionClient<Channel>,
}

impl Client {
    /// Talks to the proxy at `url`; connects with the first call.
    pub fn at(url: &str) -> Self {
        let channel = Endpoint::from_shared(url.to_owned()).expect("a URL of ours").connect_lazy();
        Self {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel),
        }
    }

    /// Grants a lease. Repeats itself until that is certain, so `id` must be new.
    pub async fn grant(&self, id: i64, ttl: i64) {
        insist("a grant", || async {
            match self.lease.clone().lease_grant(LeaseGrantRequest { id, ttl }).await {
                Ok(granted) => {
                    assert_eq!((granted.get_ref().id, granted.get_ref().ttl), (id, ttl));
                    Ok(())
                }
                // An attempt whose answer was lost.
                Err(status) if status.message() == "etcdserver: lease already exists" => Ok(()),
                Err(status) => Err(status),
            }
        })
        .await;
    }

    /// Ends a lease; the revision, or why not.
    pub async fn revoke(&self, id: i64) -> Result<i64, Status> {
        let answer = self.lease.clone().lease_revoke(LeaseRevokeRequest { id }).await?.into_inner();
        Ok(answer.header.expect("a header").revision)
    }

    /// Puts a key with a lease; the revision, or why not.
    pub async fn put(&self, key: &str, lease: i64) -> Result<i64, Status> {
        let put = PutRequest { key: text(key), value: text("v"), lease, ..PutRequest::default() };
        Ok(self.kv.clone().put(put).await?.into_inner().header.expect("a header").revision)
    }

    /// Puts keys with a lease, again and again until each is there.
    pub async fn attach(&self, keys: &[String], lease: i64) {
        for key in keys {
            insist(key, || self.put(key, lease)).await;
        }
    }

    /// What there is of a lease, with its keys.
    pub async fn state(&self, id: i64) -> LeaseTimeToLiveResponse {
        let question = LeaseTimeToLiveRequest { id, keys: true };
        insist("the state of a lease", || async {
            Ok(self.lease.clone().lease_time_to_live(question).await?.into_inner())
        })
        .await
    }

    /// Whether there is such a lease.
    pub async fn has(&self, id: i64) -> bool {
        self.state(id).await.granted_ttl > 0
    }

    /// All keys that begin with `prefix`.
    pub async fn under(&self, prefix: &str) -> Vec<KeyValue> {
        let end = format!("{prefix}\u{7f}");
        self.range(RangeRequest { key: text(prefix), range_end: text(&end), ..RangeRequest::default() }).await
    }

    /// All keys.
    pub async fn everything(&self) -> Vec<KeyValue> {
        let all = Bytes::from_static(b"\0");
        self.range(RangeRequest { key: all.clone(), range_end: all, ..RangeRequest::default() }).await
    }

    async fn range(&self, question: RangeRequest) -> Vec<KeyValue> {
        let ask = || async { Ok(self.kv.clone().range(question.clone()).await?.into_inner().kvs) };
        insist("a range", ask).await
    }
}

/// Asks until there is an answer. What may come of servers that die is asked again; any other error fails the test.
async fn insist<T, F: Future<Output = Result<T, Status>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        let status = match timeout(ATTEMPT, ask()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(status)) => status,
            Err(_) => Status::unavailable("no answer"),
        };
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status}");
        assert!(started.elapsed() < PATIENCE, "{what}: {status}");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Keeps a lease alive until it is stopped.
pub struct Keeper {
    kept: Arc<Mutex<Kept>>,
    keeping: JoinHandle<()>,
}

struct Kept {
    answered: usize,
    /// When the last keep-alive that was answered left: the lease has its whole time from then on, or later.
    last: Instant,
    lost: bool,
}

impl Keeper {
    pub fn start(client: &Client, lease: i64) -> Self {
        let kept = Arc::new(Mutex::new(Kept { answered: 0, last: Instant::now(), lost: false }));
        let (client, noting) = (client.clone(), Arc::clone(&kept));
        let keeping = tokio::spawn(async move {
            let mut stream = None;
            let mut tick = tokio::time::interval(KEEP);
            loop {
                tick.tick().await;
                let left = Instant::now();
                let Ok(Ok(ttl)) = timeout(ATTEMPT, keep(&client, lease, &mut stream)).await else {
                    // Another stream for the next one.
                    stream = None;
                    continue;
                };
                let mut kept = noting.lock();
                if ttl <= 0 {
                    kept.lost = true;
                    return;
                }
                (kept.answered, kept.last) = (kept.answered + 1, left);
            }
        });
        Self { kept, keeping }
    }

    /// Waits for `count` more answers.
    pub async fn answered_more(&self, count: usize) {
        let (started, before) = (Instant::now(), self.kept.lock().answered);
        while self.kept.lock().answered < before + count {
            self.must_be_kept();
            assert!(started.elapsed() < PATIENCE, "the lease is not kept alive");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Fails if the cluster has said that there is no such lease.
    pub fn must_be_kept(&self) {
        assert!(!self.kept.lock().lost, "a lease that was kept alive is gone");
    }

    /// Keeps it no longer. Returns when the last keep-alive that was answered left.
    pub fn stop(self) -> Instant {
        self.must_be_kept();
        self.keeping.abort();
        self.kept.lock().last
    }
}

type Stream = (mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>);

/// One keep-alive and its answer, on `stream`, which is opened if there is none.
async fn keep(client: &Client, id: i64, stream: &mut Option<Stream>) -> Result<i64, Status> {
    let (_, answers) = match stream {
        Some(stream) => {
            stream.0.try_send(LeaseKeepAliveRequest { id }).map_err(|_| Status::aborted("the stream is broken"))?;
            stream
        }
        None => {
            let (requests, outgoing) = mpsc::channel(1);
            requests.try_send(LeaseKeepAliveRequest { id }).expect("room for one");
            let answers = client.lease.clone().lease_keep_alive(ReceiverStream::new(outgoing)).await?.into_inner();
            stream.insert((requests, answers))
        }
    };
    let answer = answers.message().await?.ok_or_else(|| Status::aborted("the stream has ended"))?;
    assert_eq!(answer.id, id);
    Ok(answer.ttl)
}

/// What a response of a watch said was deleted.
#[derive(Clone, Debug)]
pub struct Gone {
    pub at: Instant,
    /// Revision and key of each delete in the response.
    pub deletes: Vec<(i64, String)>,
}

/// A watch over all keys that notes every response with deletes.
pub struct Events {
    gone: Arc<Mutex<Vec<Gone>>>,
    reading: JoinHandle<()>,
}

impl Events {
    /// From now on. Begins again where it was if its proxy or stream fails.
    pub async fn start(client: &Client) -> Self {
        let (gone, client) = (Arc::new(Mutex::new(Vec::new())), client.clone());
        let noting = Arc::clone(&gone);
        let (created, is_created) = tokio::sync::oneshot::channel();
        let reading = tokio::spawn(async move {
            let (mut created, mut next) = (Some(created), 0);
            loop {
                // Whatever ends the stream: it goes on behind what it has told.
                _ = read(&client, &mut next, &mut created, &noting).await;
                tokio::time::sleep(AGAIN).await;
            }
        });
        is_created.await.expect("a watch");
        Self { gone, reading }
    }

    /// Waits until all `keys` are deleted. Returns when that was told, and the revision: all in one response, which holds
    /// nothing else.
    pub async fn all_gone(&self, keys: &[String]) -> (Instant, i64) {
        let mut expected = keys.to_vec();
        expected.sort();
        let started = Instant::now();
        loop {
            let gone = self.gone.lock().clone();
            if let Some(response) = gone.iter().find(|gone| gone.deletes.iter().any(|(_, key)| *key == expected[0])) {
                let mut told: Vec<String> = response.deletes.iter().map(|(_, key)| key.clone()).collect();
                told.sort();
                assert_eq!(told, expected, "one response has them all");
                let revision = response.deletes[0].0;
                assert!(response.deletes.iter().all(|(at, _)| *at == revision), "at one revision: {response:?}");
                return (response.at, revision);
            }
            assert!(started.elapsed() < PATIENCE, "{expected:?} are not deleted");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// All deletes that were told so far.
    pub fn deletes(&self) -> Vec<(i64, String)> {
        self.gone.lock().iter().flat_map(|gone| gone.deletes.clone()).collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

async fn read(
    client: &Client,
    next: &mut i64,
    created: &mut Option<tokio::sync::oneshot::Sender<()>>,
    noting: &Mutex<Vec<Gone>>,
) -> Result<(), Status> {
    let all = Bytes::from_static(b"\0");
    let create = WatchCreateRequest { key: all.clone(), range_end: all, start_revision: *next, ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (requests, outgoing) = mpsc::channel(1);
    requests.try_send(request).expect("room for one");
    let mut responses = client.watch.clone().watch(ReceiverStream::new(outgoing)).await?.into_inner();
    while let Some(response) = responses.message().await? {
        assert!(!response.canceled, "{response:?}");
        if response.created {
            // So that a stream that fails before the first event misses nothing.
            *next = (*next).max(response.header.as_ref().expect("a header").revision + 1);
            _ = created.take().map(|created| created.send(()));
        }
        let mut deletes = Vec::new();
        for event in response.events {
            let deleted = event.r#type() == EventType::Delete;
            let kv = event.kv.expect("a key");
            *next = (*next).max(kv.mod_revision + 1);
            if deleted {
                deletes.push((kv.mod_revision, String::from_utf8_lossy(&kv.key).into_owned()));
            }
        }
        if !deletes.is_empty() {
            noting.lock().push(Gone { at: Instant::now(), deletes });
        }
    }
    Ok(())
}
