//! `braid admin` against a running cluster.

use serde_json::Value;

use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, wait_for};

mod commands;
mod stores;

fn regions(cluster: &Cluster) -> Vec<Value> {
    cluster.admin(&["region", "list"])["regions"].as_array().unwrap().clone()
}

fn region(cluster: &Cluster, id: u64) -> Value {
    cluster.admin(&["region", "show", &id.to_string()])["region"].clone()
}

/// Stores with a replica of a region, by id.
fn stores_of(region: &Value) -> Vec<u64> {
    let mut stores: Vec<u64> =
        region["peers"].as_array().unwrap().iter().map(|peer| peer["store"].as_u64().unwrap()).collect();
    stores.sort_unstable();
    stores
}

/// Waits until schedulers know every region, and gives their ids.
fn scheduled_regions(cluster: &Cluster, count: usize) -> Vec<u64> {
    wait_for("placement to know every region and to schedule", || {
        let known: Vec<Value> = regions(cluster);
        let led = known.iter().all(|region| region["leader_store"].is_u64());
        let health = cluster.admin_output(&["health"]);
        let ready = !String::from_utf8_lossy(&health.stdout).contains("nothing is scheduled yet");
        (known.len() == count && led && ready && health.status.code() != Some(2))
            .then(|| known.iter().map(|region| region["id"].as_u64().unwrap()).collect())
    })
}

fn start_key(region: &Value) -> &str {
    region["start"]["key"].as_str().unwrap_or("")
}

#[test]
fn stores_and_regions_are_listed() {
    let cluster = Cluster::dev(&["--stores", "3", "--split-keys", "g,p,\\xff\\x00"]);
    let stores = wait_for("three stores with their figures", || {
        let answer = cluster.admin(&["store", "list"]);
        let stores = answer["stores"].as_array().unwrap().clone();
        stores.iter().all(|store| store["capacity_bytes"].as_u64() > Some(0)).then_some(stores)
    });
    assert_eq!(stores.len(), 3);
    assert!(stores.iter().all(|store| store["state"] == "up"));

    let regions = wait_for("every region to have a leader", || {
        let regions = regions(&cluster);
        regions.iter().all(|region| region["leader_store"].is_u64()).then_some(regions)
    });
    assert_eq!(regions.iter().map(start_key).collect::<Vec<_>>(), ["", "g", "p", "\\xff\\x00"]);
    assert!(regions.iter().all(|region| region["peers"].as_array().unwrap().len() == 3));

    let table = cluster.admin_output(&["region", "list"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("REGION") && table.lines().count() == 5, "{table}");
    assert!(table.contains("\"\\xff\\x00\""), "{table}");

    let status = cluster.admin(&["status"]);
    assert_eq!(status["bootstrapped"], true);
}

#[test]
fn a_region_is_split_where_asked_and_serves_on() {
    let cluster = Cluster::dev(&["--stores", "3"]);
    let etcdctl = Etcdctl::of(&cluster);
    for key in ["a", "m", "z"] {
        etcdctl.put(key, "1");
    }
    let split = cluster.admin(&["region", "split", "--key", "m"]);
    assert_eq!(start_key(&split["right"]), "m");
    assert_eq!(split["left"]["end"]["key"], "m");
    assert_ne!(split["left"]["id"], split["right"]["id"]);
    wait_for("the list to show both regions", || (regions(&cluster).len() == 2).then_some(()));
    for key in ["a", "m", "z"] {
        assert_eq!(etcdctl.get(key), [key, "1"]);
    }
    etcdctl.put("n", "2");

    let again = cluster.admin_output(&["region", "split", "--key", "m"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1), "{said}");
    assert!(said.starts_with("braid: cannot split at \"m\": ") && said.lines().count() == 1, "{said}");
}

/// Has `store` lead a region. Refused as long as the region's leader has not heard of the new one since it leads.
fn transfer_leader(cluster: &Cluster, region: &str, store: &str) {
    wait_for("leadership to be handed over", || {
        let output = cluster.admin_output(&["region", "transfer-leader", region, "--to", store]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("has not answered its leader"), "{said}");
        output.status.success().then_some(())
    });
}

#[test]
fn a_leader_moves_where_asked() {
    let cluster = Cluster::dev(&["--stores", "3"]);
    let etcdctl = Etcdctl::of(&cluster);
    etcdctl.put("k", "1");
    let (region, leader) = wait_for("the region to have a leader", || {
        let region = regions(&cluster).remove(0);
        Some((region["id"].as_u64()?, region["leader_store"].as_u64()?))
    });
    let target = (1..=3).find(|store| *store != leader).unwrap().to_string();
    let region = region.to_string();
    transfer_leader(&cluster, &region, &target);
    wait_for("the list to show the new leader", || {
        (regions(&cluster)[0]["leader_store"].as_u64()? == target.parse::<u64>().ok()?).then_some(())
    });
    etcdctl.put("k", "2");
    assert_eq!(etcdctl.get("k"), ["k", "2"]);

    for (region, store, expect) in [("999", "1", "999"), (region.as_str(), "77", "77")] {
        let wrong = cluster.admin_output(&["region", "transfer-leader", region, "--to", store]);
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert_eq!(wrong.status.code(), Some(1), "{said}");
        assert!(said.starts_with("braid: cannot make s") && said.contains(expect), "{said}");
    }
}
