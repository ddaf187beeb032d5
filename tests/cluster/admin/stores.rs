//! Stores that come and go: a replica is moved, the fourth store is emptied, a killed one is given up.

use super::{region, regions, scheduled_regions, stores_of};
use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, PATIENCE, wait_for};

fn replicas_on(cluster: &Cluster, store: u64) -> usize {
    regions(cluster).iter().filter(|region| stores_of(region).contains(&store)).count()
}

fn must_end_well(cluster: &Cluster, args: &[&str]) -> (String, String) {
    let output = cluster.admin_output(args);
    let [said, progress] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "braid admin {args:?}: {said}\n{progress}");
    (said, progress)
}

#[test]
fn a_store_is_drained_and_a_killed_one_is_rebuilt_elsewhere() {
    let mut cluster = Cluster::split(1, 4, 1, &["--initial-regions", "4"], &[]);
    // Only what is asked for moves.
    cluster.admin(&["scheduler", "pause", "all"]);
    scheduled_regions(&cluster, 4);
    let etcdctl = Etcdctl::of(&cluster);
    for key in ["!a", "8b", "Tc", "pd"] {
        etcdctl.put(key, "kept");
    }
    let stores = wait_for("all stores to have joined", || {
        let stores = cluster.admin(&["store", "list"])["stores"].as_array().unwrap().clone();
        let ids: Vec<u64> = stores.iter().map(|store| store["id"].as_u64().unwrap()).collect();
        (ids.len() == 4).then_some(ids)
    });
    wait_for("what was under way to end", || {
        cluster.admin(&["operator", "list"])["operators"].as_array().unwrap().is_empty().then_some(())
    });
    let fourth = stores.iter().copied().min_by_key(|store| replicas_on(&cluster, *store)).unwrap();
    let fourth_id = format!("s{fourth}");
    let lacking = regions(&cluster).into_iter().find(|region| !stores_of(region).contains(&fourth));
    let lacking = lacking.expect("four stores share twelve replicas, so that the emptiest lacks one of four regions");
    let (id, from) = (lacking["id"].as_u64().unwrap(), format!("s{}", stores_of(&lacking)[0]));
    let id_text = format!("r{id}");
    let moved = ["region", "move-peer", &id_text, "--from", &from, "--to", &fourth_id, "--wait", "--timeout", "30"];
    let (said, _) = must_end_well(&cluster, &moved);
    assert!(said.contains("done"), "{said}");
    wait_for("the list to show the peer there", || stores_of(&region(&cluster, id)).contains(&fourth).then_some(()));

    // Emptied, with progress; while its scheduler is paused it says so.
    let (_, waits) = cluster.admin_gives_up(&["store", "drain", &fourth_id, "--wait", "--timeout", "1"]);
    assert!(waits.contains("is not done after 1 s") && waits.contains("the drain scheduler is paused"), "{waits}");
    let waits = cluster.admin_refuses(&["rebalance", "--status"]);
    assert!(waits.starts_with("not balanced: ") && waits.contains("drain is paused"), "{waits}");
    let waits = cluster.admin(&["why"]);
    assert_eq!((waits["balanced"].as_bool(), waits["drains"][0]["store"].as_u64()), (Some(false), Some(fourth)));
    cluster.admin(&["scheduler", "resume", "drain"]);
    let (said, progress) = must_end_well(&cluster, &["store", "drain", &fourth_id, "--wait", "--timeout", "60"]);
    assert!(said.contains("empty"), "{said}");
    assert!(progress.contains(" replicas left"), "{progress}");
    assert_eq!(replicas_on(&cluster, fourth), 0);
    let drain = &cluster.admin(&["store", "show", &fourth_id])["store"]["drain"];
    assert_eq!((drain["replicas_left"].as_u64(), drain["leaders_left"].as_u64()), (Some(0), Some(0)), "{drain}");
    cluster.admin(&["scheduler", "resume", "all"]);
    must_end_well(&cluster, &["rebalance", "--timeout", "60"]);
    assert_eq!(cluster.admin(&["rebalance", "--status"])["balanced"], true);

    // Back in service, it takes what a killed store held.
    let back = cluster.admin(&["store", "drain", &fourth_id, "--stop"]);
    assert!(back["store"]["drain"].is_null(), "{back}");
    let victim = stores.iter().copied().find(|store| *store != fourth).unwrap();
    let victim_id = format!("s{victim}");
    let process = cluster.admin(&["store", "show", &victim_id])["store"]["name"].as_str().unwrap().to_owned();
    cluster.process(&process).kill().expect("it can be killed");
    wait_for("the store to be missed", || {
        (cluster.admin(&["store", "show", &victim_id])["store"]["state"] == "disconnected").then_some(())
    });
    assert_ne!(cluster.admin_output(&["health"]).status.code(), Some(0));
    // Refused while a replica that has just come to the fourth store has not caught up.
    let removed = wait_for("the store to be removed", || {
        let output = cluster.admin_output(&["store", "remove", &victim_id, "--yes", "--output", "json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("would have no quorum"), "{said}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()
    });
    assert_eq!(removed["store"]["state"], "removed");
    wait_for("its replicas to be rebuilt", || {
        let all = regions(&cluster);
        let whole = all.iter().all(|region| {
            let peers = region["peers"].as_array().unwrap();
            let well = peers.iter().all(|peer| peer["learner"] == false && peer["down"] == false);
            peers.len() == 3 && well && !stores_of(region).contains(&victim)
        });
        whole.then_some(())
    });
    must_end_well(&cluster, &["rebalance", "--timeout", "60"]);
    wait_for("the cluster to be healthy", || cluster.admin_output(&["health"]).status.success().then_some(()));
    for key in ["!a", "8b", "Tc", "pd"] {
        assert_eq!(etcdctl.get(key), [key, "kept"]);
    }
    let again = cluster.admin_refuses(&["store", "weight", &victim_id, "2"]);
    assert!(again.contains("has been removed"), "{again}");
    // Its folder is refused from now on.
    cluster.process(&process).restart().expect("it starts again");
    let ended = cluster.process(&process).wait(PATIENCE).expect("it ends by itself");
    assert_eq!(ended.code(), Some(1), "{}", cluster.process(&process).log_tail(5));
}
