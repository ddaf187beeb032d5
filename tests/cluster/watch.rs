//! Watches over many regions on real processes: every event once, in order of revisions, whatever happens to the regions.

mod mirror;
pub mod told;

use std::time::Duration;

use braid_loadtest::history::{History, Layout};
use braid_loadtest::writer::{Plan, Writer};

use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, PATIENCE, wait_for};
use crate::kill::{SNAPSHOTS, TRUNCATIONS, counted, prefixes, wait_whole};
use told::{Told, Watching, everything};

/// Puts that must be acknowledged between two blows.
const ROUND: u64 = 150;
/// Logs so short that a killed store must be sent a snapshot.
const SHORT_LOGS: [&str; 4] = ["--raft-log-keep-entries", "16", "--raft-log-keep-bytes", "4096"];

/// Ordered, unique, reliable, resumable, bookmarkable, with the right previous values, while stores are killed and come
/// back by raft snapshots, leaders move and a region is split.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_everything_once_and_in_order_while_regions_fail_and_move() {
    let mut cluster = Cluster::split(1, 3, 2, &["--initial-regions", "8"], &SHORT_LOGS);
    wait_whole(&cluster, 8);
    let watching = Watching::start(&cluster.endpoints[1], everything(2)).await;
    let endpoints = cluster.endpoints.iter().map(|url| url.parse().expect("a URL of ours")).collect();
    let layout = Layout { prefixes: prefixes(), keys: 160, value_bytes: 100 };
    let mut writer = Writer::start(Plan { clients: 8, layout, ..Plan::new(endpoints) }).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");

    for (number, victim) in [(1, "store-1"), (2, "store-2"), (3, "store-3")] {
        cluster.process(victim).kill().expect("it can be killed");
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("without {victim}: {error:#}"));
        let by_snapshot = number == 2;
        if by_snapshot {
            writer.acked_more(3 * ROUND, PATIENCE).await.expect("the load runs");
            let others = [cluster.metrics_of("store-1"), cluster.metrics_of("store-3")];
            let truncations = || -> f64 { others.iter().filter_map(|url| counted(url, TRUNCATIONS)).sum() };
            let before = truncations();
            while truncations() == before {
                writer.acked_more(ROUND, PATIENCE).await.expect("the load runs until a log is cut");
            }
        }
        cluster.process(victim).restart().expect("it starts again");
        wait_whole(&cluster, 8);
        if by_snapshot {
            let metrics = cluster.metrics_of(victim);
            wait_for("a snapshot", || (counted(&metrics, SNAPSHOTS)? > 0.0).then_some(()));
        }
        // What it knows by log or snapshot it must tell now.
        lead(&cluster, number);
        writer.acked_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("with {victim} back: {error:#}"));
    }
    cluster.admin(&["region", "split", "--key", "/b/0005"]);
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs after a split");
    cluster.process("proxy-1").kill().expect("it can be killed");
    cluster.process("proxy-1").restart().expect("it starts again");
    cluster.wait_healthy();
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs with the proxy back");
    let (history, _) = writer.stop().await.expect("the cluster can be read");

    tells_everything(&cluster, watching, &history).await;
}

/// `watching`, a watch over everything from the beginning on, has told what `history` says, once and in order, and so do watches
/// that begin now, at the beginning and in the middle.
pub async fn tells_everything(cluster: &Cluster, watching: Watching, history: &History) {
    let newest = history.acked().map(|(_, revision)| revision).max().expect("some puts");
    // What a later watch is told comes from the stores' disks, and must be the same; so must what is told from the middle.
    let later = Watching::start(&cluster.endpoints[0], everything(2)).await;
    let middle = Watching::start(&cluster.endpoints[0], everything(newest / 2)).await;
    let (live, past, half) = (watching.until(newest), later.until(newest), middle.until(newest));
    assert!(live.is_sorted_by(|a, b| a.revision < b.revision), "one put a revision, in order");
    told::check_previous(&live);
    assert!(live == past, "live and past differ");
    let from = live.partition_point(|told| told.revision < newest / 2);
    assert!(live[from..] == half, "what is told from @{} on differs", newest / 2);
    let mut missing =
        history.acked().filter(|(_, revision)| live.binary_search_by_key(revision, |told| told.revision).is_err());
    assert!(missing.next().is_none(), "every acknowledged put was told");
}

