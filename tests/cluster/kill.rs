//! kill -9 under load. Every acknowledged write is there afterwards, no revision is given twice, reads never go back, and
//! what was killed catches up by itself.

use std::time::{Duration, Instant};

use braid_loadtest::check;
use braid_loadtest::client::Address;
use braid_loadtest::history::Layout;
use braid_loadtest::writer::{Plan, Writer};
use serde_json::Value;

use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, PATIENCE, http_get, wait_for};

/// Puts that must be acknowledged between two blows: enough to reach every region from every client.
const ROUND: u64 = 200;
/// How long a paused process sleeps: longer than every lease and election.
const PAUSE: Duration = Duration::from_secs(3);
/// Counters of a store.
pub const SNAPSHOTS: &str = "braid_raft_snapshots_received_total";
pub const TRUNCATIONS: &str = "braid_raft_log_truncations_total";

/// One prefix for each of eight regions that are cut evenly over printable ASCII.
pub fn prefixes() -> Vec<String> {
    ["!a/", "/b/", ":c/", "Fd/", "Qe/", "^f/", "ig/", "~h/"].map(str::to_owned).to_vec()
}

fn plan(cluster: &Cluster, value_bytes: usize) -> Plan {
    let endpoints: Vec<Address> = cluster.endpoints.iter().map(|url| url.parse().expect("a URL of ours")).collect();
    let layout = Layout { prefixes: prefixes(), keys: 160, value_bytes };
    Plan { clients: 8, layout, ..Plan::new(endpoints) }
}

/// Ends the load and checks what it saw.
async fn judge(writer: Writer) -> usize {
    let (history, state) = writer.stop().await.expect("the cluster can be read");
    let acked = history.acked().count();
    let violations: Vec<String> = check::all(&history, &state).iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{} violations in {acked} writes:\n{}", violations.len(), violations.join("\n"));
    assert!(state.strangers.is_empty(), "{:?}", state.strangers);
    acked
}

