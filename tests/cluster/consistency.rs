//! Replicas hold the same: one hash from every endpoint, whatever has become of regions, leaders and disks; and one
//! damaged value on one store is found and the store named.

use std::sync::atomic::{AtomicBool, Ordering};

use braid_loadtest::client::Address;
use braid_loadtest::history::Layout;
use braid_loadtest::writer::{Plan, Writer};
use braid_placement_client::PlacementClient;
use braid_proto::key::user_key;
use braid_proto::pb::AwaitDroppedRequest;
use rocksdb::{DB, Options};
use serde_json::Value;

use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, PATIENCE, stop, wait_for};
use crate::kill::wait_whole;

/// One key for each of eight regions.
const KEYS: [&str; 8] = ["!one", "/two", ":three", "Ffour", "Qfive", "^six", "iseven", "~eight"];

/// Puts, overwrites, deletes, and transactions over several regions; always the same.
fn fill(etcdctl: &Etcdctl) {
    for round in 0..3 {
        KEYS.iter().for_each(|key| etcdctl.put(key, &format!("{key} {round}")));
    }
    etcdctl.lines_with(&["txn"], "\nput Qfive both\nput ~eight both\ndel :three\n\n\n");
    etcdctl.lines(&["del", "F", "R"]);
    etcdctl.put("Qfive", "again");
}

/// What one endpoint answers: its hash, its compact revision, the newest revision.
type Hash = (u64, i64, i64);

fn hashes(etcdctl: &Etcdctl, revision: i64) -> Vec<Hash> {
    hashes_with(etcdctl, &[&format!("--rev={revision}")])
}

fn hashes_with(etcdctl: &Etcdctl, flags: &[&str]) -> Vec<Hash> {
    let answer = etcdctl.json(&[&["endpoint", "hashkv"], flags].concat());
    let of = |endpoint: &Value| {
        let hash = &endpoint["HashKV"];
        Some((hash["hash"].as_u64()?, hash["compact_revision"].as_i64()?, hash["header"]["revision"].as_i64()?))
    };
    answer.as_array().expect("a list").iter().map(|endpoint| of(endpoint).expect("a hash")).collect()
}

/// The one hash that all `endpoints` answer.
fn hash_of_all(etcdctl: &Etcdctl, endpoints: usize, revision: i64) -> Hash {
    let all = hashes(etcdctl, revision);
    assert_eq!(all.len(), endpoints, "{all:?}");
    assert!(all.iter().all(|hash| *hash == all[0]), "@{revision}: {all:?}");
    all[0]
}

#[test]
fn every_endpoint_has_one_hash_through_splits_leader_changes_restarts_and_compaction() {
    let mut cluster = Cluster::servers(&["--initial-regions", "4"]);
    wait_whole(&cluster, 4);
    let etcdctl = Etcdctl::of(&cluster);
    fill(&etcdctl);
    let then = etcdctl.revision_of("Qfive");
    let (hash, compacted, newest) = hash_of_all(&etcdctl, 3, 0);
    assert_eq!((compacted, newest), (-1, then), "nothing was ever compacted");
    // As operators ask: whoever is in the member list, once all three are.
    let listed = wait_for("all endpoints in the member list", || {
        let listed = hashes_with(&etcdctl, &["--cluster"]);
        (listed.len() == 3).then_some(listed)
    });
    assert_eq!(listed, [(hash, -1, then); 3]);
    let same = |what: &str| assert_eq!(hash_of_all(&etcdctl, 3, then).0, hash, "after {what}");
    same("nothing");

    for key in ["Q", "~eight"] {
        cluster.admin(&["region", "split", "--key", key]);
        same("a split");
    }
    for target in ["1", "2", "3"] {
        for region in regions(&cluster) {
            wait_for("a leader to move", || {
                let order = ["region", "transfer-leader", &region.to_string(), "--to", target];
                cluster.admin_output(&order).status.success().then_some(())
            });
        }
        same("changes of leaders");
    }
    KEYS.iter().for_each(|key| etcdctl.put(key, "later"));
    same("more writes");
    assert_ne!(hash_of_all(&etcdctl, 3, 0).0, hash, "what was written counts");
    cluster.process("n2").kill().expect("it can be killed");
    cluster.process("n2").restart().expect("it starts again");
    cluster.wait_healthy();
    same("a restart");

    let future = etcdctl.error(&["endpoint", "hashkv", "--rev=1000000"], b"");
    assert!(future.contains("etcdserver: mvcc: required revision is a future revision"), "{future}");

    // The window of what is hashed begins at the boundary, whatever is dropped from the disks when.
    let boundary = then - 4;
    etcdctl.lines(&["compaction", &boundary.to_string()]);
    let (kept, compacted, _) = hash_of_all(&etcdctl, 3, then);
    assert_eq!(compacted, boundary);
    drop_history(&mut cluster, boundary);
    assert_eq!(hash_of_all(&etcdctl, 3, then).0, kept, "after history was dropped");
    let gone = etcdctl.error(&["endpoint", "hashkv", &format!("--rev={}", boundary - 1)], b"");
    assert!(gone.contains("etcdserver: mvcc: required revision has been compacted"), "{gone}");

    let check = cluster.admin(&["region", "check"]);
    assert_eq!((check["same"].as_bool(), check["regions"].as_array().map(Vec::len)), (Some(true), Some(6)), "{check}");
}

