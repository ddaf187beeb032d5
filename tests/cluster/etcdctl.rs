//! An unchanged etcdctl on eight regions over three store processes.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::clients;
use crate::harness::{Cluster, wait_for};

/// etcd's command line client: `$ETCDCTL`, else the package's, else the first one on the PATH.
pub fn program() -> PathBuf {
    let named = std::env::var_os("ETCDCTL").map(PathBuf::from);
    let packaged = PathBuf::from("/usr/bin/etcdctl");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named
        .or_else(|| packaged.is_file().then_some(packaged))
        .or_else(|| std::env::split_paths(&path).map(|dir| dir.join("etcdctl")).find(|file| file.is_file()));
    found.expect("etcdctl is missing: run `make setup`, which installs the package etcd-client")
}

/// etcdctl, pointed at a cluster.
pub struct Etcdctl {
    endpoints: String,
}

impl Etcdctl {
    /// Talks to all proxies of `cluster`.
    pub fn of(cluster: &Cluster) -> Self {
        Self { endpoints: cluster.endpoints.join(",") }
    }

    /// Talks to one endpoint.
    pub fn at(endpoint: &str) -> Self {
        Self { endpoints: endpoint.to_owned() }
    }

    /// Pointed at the cluster, without a command yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.env("ETCDCTL_API", "3").env_remove("ETCDCTL_ENDPOINTS");
        command.arg(format!("--endpoints={}", self.endpoints));
        command
    }

    /// Runs it with `input` on stdin.
    pub fn output(&self, args: &[&str], input: &[u8]) -> Output {
        clients::output(self.command().args(args), input)
    }

    /// Lines of its answer; it must succeed.
    pub fn lines(&self, args: &[&str]) -> Vec<String> {
        self.lines_with(args, "")
    }

    /// Lines of its answer to `input`; it must succeed.
    pub fn lines_with(&self, args: &[&str], input: &str) -> Vec<String> {
        let output = self.output(args, input.as_bytes());
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("the answer is text").lines().map(str::to_owned).collect()
    }

    /// What it complains about; it must fail.
    pub fn error(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.output(args, input);
        assert!(!output.status.success(), "etcdctl {args:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Its answer as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.lines(&[args, &["--write-out=json"]].concat()).join("\n");
        serde_json::from_str(&text).expect("the answer is JSON")
    }

    /// Puts one key.
    pub fn put(&self, key: &str, value: &str) {
        assert_eq!(self.lines(&["put", key, value]), ["OK"]);
    }

    /// Key and value, or nothing.
    pub fn get(&self, key: &str) -> Vec<String> {
        self.lines(&["get", key])
    }

    /// `mod_revision` of a key that exists.
    pub fn revision_of(&self, key: &str) -> i64 {
        self.json(&["get", key])["kvs"][0]["mod_revision"].as_i64().expect("the key exists")
    }
}

/// Eight regions, cut evenly over printable ASCII, on three store processes.
fn eight_regions() -> (Cluster, Etcdctl) {
    let cluster = Cluster::split(1, 3, 1, &["--initial-regions", "8"], &[]);
    let regions = wait_for("eight regions with leaders", || {
        let regions = cluster.admin(&["region", "list"])["regions"].as_array()?.clone();
        (regions.len() == 8 && regions.iter().all(|region| region["leader_store"].is_u64())).then_some(regions)
    });
    assert!(regions.iter().all(|region| region["peers"].as_array().unwrap().len() == 3));
    let etcdctl = Etcdctl::of(&cluster);
    (cluster, etcdctl)
}

/// One key for each of the eight regions, in key order.
const SPREAD: [&str; 8] = ["!one", "/two", ":three", "Ffour", "Qfive", "^six", "iseven", "~eight"];

