//! Watches over many regions on real processes: every event once, in order of revisions, whatever happens to the regions.

use std::sync::Arc;

use braid_loadtest::history::Layout;
use braid_loadtest::writer::{Plan, Writer};
use braid_proto::etcd::etcdserverpb::watch_client::WatchClient;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, PATIENCE, wait_for};
use crate::kill::{prefixes, wait_whole};

/// Puts that must be acknowledged between two blows.
const ROUND: u64 = 150;

/// What a watch has been told: revision, key and value of each event, response by response.
type Told = Arc<Mutex<Vec<Vec<(i64, Bytes, Bytes)>>>>;

/// A watch over everything, from revision 2 on.
struct Watching {
    told: Told,
    reading: JoinHandle<()>,
    _requests: mpsc::Sender<WatchRequest>,
}

impl Watching {
    async fn start(endpoint: &str) -> Self {
        let mut client = WatchClient::connect(endpoint.to_owned()).await.expect("the proxy listens");
        let (requests, outgoing) = mpsc::channel(4);
        let everything = WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: 2,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(everything)) };
        requests.send(create).await.expect("room for one");
        let mut responses = client.watch(ReceiverStream::new(outgoing)).await.expect("a stream").into_inner();
        let told = Told::default();
        let telling = Arc::clone(&told);
        let reading = tokio::spawn(async move {
            while let Ok(Some(response)) = responses.message().await {
                assert!(!response.canceled, "canceled: {response:?}");
                let kvs = response.events.into_iter().filter_map(|event| event.kv);
                let events: Vec<_> = kvs.map(|kv| (kv.mod_revision, kv.key, kv.value)).collect();
                if !events.is_empty() {
                    telling.lock().push(events);
                }
            }
        });
        Self { told, reading, _requests: requests }
    }

    fn newest(&self) -> i64 {
        self.told.lock().last().and_then(|events| events.last()).map_or(0, |(revision, ..)| *revision)
    }

    /// Waits until everything up to `revision` has been told, and ends the watch.
    fn until(self, revision: i64) -> Vec<(i64, Bytes, Bytes)> {
        wait_for(&format!("the event of revision {revision}; the newest is {}", self.newest()), || {
            (self.newest() >= revision).then_some(())
        });
        self.reading.abort();
        let told = self.told.lock();
        for pair in told.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            assert!(
                before.last().map(|event| event.0) < after.first().map(|event| event.0),
                "{before:?} then {after:?}"
            );
        }
        told.iter().flatten().cloned().collect()
    }
}

/// Ordered, unique, reliable and resumable, while stores are killed, leaders move and a region is split.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_everything_once_and_in_order_while_regions_fail_and_move() {
    let mut cluster = Cluster::split(1, 3, 2, &["--initial-regions", "8"], &[]);
    wait_whole(&cluster, 8);
    let watching = Watching::start(&cluster.endpoints[1]).await;
    let endpoints = cluster.endpoints.iter().map(|url| url.parse().expect("a URL of ours")).collect();
    let layout = Layout { prefixes: prefixes(), keys: 160, value_bytes: 100 };
    let mut writer = Writer::start(Plan { clients: 8, layout, ..Plan::new(endpoints) }).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");

    for victim in ["store-1", "store-2", "store-3"] {
        cluster.process(victim).kill().expect("it can be killed");
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("without {victim}: {error:#}"));
        cluster.process(victim).restart().expect("it starts again");
        wait_whole(&cluster, 8);
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("with {victim} back: {error:#}"));
    }
    cluster.admin(&["region", "split", "--key", "/b/0005"]);
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs after a split");
    cluster.process("proxy-1").kill().expect("it can be killed");
    cluster.process("proxy-1").restart().expect("it starts again");
    cluster.wait_healthy();
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs with the proxy back");
    let (history, _) = writer.stop().await.expect("the cluster can be read");

    let newest = history.acked().map(|(_, revision)| revision).max().expect("some puts");
    // What a later watch is told comes from the stores' disks, and must be the same.
    let later = Watching::start(&cluster.endpoints[0]).await;
    let (live, past) = (watching.until(newest), later.until(newest));
    let up_to = |events: Vec<(i64, Bytes, Bytes)>| -> Vec<_> {
        events.into_iter().filter(|(revision, ..)| *revision <= newest).collect()
    };
    let (live, past) = (up_to(live), up_to(past));
    assert!(live.is_sorted_by(|a, b| a.0 < b.0), "one put a revision, in order");
    assert_eq!(live, past);
    let mut missing = history.acked().filter(|(_, revision)| live.binary_search_by_key(revision, |e| e.0).is_err());
    assert!(missing.next().is_none(), "every acknowledged put was told");
}

/// Atomic: a transaction over several regions is one response; bookmarks cover idle regions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_over_regions_is_told_at_once() {
    let cluster = Cluster::servers(&["--initial-split-keys", "b,c,d"]);
    wait_whole(&cluster, 4);
    let ctl = Etcdctl::of(&cluster);
    let watching = Watching::start(&cluster.endpoints[0]).await;
    for round in 0..10 {
        let puts: Vec<String> = ["a", "b", "c", "d"].iter().map(|key| format!("put {key} {round}")).collect();
        ctl.lines_with(&["txn"], &format!("\n{}\n\n\n", puts.join("\n")));
    }
    ctl.lines(&["del", "", "--from-key"]);
    let newest = 12;
    wait_for("the last delete", || (watching.newest() >= newest).then_some(()));
    let told = watching.told.lock().clone();
    // Live responses hold one revision each; what was caught up with may hold several, each of them whole.
    let revisions: Vec<i64> = told.iter().flatten().map(|event| event.0).collect();
    for revision in 2..=newest {
        let keys = revisions.iter().filter(|told| **told == revision).count();
        assert_eq!(keys, 4, "revision {revision} has four events");
        let responses = told.iter().filter(|events| events.iter().any(|event| event.0 == revision)).count();
        assert_eq!(responses, 1, "revision {revision} comes in one response");
    }
    assert!(revisions.is_sorted());
}