fn regions(cluster: &Cluster) -> Vec<u64> {
    let list = cluster.admin(&["region", "list"]);
    list["regions"].as_array().expect("a list").iter().filter_map(|region| region["id"].as_u64()).collect()
}

/// Waits until every store has dropped what lies below `boundary`.
fn drop_history(cluster: &mut Cluster, boundary: i64) {
    let members = ["n1", "n2", "n3"].map(|name| cluster.metrics_of(name).replace("http://", ""));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let placement = PlacementClient::new(members.to_vec());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let dropped = placement.await_dropped(AwaitDroppedRequest { revision: boundary }, deadline).await;
        dropped.expect("every store drops its history in time");
    });
}

#[test]
fn one_history_has_one_hash_however_it_is_cut_into_regions() {
    let hash = |flags: &[&str]| {
        let cluster = Cluster::dev(flags);
        let etcdctl = Etcdctl::of(&cluster);
        fill(&etcdctl);
        hash_of_all(&etcdctl, 1, 0)
    };
    let one = hash(&["--stores", "1"]);
    assert_eq!(hash(&["--stores", "3", "--regions", "8"]), one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_compared_at_one_moment_while_clients_write() {
    let cluster = Cluster::servers(&["--initial-regions", "8"]);
    wait_whole(&cluster, 8);
    let endpoints: Vec<Address> = cluster.endpoints.iter().map(|url| url.parse().expect("a URL of ours")).collect();
    let prefixes = KEYS.iter().map(|key| format!("{key}/")).collect();
    let layout = Layout { prefixes, keys: 160, value_bytes: 100 };
    let mut writer = Writer::start(Plan { clients: 8, layout, ..Plan::new(endpoints) }).await.expect("the load starts");
    writer.acked_more(100, PATIENCE).await.expect("the load runs");

    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let spread = scope.spawn(|| {
            let etcdctl = Etcdctl::of(&cluster);
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                etcdctl.lines_with(&["txn"], &format!("\nput !x {rounds}\nput Qx {rounds}\nput ~x {rounds}\n\n\n"));
                etcdctl.lines(&["del", "!x", "~y"]);
                rounds += 1;
            }
            rounds
        });
        let mut revisions = Vec::new();
        for _ in 0..5 {
            let check = cluster.admin(&["region", "check", "--command-timeout", "60"]);
            assert_eq!(check["same"], true, "{check}");
            let regions = check["regions"].as_array().expect("a list").clone();
            assert_eq!(regions.len(), 8);
            revisions.extend(regions.iter().filter_map(|region| region["revision"].as_i64()));
        }
        stopped.store(true, Ordering::Relaxed);
        assert!(spread.join().expect("transactions succeed") > 0);
        assert!(revisions.iter().max() > revisions.iter().min(), "there were writes meanwhile");
    });
    writer.stop().await.expect("the cluster can be read");
}

