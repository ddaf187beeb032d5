//! Compaction by an unchanged etcdctl: one boundary for all regions, whoever is asked, restarts, fails or was away.

use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, http_get, wait_for};
use crate::kill::wait_whole;

/// One key for each of eight regions.
const KEYS: [&str; 8] = ["!one", "/two", ":three", "Ffour", "Qfive", "^six", "iseven", "~eight"];
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

/// Puts `value` into every region. Returns the revision of the last put.
fn round(etcdctl: &Etcdctl, value: &str) -> i64 {
    KEYS.iter().for_each(|key| etcdctl.put(key, value));
    etcdctl.revision_of(KEYS[7])
}

fn compact(etcdctl: &Etcdctl, revision: i64, flags: &[&str]) {
    let said = etcdctl.lines(&[&["compaction", &revision.to_string()], flags].concat());
    assert_eq!(said, [format!("compacted revision {revision}")]);
}

fn compact_error(etcdctl: &Etcdctl, revision: i64) -> String {
    etcdctl.error(&["compaction", &revision.to_string()], b"")
}

/// Every way to read at `revision` shows `value` in every region.
fn shows(etcdctl: &Etcdctl, revision: i64, value: &str) {
    let rev = format!("--rev={revision}");
    for key in KEYS {
        assert_eq!(etcdctl.lines(&["get", key, &rev]), [key, value], "@{revision}");
    }
    let all: Vec<&str> = KEYS.iter().flat_map(|key| [*key, value]).collect();
    assert_eq!(etcdctl.lines(&["get", "", "--from-key", &rev]), all, "@{revision}");
    let count = etcdctl.json(&["get", "", "--from-key", "--limit=2", &rev])["count"].as_i64();
    assert_eq!(count, Some(KEYS.len() as i64), "@{revision}");
}

/// Every way to read at `revision` is refused.
fn refuses(etcdctl: &Etcdctl, revision: i64) {
    let rev = format!("--rev={revision}");
    let mut ways: Vec<Vec<&str>> = KEYS.iter().map(|key| vec!["get", *key, &rev]).collect();
    ways.push(vec!["get", "", "--from-key", &rev]);
    ways.push(vec!["get", "", "--from-key", "--limit=3", &rev]);
    for way in ways {
        let said = etcdctl.error(&way, b"");
        assert!(said.contains(COMPACTED), "{way:?}: {said}");
    }
    let said = etcdctl.error(&["txn"], format!("\nget Qfive {rev}\n\n\n").as_bytes());
    assert!(said.contains(COMPACTED), "{said}");
    // Any replica answers these: it learns the boundary a moment later, as a member of etcd does.
    wait_for("replicas to refuse it too", || {
        let output = etcdctl.output(&["get", "Q", "R", "--consistency=s", &rev], b"");
        String::from_utf8_lossy(&output.stderr).contains(COMPACTED).then_some(())
    });
}