#[test]
fn put_and_get_with_every_flag_over_eight_regions() {
    let (_cluster, etcdctl) = eight_regions();
    // Written in another order than the keys' own, so that sort orders differ from each other.
    for (i, at) in [3, 0, 7, 5, 1, 6, 2, 4].into_iter().enumerate() {
        etcdctl.put(SPREAD[at], &format!("v{}", 7 - i));
    }
    let first = etcdctl.revision_of(SPREAD[3]);
    assert_eq!(first, 2, "the first write of an empty cluster gets revision 2");
    assert_eq!(etcdctl.revision_of(SPREAD[4]), first + 7, "eight writes in eight regions, eight revisions in a row");

    // put
    assert_eq!(etcdctl.lines(&["put", "/two", "new", "--prev-kv"]), ["OK", "/two", "v3"]);
    assert_eq!(etcdctl.lines(&["put", "/two", "--ignore-value"]), ["OK"]);
    assert_eq!(etcdctl.lines(&["put", "/two", "newer", "--ignore-lease"]), ["OK"]);
    assert_eq!(etcdctl.lines_with(&["put", "/stdin"], "from stdin"), ["OK"]);
    assert_eq!(etcdctl.get("/stdin"), ["/stdin", "from stdin"]);
    let two = &etcdctl.json(&["get", "/two"])["kvs"][0];
    assert_eq!((two["version"].as_i64(), two["create_revision"].as_i64()), (Some(4), Some(first + 4)));
    assert_eq!(etcdctl.lines(&["del", "/stdin"]), ["1"]);

    // get: one key, a range, a prefix, from a key on, everything
    assert_eq!(etcdctl.get("/two"), ["/two", "newer"]);
    assert_eq!(etcdctl.get("absent"), Vec::<String>::new());
    let keys = |args: &[&str]| -> Vec<String> {
        let lines = etcdctl.lines(&[args, &["--keys-only"]].concat());
        lines.into_iter().filter(|line| !line.is_empty()).collect()
    };
    assert_eq!(keys(&["get", ":three", "Qfive"]), [":three", "Ffour"]);
    assert_eq!(keys(&["get", "Q", "--prefix"]), ["Qfive"]);
    assert_eq!(keys(&["get", "", "--prefix"]), SPREAD);
    assert_eq!(keys(&["get", "^six", "--from-key"]), SPREAD[5..]);
    assert_eq!(keys(&["get", "", "--from-key", "--limit=3"]), SPREAD[..3]);
    assert_eq!(keys(&["get", "", "--from-key", "--consistency=s"]), SPREAD);
    let page = etcdctl.json(&["get", "", "--from-key", "--limit=3"]);
    assert_eq!((page["count"].as_i64(), page["more"].as_bool()), (Some(8), Some(true)));
    assert_eq!(etcdctl.lines(&["get", "~eight", "--print-value-only"]), ["v5"]);

    // get: sorted over all regions
    let sorted = |by: &str, order: &str| keys(&["get", "", "--from-key", "--sort-by", by, "--order", order]);
    let by_creation = [3, 0, 7, 5, 1, 6, 2, 4].map(|at| SPREAD[at]);
    assert_eq!(sorted("CREATE", "ASCEND"), by_creation);
    assert_eq!(sorted("KEY", "DESCEND"), SPREAD.into_iter().rev().collect::<Vec<_>>());
    assert_eq!(sorted("MODIFY", "DESCEND")[0], "/two");
    assert_eq!(sorted("VERSION", "DESCEND")[0], "/two");
    assert_eq!(sorted("VALUE", "ASCEND"), ["/two", "Qfive", ":three", "iseven", "^six", "~eight", "!one", "Ffour"]);

    // get: the past, and not the future
    let past = first.to_string();
    assert_eq!(keys(&["get", "", "--from-key", "--rev", &past]), ["Ffour"]);
    let then = (first + 4).to_string();
    assert_eq!(etcdctl.lines(&["get", "/two", "--rev", &then]), ["/two", "v3"]);
    let error = etcdctl.error(&["get", "a", "--rev", "1000000"], b"");
    assert!(error.contains("etcdserver: mvcc: required revision is a future revision"), "{error}");
}

