//! An unchanged etcdctl: what it prints of leases, and its own lock and election, which are recipes on the client's side.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::SPREAD;
use super::client::{Client, Events};
use crate::clients::Running;
use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, PATIENCE, wait_for};

/// Processes that want the lock at once.
const RIVALS: usize = 4;

/// The word before ` granted with`.
fn granted(line: &str, ttl: i64) -> String {
    let id = line.strip_prefix("lease ").and_then(|rest| rest.strip_suffix(&format!(" granted with TTL({ttl}s)")));
    let id = id.unwrap_or_else(|| panic!("{line}"));
    assert!(id.len() == 16 && i64::from_str_radix(id, 16).expect("hexadecimal") > 0, "{line}");
    id.to_owned()
}

/// Whether `left` seconds of `ttl` are told in `line`, and what else stands there.
fn timetolive(line: &str, id: &str, ttl: i64) -> String {
    let start = format!("lease {id} granted with TTL({ttl}s), remaining(");
    let (left, rest) =
        line.strip_prefix(&start).and_then(|rest| rest.split_once("s)")).unwrap_or_else(|| panic!("{line}"));
    let left: i64 = left.parse().expect("a number");
    assert!(left <= ttl && left > ttl - 30, "{line}");
    rest.to_owned()
}

pub async fn leases_are_told_in_etcds_words(cluster: &Cluster) {
    let ctl = Etcdctl::of(cluster);
    let line = |args: &[&str]| {
        let lines = ctl.lines(args);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    assert_eq!(line(&["lease", "list"]), "found 0 leases");
    let id = granted(&line(&["lease", "grant", "100"]), 100);
    let shorter = granted(&line(&["lease", "grant", "60"]), 60);
    let listed = ctl.lines(&["lease", "list"]);
    assert_eq!(listed, ["found 2 leases", &shorter, &id], "the one that ends first comes first");
    assert_eq!(line(&["lease", "revoke", &shorter]), format!("lease {shorter} revoked"));
    granted(&line(&["lease", "grant", "1"]), 2);

    let lease = format!("--lease={id}");
    for key in SPREAD {
        assert_eq!(ctl.lines(&["put", key, "v", &lease]), ["OK"]);
    }
    let with_keys = timetolive(&line(&["lease", "timetolive", &id, "--keys"]), &id, 100);
    assert_eq!(with_keys, ", attached keys([!a /b :c Fd Qe ^f ig ~h])");
    assert_eq!(timetolive(&line(&["lease", "timetolive", &id]), &id, 100), "");
    assert_eq!(line(&["lease", "keep-alive", "--once", &id]), format!("lease {id} keepalived with TTL(100)"));
    let kv = &ctl.json(&["get", "Qe"])["kvs"][0];
    assert_eq!(kv["lease"].as_i64(), i64::from_str_radix(&id, 16).ok());
    // Put again: --ignore-lease keeps the lease, nothing takes it away.
    ctl.lines(&["put", "Qe", "w", "--ignore-lease"]);
    ctl.put("ig", "w");
    let with_keys = timetolive(&line(&["lease", "timetolive", &id, "--keys"]), &id, 100);
    assert_eq!(with_keys, ", attached keys([!a /b :c Fd Qe ^f ~h])");

    let before = ctl.revision_of("ig");
    assert_eq!(line(&["lease", "revoke", &id]), format!("lease {id} revoked"));
    assert_eq!(ctl.lines(&["get", "", "--from-key", "--keys-only"]), ["ig", ""]);
    assert_eq!(ctl.json(&["get", "ig"])["header"]["revision"].as_i64(), Some(before + 1));
    assert_eq!(line(&["lease", "timetolive", &id]), format!("lease {id} already expired"));
    assert_eq!(line(&["lease", "keep-alive", &id]), format!("lease {id} expired or revoked."));
    wait_for("the short one to end", || (ctl.lines(&["lease", "list"]) == ["found 0 leases"]).then_some(()));

    let cases: [(&[&str], &str); 6] = [
        (&["lease", "keep-alive", "--once", &id], "etcdserver: requested lease not found"),
        (&["lease", "revoke", &id], "failed to revoke lease (etcdserver: requested lease not found)"),
        (&["put", "k", "v", &lease], "etcdserver: requested lease not found"),
        (&["lease", "grant", "9000000001"], "failed to grant lease (etcdserver: too large lease TTL)"),
        (&["put", "absent", "v", "--ignore-lease"], "etcdserver: key not found"),
        (&["put", "k", "v", "--ignore-lease", &lease], "etcdserver: lease is provided"),
    ];
    for (args, expect) in cases {
        let error = ctl.error(args, b"");
        assert!(error.lines().any(|line| line == format!("Error: {expect}")), "{args:?}: {error}");
    }
    assert_eq!(ctl.lines(&["del", "ig"]), ["1"]);
}

/// etcdctl that runs on.
fn run(cluster: &Cluster, args: &[&str]) -> Running {
    Running::start(Etcdctl::of(cluster).command().args(args).stderr(Stdio::null()))
}

pub async fn a_lock_excludes_and_outlives_its_dead_holder(cluster: &Cluster) {
    let client = Client::at(&cluster.endpoints[0]);
    let holder = run(cluster, &["lock", "Qlock", "--ttl=2"]);
    let key = holder.line();
    assert!(key.starts_with("Qlock/"), "{key}");

    // `mkdir` fails for whoever is not alone.
    let room = cluster.path("room");
    let alone = format!("mkdir {room} && sleep 0.1 && rmdir {room} && echo alone");
    let rivals: Vec<Running> =
        (0..RIVALS).map(|_| run(cluster, &["lock", "Qlock", "--", "sh", "-c", &alone])).collect();
    let started = Instant::now();
    while client.under("Qlock/").await.len() < 1 + RIVALS {
        assert!(started.elapsed() < PATIENCE, "{RIVALS} wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rivals[0].is_silent();
    let events = Events::start(&client).await;
    holder.kill();
    events.all_gone(&[key]).await;
    for rival in rivals {
        assert_eq!(rival.rest(), ["alone"]);
    }
    assert_eq!(client.under("Qlock/").await, []);
}

pub async fn an_election_passes_on(cluster: &Cluster) {
    let mut watcher = None;
    let mut leader: Option<Running> = None;
    for name in ["one", "two", "three"] {
        let candidate = run(cluster, &["elect", "gelect", name]);
        if let Some(leader) = leader.take() {
            candidate.is_silent();
            leader.interrupt().end();
        }
        let key = candidate.line();
        assert!(key.starts_with("gelect/"), "{key}");
        assert_eq!(candidate.line(), name);
        let watcher = watcher.get_or_insert_with(|| run(cluster, &["elect", "-l", "gelect"]));
        assert_eq!((watcher.line(), watcher.line()), (key, name.to_owned()));
        leader = Some(candidate);
    }
    leader.expect("three candidates").interrupt().end();
}
