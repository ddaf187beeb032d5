//! Every command that changes no store for good, on one cluster: what it answers, what it refuses, and that what it sets
//! outlives placement's leader.

use serde_json::Value;

use super::{region, regions, scheduled_regions, stores_of, transfer_leader};
use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, wait_for};

fn store(cluster: &Cluster, id: &str) -> Value {
    cluster.admin(&["store", "show", id])["store"].clone()
}

fn scheduler(cluster: &Cluster, name: &str) -> Value {
    named(&cluster.admin(&["scheduler", "list"])["schedulers"], name)
}

fn setting(cluster: &Cluster, name: &str) -> Value {
    named(&cluster.admin(&["scheduler", "settings"])["settings"], name)
}

fn named(list: &Value, name: &str) -> Value {
    list.as_array().unwrap().iter().find(|entry| entry["name"] == name).expect("an entry of that name").clone()
}

#[test]
fn what_is_set_outlives_a_leader_and_every_command_answers() {
    let mut cluster = Cluster::split(3, 3, 1, &["--initial-regions", "3"], &["--labels", "rack=7"]);
    let ids = scheduled_regions(&cluster, 3);

    // What is kept of a store.
    let labelled = cluster.admin(&["store", "label", "s1", "zone=a", "disk=ssd", "rack="]);
    assert_eq!(labelled["store"]["labels"], serde_json::json!({"zone": "a", "disk": "ssd"}));
    assert_eq!(cluster.admin(&["store", "weight", "s2", "2.5"])["store"]["weight"], 2.5);
    let paused = cluster.admin(&["scheduler", "pause", "balance-leaders", "merge"]);
    assert_eq!(named(&paused["schedulers"], "merge")["paused"], true);
    let set = cluster.admin(&["scheduler", "set", "split-bytes=1GiB", "hot-factor=3"]);
    assert_eq!(named(&set["settings"], "split-bytes")["value"], (1u64 << 30).to_string());

    let leader = cluster.placement_leader();
    cluster.process(&leader).kill().expect("it can be killed");
    wait_for("another leader of placement", || {
        cluster
            .admin_output(&["status"])
            .status
            .success()
            .then_some(())
            .filter(|()| cluster.placement_leader() != leader)
    });
    assert_eq!(store(&cluster, "s1")["labels"], serde_json::json!({"zone": "a", "disk": "ssd"}));
    assert_eq!(store(&cluster, "s2")["weight"], 2.5);
    assert_eq!(scheduler(&cluster, "balance-leaders")["paused"], true);
    assert_eq!(scheduler(&cluster, "repair")["paused"], false);
    assert_eq!(setting(&cluster, "hot-factor")["value"], "3");
    assert_eq!(setting(&cluster, "split-bytes")["default"], (256u64 << 20).to_string());
    cluster.process(&leader).restart().expect("it starts again");
    assert_eq!(scheduled_regions(&cluster, 3), ids);

    // A paused one says how it is resumed, and what it would do.
    let said = scheduler(&cluster, "balance-leaders")["said"].as_str().unwrap().to_owned();
    assert!(said.contains("braid admin scheduler resume balance-leaders"), "{said}");
    let said = scheduler(&cluster, "merge")["said"].as_str().unwrap().to_owned();
    assert!(
        said.starts_with("merge is paused, as in every new cluster; `braid admin scheduler resume merge`"),
        "{said}"
    );

    // Back again.
    let resumed = cluster.admin(&["scheduler", "resume", "all"]);
    assert!(resumed["schedulers"].as_array().unwrap().iter().all(|scheduler| scheduler["paused"] == false));
    cluster.admin(&["scheduler", "set", "split-bytes=", "hot-factor="]);
    assert_eq!(setting(&cluster, "split-bytes")["value"], setting(&cluster, "split-bytes")["default"]);
    cluster.admin(&["store", "label", "s1", "zone=", "disk="]);
    assert_eq!(store(&cluster, "s1")["labels"], serde_json::json!({}));
    cluster.admin(&["store", "weight", "s2", "1"]);

    looks(&cluster);
    regions_change(&cluster);
    wrong_uses(&cluster);
}