#[test]
fn deletes_and_transactions_inside_a_region() {
    let (_cluster, etcdctl) = eight_regions();
    for key in ["/a", "/b", "/c", "/d"] {
        etcdctl.put(key, &format!("value of {key}"));
    }

    let txn = |input: &str| etcdctl.lines_with(&["txn"], input);
    let taken = txn(
        "mod(\"/a\") = \"2\"\nversion(\"/a\") = \"1\"\ncreate(\"/x\") = \"0\"\nvalue(\"/b\") = \"value of /b\"\n\n\
                     put /x new\nget /x\ndel /c\n\nget /a\n\n",
    );
    assert_eq!(taken, ["SUCCESS", "", "OK", "", "/x", "new", "", "1"]);
    let refused = txn("value(\"/x\") > \"newer\"\n\nput /x never\n\nget /a /c\n\n");
    assert_eq!(refused, ["FAILURE", "", "/a", "value of /a", "/b", "value of /b"]);
    let x = &etcdctl.json(&["get", "/x"])["kvs"][0];
    assert_eq!((x["version"].as_i64(), x["mod_revision"].as_i64()), (Some(1), Some(6)));

    assert_eq!(etcdctl.lines(&["del", "/b", "--prev-kv"]), ["1", "/b", "value of /b"]);
    assert_eq!(etcdctl.lines(&["del", "/b"]), ["0"]);
    assert_eq!(etcdctl.lines(&["del", "/", "--prefix"]), ["3"]);
    assert_eq!(etcdctl.lines(&["get", "/", "--prefix"]), Vec::<String>::new());
    assert_eq!(etcdctl.json(&["get", "/"])["header"]["revision"].as_i64(), Some(8), "an empty delete takes no number");
}

#[test]
fn a_delete_over_many_regions_is_whole_or_a_clear_error() {
    let (_cluster, etcdctl) = eight_regions();
    SPREAD.iter().for_each(|key| etcdctl.put(key, "v"));
    let output = etcdctl.output(&["del", "", "--from-key"], b"");
    let left = etcdctl.json(&["get", "", "--from-key"])["count"].as_i64().unwrap_or(0);
    if output.status.success() {
        assert_eq!((String::from_utf8_lossy(&output.stdout).trim(), left), ("8", 0));
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("region"), "the error says why: {said}");
        assert_eq!(left, 8, "nothing is deleted in part");
    }
}

#[test]
fn wrong_requests_get_etcds_own_errors() {
    let (_cluster, etcdctl) = eight_regions();
    let cases: [(&[&str], Vec<u8>, &str); 5] = [
        (&["put", "", "v"], vec![], "etcdserver: key is not provided"),
        (&["put", "absent", "--ignore-value"], vec![], "etcdserver: key not found"),
        (&["put", "k", "v", "--lease=1234"], vec![], "etcdserver: requested lease not found"),
        (&["put", "big"], vec![b'x'; 1_600_000], "etcdserver: request is too large"),
        (&["txn"], b"\nput k 1\nput k 2\n\n\n".to_vec(), "etcdserver: duplicate key given in txn request"),
    ];
    for (args, input, expect) in cases {
        let error = etcdctl.error(args, &input);
        assert!(error.contains(expect), "{args:?}: {error}");
    }
    let many: String = (0..129).map(|i| format!("put k{i} v\n")).collect();
    let error = etcdctl.error(&["txn"], format!("\n{many}\n\n").as_bytes());
    assert!(error.contains("etcdserver: too many operations in txn request"), "{error}");
}

#[test]
fn three_servers_look_like_three_members() {
    let cluster = Cluster::servers(&["--initial-regions", "4"]);
    let etcdctl = Etcdctl::of(&cluster);
    let members = wait_for("all three in the member list", || {
        let members = etcdctl.json(&["member", "list"])["members"].as_array()?.clone();
        (members.len() == 3).then_some(members)
    });
    let mut urls: Vec<&str> = members.iter().filter_map(|member| member["clientURLs"][0].as_str()).collect();
    urls.sort_unstable();
    let mut expect: Vec<&str> = cluster.endpoints.iter().map(String::as_str).collect();
    expect.sort_unstable();
    assert_eq!(urls, expect);

    let status = etcdctl.json(&["endpoint", "status"]);
    let ids: std::collections::BTreeSet<u64> = status
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["Status"]["header"]["member_id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), 3, "every member speaks for itself");

    // What one writes, the others read at once.
    for (i, endpoint) in cluster.endpoints.iter().enumerate() {
        let one = Etcdctl::at(endpoint);
        one.put("shared", &i.to_string());
        for other in &cluster.endpoints {
            assert_eq!(Etcdctl::at(other).get("shared"), ["shared", &i.to_string()]);
        }
    }
}