fn gauge(metrics: &str, name: &str) -> i64 {
    let page = http_get(metrics, "/metrics").map(|(_, page)| page).unwrap_or_default();
    let line = page.lines().find(|line| line.split(['{', ' ']).next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map_or(0, |value| value as i64)
}

fn store_metrics(cluster: &mut Cluster) -> Vec<String> {
    ["store-1", "store-2", "store-3"].map(|store| cluster.metrics_of(store)).to_vec()
}

#[test]
fn one_boundary_holds_in_every_region_and_at_every_endpoint_at_once() {
    let mut cluster = Cluster::split(3, 3, 2, &["--initial-regions", "8"], &[]);
    wait_whole(&cluster, 8);
    let (one, other) = (Etcdctl::at(&cluster.endpoints[0]), Etcdctl::at(&cluster.endpoints[1]));
    let first = round(&one, "a");
    let second = round(&one, "b");
    let third = round(&other, "c");

    let said = compact_error(&one, third + 1);
    assert!(said.contains(FUTURE), "{said}");
    compact(&one, second, &[]);
    refuses(&other, second - 1);
    refuses(&other, first);
    shows(&other, second, "b");
    shows(&other, third, "c");
    for again in [second, first, 0] {
        let said = compact_error(&other, again);
        assert!(said.contains(COMPACTED), "{said}");
    }

    // The newest revision can be compacted, and a deleted key stays away.
    assert_eq!(other.lines(&["del", KEYS[2]]), ["1"]);
    let deleted = third + 1;
    compact(&other, deleted, &["--physical"]);
    for metrics in store_metrics(&mut cluster) {
        assert!(gauge(&metrics, "braid_store_dropped_below") >= deleted, "every store has dropped its history");
    }
    refuses(&one, deleted - 1);
    for rev in ["--rev=0".to_owned(), format!("--rev={deleted}")] {
        assert_eq!(one.lines(&["get", KEYS[2], &rev]), [""; 0]);
        assert_eq!(one.lines(&["get", KEYS[3], &rev]), [KEYS[3], "c"]);
    }
    let fourth = round(&one, "d");
    shows(&other, fourth, "d");

    // A region that is split off where nothing lies any more has only the boundary to go by.
    cluster.admin(&["region", "split", "--key", "~~"]);
    wait_whole(&cluster, 9);
    for how in ["--consistency=s", "--consistency=l"] {
        assert_eq!(one.lines(&["get", "~~~", how]), [""; 0]);
    }
    assert_eq!(one.lines_with(&["txn"], "version(\"~~~\") = \"0\"\nversion(\"Qfive\") > \"0\"\n\n\n\n"), ["SUCCESS"]);
    refuses(&other, deleted - 1);
}

#[test]
fn the_boundary_survives_placements_leader_stores_that_restart_and_one_that_was_away() {
    let keep = ["--raft-log-keep-entries", "16", "--raft-log-keep-bytes", "4096"];
    let mut cluster = Cluster::split(3, 3, 2, &["--initial-regions", "8"], &keep);
    wait_whole(&cluster, 8);
    let etcdctl = Etcdctl::of(&cluster);
    round(&etcdctl, "a");
    let second = round(&etcdctl, "b");
    compact(&etcdctl, second, &[]);

    let leader = cluster.placement_leader();
    cluster.process(&leader).kill().expect("it can be killed");
    wait_for("another leader", || (cluster.placement_leader() != leader).then_some(()));
    refuses(&etcdctl, second - 1);
    shows(&etcdctl, second, "b");
    let said = compact_error(&etcdctl, second);
    assert!(said.contains(COMPACTED), "{said}");
    let third = round(&etcdctl, "c");
    compact(&etcdctl, third, &["--physical"]);
    cluster.process(&leader).restart().expect("it starts again");

    for store in ["store-1", "store-2", "store-3"] {
        cluster.process(store).kill().expect("it can be killed");
    }
    for store in ["store-1", "store-2", "store-3"] {
        cluster.process(store).restart().expect("it starts again");
    }
    cluster.wait_healthy();
    wait_whole(&cluster, 8);
    refuses(&etcdctl, third - 1);
    shows(&etcdctl, third, "c");

    // Away while more is written than the raft logs keep, and compacted: it comes back by raft snapshots.
    cluster.process("store-3").kill().expect("it can be killed");
    let others = [cluster.metrics_of("store-1"), cluster.metrics_of("store-2")];
    let truncations = || others.iter().map(|metrics| gauge(metrics, "braid_raft_log_truncations_total")).sum::<i64>();
    let before = truncations();
    (0..120).for_each(|i| etcdctl.put(KEYS[4], &i.to_string()));
    let newest = round(&etcdctl, "d");
    compact(&etcdctl, newest, &["--physical"]);
    let last = round(&etcdctl, "e");
    wait_for("logs to be truncated past the killed store", || (truncations() > before).then_some(()));
    cluster.process("store-3").restart().expect("it starts again");
    cluster.wait_healthy();
    wait_whole(&cluster, 8);
    let metrics = cluster.metrics_of("store-3");
    wait_for("store 3 to learn the boundary", || {
        (gauge(&metrics, "braid_store_compaction_boundary") >= newest).then_some(())
    });
    wait_for("a raft snapshot", || (gauge(&metrics, "braid_raft_snapshots_received_total") > 0).then_some(()));
    let stores = cluster.admin(&["store", "list"])["stores"].as_array().expect("a list").clone();
    let back = stores.iter().find(|store| store["peer_addr"].as_str().is_some_and(|addr| metrics.ends_with(addr)));
    let back = back.and_then(|store| store["id"].as_u64()).expect("store 3 is listed").to_string();
    for region in cluster.admin(&["region", "list"])["regions"].as_array().expect("a list") {
        let id = region["id"].as_u64().expect("an id").to_string();
        // A store that still catches up is refused.
        wait_for(&format!("store {back} to lead region {id}"), || {
            let moved = cluster.admin_output(&["region", "transfer-leader", &id, "--to", &back]);
            moved.status.success().then_some(())
        });
    }
    refuses(&etcdctl, newest - 1);
    shows(&etcdctl, newest, "d");
    shows(&etcdctl, last, "e");
}

#[test]
fn history_older_than_the_window_goes_by_itself() {
    let cluster = Cluster::dev(&["--regions", "4", "--auto-compaction-retention", "2s"]);
    let etcdctl = Etcdctl::of(&cluster);
    let first = round(&etcdctl, "a");
    let second = round(&etcdctl, "b");
    assert_eq!(etcdctl.lines(&["get", KEYS[0], &format!("--rev={first}")]), [KEYS[0], "a"], "younger than the window");
    wait_for("the first compaction", || {
        let output = etcdctl.output(&["get", KEYS[0], &format!("--rev={first}")], b"");
        String::from_utf8_lossy(&output.stderr).contains(COMPACTED).then_some(())
    });
    shows(&etcdctl, second, "b");
    let third = round(&etcdctl, "c");
    shows(&etcdctl, third, "c");
}
