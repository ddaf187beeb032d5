//! Regions change their shape while clients ask for everything: they are cut, moved and merged, by hand and by themselves,
//! and nobody notices but by waiting a moment.

use std::time::Duration;

use braid_loadtest::client::Address;
use braid_loadtest::history::Layout;
use braid_loadtest::linear;
use braid_loadtest::linear::run::Run;
use braid_loadtest::linear::workload::Keys;
use braid_loadtest::writer::{self, Writer};
use serde_json::Value;

use crate::harness::{Cluster, PATIENCE, wait_for};
use crate::kill::{is_whole, prefixes, wait_whole};
use crate::watch::tells_everything;
use crate::watch::told::{Watching, everything};

/// Requests that must be answered between two changes.
const ROUND: u64 = 100;
const CLIENTS: u32 = 10;

fn addresses(cluster: &Cluster) -> Vec<Address> {
    cluster.endpoints.iter().map(|url| url.parse().expect("a URL of ours")).collect()
}

fn at_key(cluster: &Cluster, key: &str) -> Value {
    cluster.admin(&["region", "at-key", key])["region"].clone()
}

fn id_of(region: &Value) -> String {
    region["id"].as_u64().expect("an id").to_string()
}

fn stores_of(region: &Value) -> Vec<u64> {
    region["peers"].as_array().expect("peers").iter().filter_map(|peer| peer["store"].as_u64()).collect()
}

fn count(cluster: &Cluster) -> usize {
    cluster.admin(&["region", "list"])["regions"].as_array().map_or(0, Vec::len)
}

/// Cut, moved to another store, merged again, three times over, once with a store that dies in the middle: what the clients
/// were told is strictly serializable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_strictly_serializable_while_regions_are_cut_moved_and_merged() {
    let mut cluster = Cluster::split(1, 4, 2, &["--initial-regions", "4"], &[]);
    wait_whole(&cluster, 4);
    cluster.admin(&["scheduler", "pause", "all"]);
    let keys = Keys::new(&prefixes(), 4).expect("good prefixes");
    let plan = linear::run::Plan {
        clients: CLIENTS,
        attempt: Duration::from_secs(3),
        ..linear::run::Plan::new(addresses(&cluster), keys)
    };
    let mut run = Run::start(plan).await.expect("the clients start");
    run.answered_more(ROUND, PATIENCE).await.expect("the cluster answers");

    for (round, key) in [":c/02", "Qe/02", "ig/02"].into_iter().enumerate() {
        wait_for("the region to be cut", || {
            let split = cluster.admin_output(&["region", "split", "--key", key]);
            (split.status.success() || id_of(&at_key(&cluster, key)) != id_of(&at_key(&cluster, &key[..3])))
                .then_some(())
        });
        run.answered_more(ROUND, PATIENCE).await.expect("the cluster answers after a split");
        let (left, right) = (at_key(&cluster, &key[..3]), at_key(&cluster, key));
        let from = stores_of(&right)[0];
        let stores = cluster.admin(&["store", "list"])["stores"].as_array().expect("stores").clone();
        let mut stores = stores.iter().filter_map(|store| store["id"].as_u64());
        let to = stores.find(|store| !stores_of(&right).contains(store)).expect("a fourth store");
        let (from, to, right) = (from.to_string(), to.to_string(), id_of(&right));
        cluster.admin(&["region", "move-peer", &right, "--from", &from, "--to", &to, "--wait"]);
        run.answered_more(ROUND, PATIENCE).await.expect("the cluster answers after a move");
        let merge = ["region", "merge", &right, "--into", &id_of(&left)];
        if round == 1 {
            // Refused as long as a peer that has just come is not known to have caught up.
            wait_for("the merge to begin", || cluster.admin_output(&merge).status.success().then_some(()));
            cluster.process("store-2").kill().expect("it can be killed");
            run.answered_more(ROUND, PATIENCE).await.expect("the cluster answers without a store");
            cluster.process("store-2").restart().expect("it starts again");
            // How many there are meanwhile is open: the merge goes on.
            wait_for("every region to have a leader and all its peers", || {
                let list = cluster.admin(&["region", "list"])["regions"].as_array()?.clone();
                list.iter().all(is_whole).then_some(())
            });
        }
        wait_for("the halves to be one again", || {
            let gone = id_of(&at_key(&cluster, key)) == id_of(&at_key(&cluster, &key[..3]));
            if !gone {
                // It may be under way, or have been given up for the sake of a store that was away.
                cluster.admin_output(&[&merge[..], &["--wait"]].concat());
            }
            gone.then_some(())
        });
        run.answered_more(ROUND, PATIENCE).await.expect("the cluster answers after a merge");
    }
    cluster.wait_healthy();

    let history = run.stop().await.expect("the cluster can be read");
    let verdict = linear::check(&history).expect("the history is complete");
    let texts: Vec<String> = verdict.violations.iter().take(5).map(ToString::to_string).collect();
    assert!(texts.is_empty(), "{} violations, such as\n{}", verdict.violations.len(), texts.join("\n"));
}

/// Regions are split by themselves as data comes, and merged again when they may be, spread over four stores meanwhile: a
/// watch over everything tells each put once, in order, and nothing acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_split_and_merge_by_themselves_and_a_watch_tells_everything() {
    let cluster = Cluster::split(1, 4, 2, &["--initial-regions", "2"], &[]);
    wait_whole(&cluster, 2);
    let watching = Watching::start(&cluster.endpoints[1], everything(2)).await;
    cluster.admin(&["scheduler", "set", "load-settle-seconds=1", "merge-bytes=64KiB", "split-bytes=1MiB"]);
    let layout = Layout { prefixes: prefixes(), keys: 160, value_bytes: 4_000 };
    let plan = writer::Plan { clients: 8, layout, ..writer::Plan::new(addresses(&cluster)) };
    let mut writer = Writer::start(plan).await.expect("the load starts");
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");
    wait_for("regions to be split by their size", || (count(&cluster) >= 5).then_some(()));
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");
    let small = ["split-bytes=4GiB", "merge-bytes=1GiB", "merge-rest-seconds=1", "regions-per-store-min=1"];
    cluster.admin(&[&["scheduler", "set"], &small[..]].concat());
    cluster.admin(&["scheduler", "resume", "merge"]);
    wait_for("regions to be merged", || (count(&cluster) <= 4).then_some(()));
    writer.acked_more(ROUND, PATIENCE).await.expect("the load runs");
    let (history, _) = writer.stop().await.expect("the cluster can be read");
    tells_everything(&cluster, watching, &history).await;
}