/// Lets a store lead every region.
fn lead(cluster: &Cluster, store: u64) {
    wait_for(&format!("store {store} to lead"), || {
        let regions = cluster.admin(&["region", "list"])["regions"].as_array()?.clone();
        let others = regions.iter().filter(|region| region["leader_store"].as_u64() != Some(store));
        let others: Vec<String> = others.filter_map(|region| Some(region["id"].as_u64()?.to_string())).collect();
        for region in &others {
            // It may not be ready yet; then it is asked again.
            cluster.admin_output(&["region", "transfer-leader", region, "--to", &store.to_string()]);
        }
        others.is_empty().then_some(())
    });
}

/// Atomic: a transaction over several regions is one response, deletes carry what was there before. A watch that lags
/// behind a compaction is cancelled, and nobody else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_told_at_once_and_a_compaction_ends_only_who_lags() {
    let cluster = Cluster::servers(&["--initial-split-keys", "b,c,d"]);
    wait_whole(&cluster, 4);
    let ctl = Etcdctl::of(&cluster);
    let watching = Watching::start(&cluster.endpoints[0], everything(2)).await;
    for round in 0..10 {
        let puts: Vec<String> = ["a", "b", "c", "d"].iter().map(|key| format!("put {key} {round}")).collect();
        ctl.lines_with(&["txn"], &format!("\n{}\n\n\n", puts.join("\n")));
    }
    ctl.lines(&["del", "", "--from-key"]);
    let newest = 12;
    wait_for("the last delete", || (watching.newest() >= newest).then_some(()));
    let responses = watching.responses();
    // Live responses hold one revision each; what was caught up with may hold several, each of them whole.
    let events: Vec<Told> = responses.iter().flatten().cloned().collect();
    for revision in 2..=newest {
        let keys = events.iter().filter(|told| told.revision == revision).count();
        assert_eq!(keys, 4, "revision {revision} has four events");
        let holding = responses.iter().filter(|events| events.iter().any(|told| told.revision == revision)).count();
        assert_eq!(holding, 1, "revision {revision} comes in one response");
    }
    assert!(events.is_sorted_by(|a, b| a.revision <= b.revision));
    told::check_previous(&events);

    // More than the proxy keeps for a client that does not read.
    let lagging = Watching::asleep(&cluster.endpoints[0], everything(newest + 1)).await;
    let value = "v".repeat(1 << 20);
    for _ in 0..24 {
        ctl.lines_with(&["put", "big"], &value);
    }
    let last = ctl.revision_of("big");
    wait_for("the watch that reads", || (watching.newest() >= last).then_some(()));
    // Until no store has it any more: one that has not heard of the compaction yet would still tell what is compacted.
    ctl.lines(&["compaction", "--physical", &last.to_string()]);
    let (told, compacted) = lagging.wake().await;
    assert_eq!(compacted, last, "it was cancelled by the compaction, after {} events", told.len());
    let revisions: Vec<i64> = told.iter().map(|told| told.revision).collect();
    let expected: Vec<i64> = (newest + 1..).take(told.len()).collect();
    assert!(told.len() < 24 && revisions == expected, "what it heard before is without a gap: {revisions:?}");
    ctl.put("a", "after");
    assert_eq!(watching.until(last + 1).last().map(|told| told.revision), Some(last + 1), "the other one goes on");
}

/// A stream that asked for a leader ends when a region of its watches has none; others wait, and go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_wants_a_leader_ends_when_its_region_has_none() {
    let mut cluster = Cluster::split(1, 3, 1, &["--initial-split-keys", "m"], &[]);
    wait_whole(&cluster, 2);
    let ctl = Etcdctl::of(&cluster);
    ctl.put("a", "1");
    let patient = Watching::start(&cluster.endpoints[0], everything(2)).await;
    let strict = Watching::strict(&cluster.endpoints[0], everything(2)).await;
    wait_for("the first event", || (patient.newest() >= 2 && strict.newest() >= 2).then_some(()));
    for store in ["store-2", "store-3"] {
        cluster.process(store).kill().expect("it can be killed");
    }
    let status = tokio::time::timeout(Duration::from_secs(30), strict.end()).await.expect("an end in time");
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "etcdserver: no leader"));
    for store in ["store-2", "store-3"] {
        cluster.process(store).restart().expect("it starts again");
    }
    wait_whole(&cluster, 2);
    ctl.put("a", "2");
    assert_eq!(patient.until(3).len(), 2);
}