/// Changes one byte of the live value of `key` in the database of a store that does not run.
fn damage(store: &str, key: &str) {
    let path = format!("{store}/store/kv");
    let mut options = Options::default();
    options.set_disable_auto_compactions(true);
    let families = DB::list_cf(&options, &path).expect("a database");
    let db = DB::open_cf(&options, &path, families).expect("nobody else has it open");
    let latest = db.cf_handle("latest").expect("the family of live records");
    let mut value = db.get_cf(latest, user_key(key.as_bytes())).expect("readable").expect("the key is live here");
    *value.last_mut().expect("a record") ^= 0x20;
    db.put_cf(latest, user_key(key.as_bytes()), value).expect("written");
    db.flush_wal(true).expect("synced");
}

/// The id of the store in the process `name`.
fn store_of(cluster: &mut Cluster, name: &str) -> u64 {
    let address = cluster.metrics_of(name).replace("http://", "");
    let list = cluster.admin(&["store", "list"]);
    let stores = list["stores"].as_array().expect("a list");
    let store = stores.iter().find(|store| store["peer_addr"] == address.as_str());
    store.and_then(|store| store["id"].as_u64()).expect("a store of that address")
}

#[test]
fn one_damaged_value_is_found_and_its_store_named() {
    let mut cluster = Cluster::servers(&["--initial-regions", "4"]);
    wait_whole(&cluster, 4);
    let etcdctl = Etcdctl::of(&cluster);
    fill(&etcdctl);
    let sound = hash_of_all(&etcdctl, 3, 0).0;
    assert_eq!(cluster.admin(&["region", "check"])["same"], true);

    let damaged = store_of(&mut cluster, "n2");
    stop(cluster.process("n2"));
    damage(&cluster.path("n2"), "Qfive");

    // Without it nothing differs, but neither can it be said that all is well.
    let check = cluster.admin_output(&["region", "check", "--output", "json", "--command-timeout", "60"]);
    assert_eq!(check.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&check.stdout).expect("printed all the same");
    assert!(answer["regions"].as_array().expect("a list").iter().all(|region| region["verdict"] == "incomplete"));
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(said.starts_with("braid: not every replica could be compared: r"), "{said}");

    cluster.process("n2").restart().expect("it starts again");
    cluster.wait_healthy();
    wait_whole(&cluster, 4);
    let hit = region_of(&cluster, "Qfive");
    // The store may still be on its way back to the others for a moment.
    let answer = wait_for("every replica to be compared", || {
        let check = cluster.admin_output(&["region", "check", "--output", "json", "--command-timeout", "60"]);
        let answer: Value = serde_json::from_slice(&check.stdout).ok()?;
        let regions = answer["regions"].as_array()?;
        if regions.iter().any(|region| region["verdict"] == "incomplete") {
            return None;
        }
        assert_eq!(check.status.code(), Some(1), "{answer}");
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert_eq!(said.trim_end(), format!("braid: replicas differ: r{hit}, on s{damaged}"));
        Some(answer)
    });
    for region in answer["regions"].as_array().expect("a list") {
        let expected = if region["id"] == hit { ("different", vec![damaged]) } else { ("same", vec![]) };
        let stores = region["differing_stores"].as_array().expect("a list").iter().filter_map(Value::as_u64);
        assert_eq!(
            (region["verdict"].as_str(), stores.collect::<Vec<_>>()),
            (Some(expected.0), expected.1),
            "{region}"
        );
    }
    let table = cluster.admin_output(&["region", "check", "--region", &hit.to_string()]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(&format!("different: s{damaged} differ")) && table.lines().count() == 2, "{table}");

    // An operator who has only etcd's tools sees it too: each endpoint speaks for the store beside it.
    let all: Vec<u64> = hashes(&etcdctl, 0).into_iter().map(|(hash, ..)| hash).collect();
    assert_eq!(all.iter().filter(|hash| **hash == sound).count(), 2, "{all:?}");
}

fn region_of(cluster: &Cluster, key: &str) -> u64 {
    let list = cluster.admin(&["region", "list"]);
    let regions = list["regions"].as_array().expect("a list");
    let starts_before = |region: &&Value| region["start"]["key"].as_str().unwrap_or("") <= key;
    regions.iter().rfind(starts_before).and_then(|region| region["id"].as_u64()).expect("a region holds the key")
}