/// Sum of a counter's values on a process's metrics page.
pub fn counted(metrics: &str, name: &str) -> Option<f64> {
    let (_, page) = http_get(metrics, "/metrics").ok()?;
    let lines = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    Some(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Waits until no replica is behind: every region has a leader, and no leader misses a peer.
pub fn wait_whole(cluster: &Cluster, regions: usize) {
    wait_for("every region to have a leader and all its peers", || {
        let list = cluster.admin(&["region", "list"])["regions"].as_array()?.clone();
        (list.len() == regions && list.iter().all(is_whole)).then_some(())
    });
}

/// Whether a region, as `braid admin` tells it, has a leader and all its peers.
pub fn is_whole(region: &Value) -> bool {
    let up = region["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["down"] == false));
    up && region["leader_store"].is_u64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_placement_leader_and_proxies_are_killed_in_turn_under_load() {
    let mut cluster = Cluster::split(3, 3, 2, &["--initial-regions", "8"], &[]);
    wait_whole(&cluster, 8);
    let mut writer = Writer::start(plan(&cluster, 200)).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");

    let leader = cluster.placement_leader();
    for victim in ["store-1", "store-2", "store-3", &leader, "proxy-1"] {
        cluster.process(victim).kill().expect("it can be killed");
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("without {victim}: {error:#}"));
        cluster.process(victim).restart().expect("it starts again");
        cluster.wait_healthy();
        wait_whole(&cluster, 8);
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("with {victim} back: {error:#}"));
    }
    assert!(judge(writer).await as u64 >= 11 * ROUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_away_catches_up_by_log() {
    let mut cluster = Cluster::split(1, 3, 1, &["--initial-regions", "8"], &[]);
    let metrics = cluster.metrics_of("store-2");
    wait_whole(&cluster, 8);
    let mut writer = Writer::start(plan(&cluster, 200)).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");
    cluster.process("store-2").kill().expect("it can be killed");
    writer.acked_more(ROUND, PATIENCE).await.expect("two of three stores go on");
    cluster.process("store-2").restart().expect("it starts again");
    wait_whole(&cluster, 8);
    writer.acked_more(ROUND, PATIENCE).await.expect("three stores go on");
    assert_eq!(counted(&metrics, SNAPSHOTS), Some(0.0), "the log was enough");
    judge(writer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_away_for_long_catches_up_by_snapshot() {
    // Logs so short that a pause of a few hundred writes outlasts them.
    let keep = ["--raft-log-keep-entries", "16", "--raft-log-keep-bytes", "4096"];
    let mut cluster = Cluster::split(1, 3, 1, &["--initial-regions", "8"], &keep);
    let (metrics, others) =
        (cluster.metrics_of("store-2"), [cluster.metrics_of("store-1"), cluster.metrics_of("store-3")]);
    wait_whole(&cluster, 8);
    let mut writer = Writer::start(plan(&cluster, 1000)).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");
    cluster.process("store-2").kill().expect("it can be killed");
    // Each region has one client, so each put is an entry of its own: two hundred a region, far more than are kept.
    writer.acked_more(8 * ROUND, PATIENCE).await.expect("two of three stores go on");
    let truncations = || -> f64 { others.iter().filter_map(|url| counted(url, TRUNCATIONS)).sum() };
    let before = truncations();
    wait_for("a log to be truncated past the killed store", || (truncations() > before).then_some(()));
    cluster.process("store-2").restart().expect("it starts again");
    wait_whole(&cluster, 8);
    wait_for("a snapshot", || (counted(&metrics, SNAPSHOTS)? > 0.0).then_some(()));
    writer.acked_more(ROUND, PATIENCE).await.expect("three stores go on");

    // Its data counts: with another store gone, the one that caught up is half of the quorum.
    cluster.process("store-1").kill().expect("it can be killed");
    writer.acked_more(ROUND, PATIENCE).await.expect("the store that caught up carries the load");
    judge(writer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_processes_wake_up_harmless() {
    let mut cluster = Cluster::split(3, 3, 2, &["--initial-regions", "8"], &[]);
    wait_whole(&cluster, 8);
    let mut writer = Writer::start(plan(&cluster, 200)).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");
    for victim in ["store-1".to_owned(), cluster.placement_leader()] {
        cluster.process(&victim).pause().expect("it can be paused");
        // What others do meanwhile is the point, and how long they have for it: this is no wait for a condition.
        tokio::time::sleep(PAUSE).await;
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("without {victim}: {error:#}"));
        cluster.process(&victim).resume().expect("it can go on");
        cluster.wait_healthy();
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("with {victim} awake: {error:#}"));
    }
    judge(writer).await;
}

#[test]
fn without_a_quorum_requests_end_in_time_and_the_past_can_be_read() {
    let mut cluster = Cluster::servers(&["--initial-regions", "4"]);
    let survivor = Etcdctl::at(&cluster.endpoints[0]);
    survivor.put("k", "1");
    wait_for("the survivor to know the key", || {
        (survivor.lines(&["get", "k", "--consistency=s"]) == ["k", "1"]).then_some(())
    });
    for name in ["n2", "n3"] {
        cluster.process(name).kill().expect("it can be killed");
    }
    for request in [&["put", "k", "2"][..], &["get", "k"]] {
        let started = Instant::now();
        let error = survivor.error(&[request, &["--command-timeout=8s"]].concat(), b"");
        let ended = ["request timed out", "deadline exceeded", "no leader"].iter().any(|text| error.contains(text));
        assert!(ended && started.elapsed() < Duration::from_secs(15), "{request:?}: {error}");
    }
    assert_eq!(survivor.lines(&["get", "k", "--consistency=s"]), ["k", "1"]);
    let (status, health) = http_get(&cluster.endpoints[0], "/health").expect("it answers");
    assert!(status == 503 && health.contains("\"health\":\"false\""), "{status} {health}");

    for name in ["n2", "n3"] {
        cluster.process(name).restart().expect("it starts again");
    }
    cluster.wait_healthy();
    survivor.put("k", "3");
    assert_eq!(survivor.get("k"), ["k", "3"]);
}

/// Whether a region has three voters that all answer and lack nothing, on none of these stores.
fn is_complete(region: &Value, removed: &[&Value]) -> bool {
    let well = |peer: &Value| {
        let answers = peer["learner"] == false && peer["down"] == false && peer["catching_up"] == false;
        answers && !removed.contains(&&peer["store"])
    };
    region["peers"].as_array().is_some_and(|peers| peers.len() == 3 && peers.iter().all(well))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_loses_its_folder_once_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::servers(&["--initial-regions", "8"]);
    wait_whole(&cluster, 8);
    let mut writer = Writer::start(plan(&cluster, 200)).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");

    for (round, victim) in ["n2", "n3", "n1"].into_iter().enumerate() {
        cluster.process(victim).kill().expect("it can be killed");
        std::fs::remove_dir_all(cluster.path(victim)).expect("its folder is removed");
        cluster.process(victim).restart().expect("it starts again");
        let metrics = cluster.metrics_of(victim);
        wait_for(&format!("{victim} to take part in placement's group anew"), || {
            (counted(&metrics, "braid_placement_takes_part") == Some(1.0)).then_some(())
        });
        let log = cluster.process(victim).log_tail(100_000);
        assert!(log.contains("takes part in placement's group anew"), "{log}");
        wait_for(&format!("the replicas of {victim} to be made anew"), || {
            let regions = cluster.admin(&["region", "list"])["regions"].as_array()?.clone();
            let stores = cluster.admin(&["store", "list"])["stores"].as_array()?.clone();
            let removed = stores.iter().filter(|store| store["state"] == "removed").map(|store| &store["id"]);
            let removed: Vec<&Value> = removed.collect();
            let complete = regions.len() == 8 && regions.iter().all(|region| is_complete(region, &removed));
            (removed.len() == round + 1 && complete).then_some(())
        });
        cluster.wait_healthy();
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("with {victim} anew: {error:#}"));
    }
    let acked = judge(writer).await;
    assert!(acked >= 4 * ROUND as usize, "{acked} writes");
}
