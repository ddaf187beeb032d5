//! `etcdctl make-mirror` between braid and etcd, in both directions.

use std::process::{Child, Command, Stdio};

use braid_loadtest::cluster::Binary;
use braid_loadtest::process::{Process, Spec};

use crate::etcdctl::{Etcdctl, program};
use crate::harness::{Cluster, free_url, http_get, wait_for};

/// Copies what lies under a prefix, and then whatever changes there, until it is dropped.
struct Mirror(Child);

impl Mirror {
    fn start(from: &str, to: &str, prefix: &str) -> Self {
        let mut command = Command::new(program());
        command.env("ETCDCTL_API", "3").env_remove("ETCDCTL_ENDPOINTS");
        // It wants the destination without a scheme.
        let to = to.strip_prefix("http://").expect("a URL of ours");
        command.args([&format!("--endpoints={from}"), "make-mirror", &format!("--prefix={prefix}"), to]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("etcdctl starts"))
    }

    fn must_run(&mut self) {
        assert_eq!(self.0.try_wait().expect("it can be asked"), None, "make-mirror has ended");
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // It may have ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
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
    for (from, to, from_url, to_url, prefix) in
        [(&braid, &etcd, braid_url, &etcd_url, "/to/"), (&etcd, &braid, &etcd_url, braid_url, "/back/")]
    {
        let key = |name: &str| format!("{prefix}{name}");
        from.put(&key("a"), "was there");
        from.put(&key("t"), "was there");
        let mut mirror = Mirror::start(from_url, to_url, prefix);
        let is_same = |mirror: &mut Mirror| {
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
