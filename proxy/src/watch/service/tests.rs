//! A real client over loopback, and a source that is told what happens.

mod fake;

use std::sync::atomic::Ordering;

use braid_proto::etcd::etcdserverpb::watch_client::WatchClient;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::Code;
use tonic::transport::{Channel, Server};

use super::*;
use fake::{FakeCluster, FakeSource};

/// No test may wait longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    source: Arc<FakeSource>,
    cluster: Arc<FakeCluster>,
    in_flight: Arc<InFlight>,
    stop: watch::Sender<bool>,
    channel: Channel,
    server: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One stream of one client.
struct Talk {
    requests: mpsc::UnboundedSender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

async fn world(configure: impl FnOnce(&mut Settings)) -> World {
    let (source, cluster) = (FakeSource::new(), FakeCluster::at(10));
    source.close(10);
    let mut settings = Settings::of(&ProxyConfig::new(braid_proto::id::ClusterId(77), 5, "p1"));
    configure(&mut settings);
    let in_flight = InFlight::new(3);
    let (stop, stopped) = watch::channel(false);
    let (events, outside) = (Arc::clone(&source), Arc::clone(&cluster));
    let service = WatchService::new(events, outside, settings, Arc::clone(&in_flight), stopped);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(async move { serving.await.expect("served") });
    let channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
    World { source, cluster, in_flight, stop, channel, server }
}

impl World {
    async fn try_talk(&self, require_leader: bool) -> Result<Talk, Status> {
        let (requests, line) = mpsc::unbounded_channel();
        let mut request = tonic::Request::new(UnboundedReceiverStream::new(line));
        if require_leader {
            request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
        }
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        let responses = client.watch(request).await?.into_inner();
        Ok(Talk { requests, responses })
    }

    async fn talk(&self) -> Talk {
        self.try_talk(false).await.expect("a stream")
    }
}

impl Talk {
    fn say(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).expect("the stream stands");
    }

    fn create(&self, request: WatchCreateRequest) {
        self.say(RequestUnion::CreateRequest(request));
    }

    async fn result(&mut self) -> Result<Option<WatchResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("in time")
    }

    async fn next(&mut self) -> WatchResponse {
        self.result().await.expect("no error").expect("a response")
    }

    /// Creates a watch and waits until it is.
    async fn watch(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.create(request);
        let created = self.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        created
    }
}

fn key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

fn revisions(response: &WatchResponse) -> Vec<i64> {
    response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision).collect()
}

#[tokio::test]
async fn a_client_watches_hears_and_cancels() {
    let world = world(|_| {}).await;
    let mut talk = world.talk().await;
    let created = talk.watch(key("a")).await;
    let header = created.header.expect("a header");
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (77, 5, 10, 3));
    world.source.until(|all, _| all == 1).await;
    world.source.put("b", 11, 1);
    world.source.put("a", 12, 1);
    let response = talk.next().await;
    assert_eq!((revisions(&response), response.header.expect("a header").revision), (vec![12], 12));
    assert_eq!(response.events[0].kv.as_ref().expect("a key").value, "v");
    talk.say(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 }));
    let canceled = talk.next().await;
    assert!(canceled.canceled && canceled.cancel_reason.is_empty() && canceled.compact_revision == 0);
    world.source.until(|all, _| all == 0).await;
}

#[tokio::test]
async fn many_watches_on_one_stream_are_created_in_order() {
    let world = world(|_| {}).await;
    let mut talk = world.talk().await;
    (0..1000).for_each(|_| talk.create(key("a")));
    for id in 0..1000 {
        let created = talk.next().await;
        assert!(created.created && created.watch_id == id, "{created:?}");
    }
    world.source.until(|all, _| all == 1000).await;
    world.source.put("a", 11, 1);
    let mut heard = Vec::new();
    for _ in 0..1000 {
        let response = talk.next().await;
        assert_eq!(revisions(&response), [11]);
        heard.push(response.watch_id);
    }
    heard.sort_unstable();
    assert!(heard.into_iter().eq(0..1000));
}