/// Lists and views, for programs and for people.
fn looks(cluster: &Cluster) {
    for (args, list) in [
        (&["store", "list"][..], "stores"),
        (&["region", "list"], "regions"),
        (&["scheduler", "list"], "schedulers"),
        (&["scheduler", "settings"], "settings"),
        (&["operator", "list", "--ended"], "operators"),
        (&["why"], "schedulers"),
        (&["region", "check"], "regions"),
    ] {
        assert!(cluster.admin(args)[list].is_array(), "{args:?}");
    }
    for (args, head) in [
        (&["store", "list"][..], "STORE"),
        (&["store", "show", "1"], "WHAT"),
        (&["region", "list"], "REGION"),
        (&["region", "at-key", "k"], "WHAT"),
        (&["scheduler", "list"], "SCHEDULER"),
        (&["scheduler", "settings"], "SETTING"),
        (&["operator", "list"], "OPERATOR"),
        (&["why"], "WHAT"),
    ] {
        let output = cluster.admin_output(args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.starts_with(head), "{args:?}: {said}");
    }
    let all = regions(cluster);
    assert_eq!(cluster.admin(&["region", "list", "--limit", "2"])["regions"].as_array().unwrap().len(), 2);
    let middle = all[1]["start"]["key"].as_str().unwrap();
    assert_eq!(cluster.admin(&["region", "list", "--start", middle])["regions"].as_array().unwrap().len(), 2);
    assert_eq!(cluster.admin(&["region", "list", "--end", middle])["regions"].as_array().unwrap().len(), 1);
    assert_eq!(cluster.admin(&["region", "list", "--store", "s1"])["regions"].as_array().unwrap().len(), 3);
    assert_eq!(cluster.admin(&["region", "at-key", middle])["region"]["id"], all[1]["id"]);
    wait_for("the cluster to be healthy", || cluster.admin_output(&["health"]).status.success().then_some(()));
    assert_eq!(cluster.admin(&["health"])["healthy"], true);
}

/// Splits, moves of leaders, merges, and what can be followed of them.
fn regions_change(cluster: &Cluster) {
    let etcdctl = Etcdctl::of(cluster);
    for key in ["k1", "k2", "k3", "k4"] {
        etcdctl.put(key, "1");
    }
    // Nothing else changes the regions meanwhile.
    cluster.admin(&["scheduler", "pause", "all"]);
    let health = cluster.admin_output(&["health"]);
    assert_eq!(health.status.code(), Some(1), "paused schedulers are a warning");
    let split = cluster.admin(&["region", "split", "k3"]);
    let (left, right) = (split["left"]["id"].as_u64().unwrap(), split["right"]["id"].as_u64().unwrap());
    wait_for("both halves to have a leader", || {
        [left, right].iter().all(|id| region(cluster, *id)["leader_store"].is_u64()).then_some(())
    });
    assert_eq!(cluster.admin(&["region", "at-key", "k3"])["region"]["id"], right);

    let leader = region(cluster, right)["leader_store"].as_u64().unwrap();
    let other = stores_of(&region(cluster, right)).into_iter().find(|store| *store != leader).unwrap().to_string();
    let right_id = right.to_string();
    transfer_leader(cluster, &right_id, &other);

    wait_for("the new leader to find its followers caught up", || {
        let region = region(cluster, right);
        let well = |peer: &Value| peer["catching_up"] == false && peer["down"] == false;
        let moved = region["leader_store"].as_u64().map(|store| store.to_string()).as_ref() == Some(&other);
        (moved && region["peers"].as_array().unwrap().iter().all(well)).then_some(())
    });

    // One replica less, and back again.
    let removed = cluster.admin(&[
        "region",
        "remove-peer",
        &right_id,
        "--store",
        &leader.to_string(),
        "--yes",
        "--wait",
        "--timeout",
        "30",
    ]);
    assert_eq!(removed["operator"]["state"], "done");
    wait_for("the list to lack the peer", || (stores_of(&region(cluster, right)).len() == 2).then_some(()));
    let added =
        cluster.admin(&["region", "add-peer", &right_id, "--store", &leader.to_string(), "--wait", "--timeout", "30"]);
    assert_eq!(added["operator"]["state"], "done");
    wait_for("the list to have the peer", || (stores_of(&region(cluster, right)).len() == 3).then_some(()));

    let ended = cluster.admin(&["operator", "list", "--ended", "--region", &right_id]);
    let ended = ended["operators"].as_array().unwrap();
    assert!(ended.len() >= 2 && ended.iter().all(|operator| operator["region"] == right), "{ended:?}");

    let merged =
        cluster.admin_output(&["region", "merge", &right_id, "--into", &left.to_string(), "--wait", "--timeout", "30"]);
    let said = String::from_utf8_lossy(&merged.stderr).into_owned();
    assert!(merged.status.success() && String::from_utf8_lossy(&merged.stdout).contains("done"), "{said}");
    wait_for("the list to show one region again", || (regions(cluster).len() == 3).then_some(()));
    assert_eq!(cluster.admin(&["region", "at-key", "k3"])["region"]["id"], left);
    for key in ["k1", "k2", "k3", "k4"] {
        assert_eq!(etcdctl.get(key), [key, "1"]);
    }

    assert_eq!(cluster.admin(&["operator", "cancel", "--all", "--yes"])["cancelled"], 0);
    for which in [&["--all"][..], &["--start", "a", "--end", "z"], &[&left.to_string()]] {
        let scattered = cluster.admin(&[&["region", "scatter"], which].concat());
        assert!(scattered["regions"].is_u64(), "{which:?}: {scattered}");
        let said = scattered["said"].as_str().unwrap();
        assert!(said.contains("3 stores are in service for 3 replicas, so that only leaders can move"), "{said}");
    }
    cluster.admin(&["scheduler", "resume", "all"]);
    let balanced = cluster.admin_output(&["rebalance", "--timeout", "60"]);
    assert!(balanced.status.success(), "{}", String::from_utf8_lossy(&balanced.stderr));
}

