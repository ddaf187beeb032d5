//! `etcdctl make-mirror` between braid and etcd, in both directions.

use std::process::Stdio;

use braid_loadtest::cluster::Binary;
use braid_loadtest::process::{Process, Spec};

use crate::clients::Running;
use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, free_url, http_get, wait_for};

/// Copies what lies under a prefix, and then whatever changes there, until it is dropped.
fn mirror(from: &Etcdctl, to: &str, prefix: &str) -> Running {
    // It wants the destination without a scheme.
    let to = to.strip_prefix("http://").expect("a URL of ours");
    let mut command = from.command();
    command.args(["make-mirror", &format!("--prefix={prefix}"), to]).stderr(Stdio::null());
    Running::start(&mut command)
}

/// One etcd.
fn etcd(cluster: &Cluster) -> (Process, String) {
    let program = Binary::find_etcd().expect("an etcd to mirror with; `make setup` gets one").path;
    let (client, peer) = (free_url(), free_url());
    let folder = cluster.path("etcd");
    let args = ["--data-dir", &folder, "--listen-client-urls", &client, "--advertise-client-urls", &client]
        .into_iter()
        .chain(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .chain(["--initial-cluster", "n1=", "--name", "n1", "--log-level", "error"]);
    let args = args.map(|arg| if arg == "n1=" { format!("n1={peer}") } else { arg.to_owned() }).collect();
    let log = cluster.path("etcd.log").into();
    let spec = Spec { name: "etcd".to_owned(), program, args, env: Vec::new(), env_hidden_prefixes: Vec::new(), log };
    let process = Process::start(spec).expect("etcd starts");
    wait_for("etcd to be healthy", || (http_get(&client, "/health").ok()?.0 == 200).then_some(()));
    (process, client)
}

#[test]
fn mirrors_run_from_braid_to_etcd_and_from_etcd_to_braid() {
    let cluster = Cluster::dev(&["--split-keys", "/to/h,/to/q,/back/h"]);
    let (_etcd, etcd_url) = etcd(&cluster);
    let braid_url = &cluster.endpoints[0];
    let (braid, etcd) = (Etcdctl::at(braid_url), Etcdctl::at(&etcd_url));
    for (from, to, to_url, prefix) in [(&braid, &etcd, &etcd_url, "/to/"), (&etcd, &braid, braid_url, "/back/")] {
        let key = |name: &str| format!("{prefix}{name}");
        from.put(&key("a"), "was there");
        from.put(&key("t"), "was there");
        let mut mirror = mirror(from, to_url, prefix);
        let is_same = |mirror: &mut Running| {
            mirror.must_run();
            let all = |side: &Etcdctl| side.lines(&["get", "--prefix", prefix]);
            (all(from) == all(to)).then_some(())
        };
        wait_for(&format!("what was there under {prefix}"), || is_same(&mut mirror));
        from.put(&key("m"), "new");
        from.put(&key("a"), "changed");
        from.lines(&["del", &key("t")]);
        // Each of these touches every region of the prefix.
        let puts: String = ["b", "k", "z"].iter().map(|name| format!("put {} txn\n", key(name))).collect();
        from.lines_with(&["txn"], &format!("\n{puts}\n\n"));
        from.lines(&["del", &key("a"), &key("l")]);
        from.put(&key("last"), "one");
        wait_for(&format!("what has changed under {prefix}"), || is_same(&mut mirror));
        let left = to.lines(&["get", "--prefix", "--keys-only", prefix]);
        let left: Vec<&str> = left.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
        assert_eq!(left, [key("last"), key("m"), key("z")]);
    }
}