#[tokio::test]
async fn a_slow_client_loses_nothing_and_does_not_hold_up_others() {
    let world = world(|_| {}).await;
    let (mut slow, mut quick) = (world.talk().await, world.talk().await);
    slow.watch(key("a")).await;
    quick.watch(key("a")).await;
    world.source.until(|all, _| all == 2).await;
    let count = 600;
    for revision in 11..11 + count {
        world.source.put("a", revision, 100_000);
        assert_eq!(revisions(&quick.next().await), [revision]);
    }
    world.source.until(|_, waiting| waiting == 1).await;
    let mut heard = Vec::new();
    while heard.len() < count as usize {
        heard.extend(revisions(&slow.next().await));
    }
    assert!(heard.into_iter().eq(11..11 + count));
    world.source.until(|_, waiting| waiting == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let world = world(|_| {}).await;
    let mut talk = world.talk().await;
    talk.watch(key("a")).await;
    talk.watch(key("b")).await;
    world.source.until(|all, _| all == 2).await;
    assert_eq!(world.in_flight.count(), 1);
    drop(talk);
    world.source.until(|all, _| all == 0).await;
    let gone = async {
        while world.in_flight.count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("in time");
}

#[tokio::test]
async fn a_client_that_says_no_more_still_hears() {
    let world = world(|_| {}).await;
    let mut talk = world.talk().await;
    talk.watch(key("a")).await;
    let Talk { requests, responses } = talk;
    drop(requests);
    let mut talk = Talk { requests: mpsc::unbounded_channel().0, responses };
    world.source.until(|all, _| all == 1).await;
    world.source.put("a", 11, 1);
    assert_eq!(revisions(&talk.next().await), [11]);
}

#[tokio::test]
async fn progress_on_request_and_none_without_watches() {
    let world = world(|_| {}).await;
    let mut talk = world.talk().await;
    talk.say(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    // Were the request answered, that answer would come first.
    talk.watch(key("a")).await;
    world.source.close(20);
    world.cluster.revision.store(20, Ordering::SeqCst);
    talk.say(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    let report = talk.next().await;
    assert_eq!((report.watch_id, report.header.expect("a header").revision), (-1, 20));
    assert!(report.events.is_empty() && !report.created && !report.canceled);
}

#[tokio::test]
async fn notices_come_by_themselves() {
    let world = world(|settings| settings.progress_interval = Duration::from_millis(100)).await;
    let mut talk = world.talk().await;
    talk.watch(WatchCreateRequest { progress_notify: true, ..key("a") }).await;
    world.source.close(20);
    world.cluster.revision.store(20, Ordering::SeqCst);
    let mut notice = talk.next().await;
    // The first may have been on its way before the store moved on.
    if notice.header.as_ref().is_some_and(|header| header.revision == 10) {
        notice = talk.next().await;
    }
    assert_eq!((notice.watch_id, notice.header.expect("a header").revision), (0, 20));
    assert!(notice.events.is_empty());
}

#[tokio::test]
async fn fragments_arrive_whole() {
    let world = world(|settings| settings.limits.fragment_bytes = 1000).await;
    let mut talk = world.talk().await;
    talk.watch(WatchCreateRequest { fragment: true, ..key("a") }).await;
    world.source.until(|all, _| all == 1).await;
    world.source.put("a", 11, 5000);
    let response = talk.next().await;
    assert!(!response.fragment, "one event is not cut");
    assert_eq!(response.events[0].kv.as_ref().expect("a key").value.len(), 5000);
    world.source.put_all(&["a"; 5], 12, 400);
    let mut heard = Vec::new();
    loop {
        let response = talk.next().await;
        heard.push(response.events.len());
        assert_eq!(response.header.expect("a header").revision, 12);
        if !response.fragment {
            break;
        }
    }
    assert_eq!(heard, [2, 2, 1]);
}

#[tokio::test]
async fn a_stream_ends_when_the_proxy_stops() {
    let world = world(|_| {}).await;
    let mut talk = world.talk().await;
    talk.watch(key("a")).await;
    world.stop.send_replace(true);
    let status = talk.result().await.expect_err("the end");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, error::STOPPED.message));
    world.source.until(|all, _| all == 0).await;
}

#[tokio::test]
async fn a_stream_that_wants_a_leader_ends_without_one_and_others_do_not() {
    let world = world(|_| {}).await;
    let mut strict = world.try_talk(true).await.expect("there is a leader");
    let mut patient = world.talk().await;
    strict.watch(key("a")).await;
    patient.watch(key("a")).await;
    world.source.until(|all, _| all == 2).await;
    world.cluster.leader.store(false, Ordering::SeqCst);
    let status = strict.result().await.expect_err("the end");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    let refused = world.try_talk(true).await.err().expect("refused at once");
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
    world.source.put("a", 11, 1);
    assert_eq!(revisions(&patient.next().await), [11]);
}

#[tokio::test]
async fn a_stream_that_wants_a_leader_ends_if_a_region_of_its_watches_has_none_for_long() {
    let world = world(|_| {}).await;
    let mut strict = world.try_talk(true).await.expect("there is a leader");
    let mut elsewhere = world.try_talk(true).await.expect("there is a leader");
    let mut patient = world.talk().await;
    strict.watch(key("a")).await;
    elsewhere.watch(key("b")).await;
    patient.watch(key("a")).await;
    world.source.until(|all, _| all == 3).await;
    let begun = std::time::Instant::now();
    world.source.silence(&["a"]);
    let status = strict.result().await.expect_err("the end");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    assert!(begun.elapsed() > Duration::from_millis(1_900), "only after three looks: {:?}", begun.elapsed());
    world.source.silence(&[]);
    for (talk, key) in [(&mut elsewhere, "b"), (&mut patient, "a")] {
        world.source.put(key, if key == "b" { 11 } else { 12 }, 1);
        assert_eq!(talk.next().await.events.len(), 1);
    }
}

#[tokio::test]
async fn streams_count_as_requests_under_way() {
    let world = world(|_| {}).await;
    let _talks = [world.talk().await, world.talk().await, world.talk().await];
    let refused = world.try_talk(false).await.err().expect("one too many");
    assert_eq!(refused.message(), error::TOO_MANY_REQUESTS.message);
}

#[tokio::test]
async fn other_methods_are_unknown() {
    let (source, cluster) = (FakeSource::new(), FakeCluster::at(10));
    let settings = Settings::of(&ProxyConfig::new(braid_proto::id::ClusterId(77), 5, "p1"));
    let mut service = WatchService::new(source, cluster, settings, InFlight::new(1), watch::channel(false).1);
    let request = Request::builder().uri("/etcdserverpb.Watch/Other").body(Body::empty()).expect("a request");
    let answer = service.call(request).await.expect("an answer");
    let status = Status::from_header_map(answer.headers()).expect("a status");
    assert_eq!(status.code(), Code::Unimplemented);
}