/// Each wrong use has an answer that says what to do.
fn wrong_uses(cluster: &Cluster) {
    let list = "`braid admin store list` shows the stores";
    let regions_are = "`braid admin region list` shows the regions";
    let first = regions(cluster)[0]["id"].to_string();
    let last = regions(cluster)[2]["id"].to_string();
    for (args, expect) in [
        (&["store", "show", "99"][..], list),
        (&["store", "label", "s99", "a=b"], list),
        (&["store", "label", "s1", "a=b", "a="], "given twice"),
        (&["store", "weight", "s1", "0"], "drain a store to empty it"),
        (&["store", "drain", "s1"], "add a store first"),
        (&["store", "drain", "s99"], list),
        (&["store", "remove", "s1"], "needs --yes"),
        (&["store", "remove", "s1", "--yes"], "braid admin store drain s1"),
        (&["region", "show", "999"], regions_are),
        (&["region", "list", "--start", "b", "--end", "a"], "--start must be a key below --end"),
        (&["region", "split", "--region", "999", "--by", "size"], regions_are),
        (&["region", "merge", &first, "--into", &last], "only a region that begins where the other ends"),
        (&["region", "move-peer", &first, "--from", "s1", "--to", "s2"], "s2 holds a peer"),
        (&["region", "move-peer", &first, "--from", "s1", "--to", "s99"], list),
        (&["region", "add-peer", &first, "--store", "s1"], "s1 holds a peer"),
        (&["region", "remove-peer", &first, "--store", "s1"], "needs --yes"),
        (&["region", "remove-peer", &first, "--store", "s1", "--yes"], "the repair scheduler would add one again"),
        (&["region", "scatter", "999"], regions_are),
        (&["scheduler", "pause", "everything"], "there are repair, "),
        (&["scheduler", "set", "split-bits=1"], "there is no setting split-bits"),
        (&["scheduler", "set", "replicas=many"], "a number of at least 0 is wanted"),
        (&["operator", "cancel", &first], "no operator is under way"),
        (&["operator", "cancel", "--all"], "needs --yes"),
    ] {
        let said = cluster.admin_refuses(args);
        assert!(said.contains(expect), "{args:?}: {said}");
    }
    let unreachable = crate::harness::run(&["admin", "--endpoints", "http://127.0.0.1:1", "health"]);
    assert_eq!(unreachable.status.code(), Some(2), "nobody to ask is no mere warning");
}
