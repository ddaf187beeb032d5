//! What an operator gets wrong at start: one line that says what to do, an exit code, nothing overwritten.

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use braid_loadtest::process::Process;
use tempfile::tempdir;

use crate::clients::output;
use crate::harness::{Cluster, braid, free_url, must_run, run, spec, stop, texts, wait_for};

/// The one line on stderr of a program that refused to start.
fn refusal(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("braid: ")).collect();
    assert_eq!(lines.len(), 1, "one line says it: {said}");
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
    lines[0].to_owned()
}

#[test]
fn wrong_flags_are_named() {
    let cases: [(&[&str], &str); 6] = [
        (&["server", "--data-dri", "x"], "unknown flag --data-dri; the nearest is --data-dir"),
        (&["server", "--snapshot-count", "5"], "--snapshot-count: braid does not have it, because"),
        (&["dev", "--listen-client-urls", "localhost:2379"], "must start with http://"),
        (&["store", "--config-file", "/nonexistent"], "cannot read the config file /nonexistent"),
        (&["dev", "--regions", "zero"], "--regions: "),
        (&["admin", "region", "split"], "--key <KEY>"),
    ];
    for (args, expect) in cases {
        let line = refusal(&run(args), 2);
        assert!(line.contains(expect), "{args:?}: {line}");
    }
}

#[test]
fn contradictory_flags_are_named() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let cases: [(&[&str], &str); 6] = [
        (&["server", "--name", "n9", "--initial-cluster", "n1=http://127.0.0.1:1"], "is not in --initial-cluster"),
        (&["server", "--replicas", "3"], "starts with 1 stores"),
        (&["server", "--initial-cluster-state", "existing"], "names no other member that could know one"),
        (&["server", "--election-timeout", "9"], "--election-timeout is 9 ms"),
        (&["store"], "--placement-endpoints"),
        (&["dev", "--regions", "2", "--split-keys", "m"], "give one of them"),
    ];
    for (args, expect) in cases {
        let output = output(braid().args(args).args(["--data-dir", &data]), b"");
        let line = refusal(&output, 1);
        assert!(line.contains(expect), "{args:?}: {line}");
        assert!(!dir.path().join("data").exists(), "{args:?} made a folder");
    }
}

#[test]
fn settings_come_from_flag_environment_file_in_this_order() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("braid.toml");
    fs::write(&file, "log-level = \"from-file\"\n").unwrap();
    let start = |flag: &[&str], variable: Option<&str>| {
        let mut command = braid();
        command.args(["dev", "--data-dir", "/nonexistent/x", "--config-file"]).arg(&file).args(flag);
        variable.map(|level| command.env("BRAID_LOG_LEVEL", level));
        refusal(&output(&mut command, b""), 1)
    };
    assert!(start(&[], None).contains("--log-level \"from-file\""));
    assert!(start(&[], Some("from-environment")).contains("--log-level \"from-environment\""));
    assert!(start(&["--log-level", "from-flag"], Some("from-environment")).contains("--log-level \"from-flag\""));
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_made() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let url = free_url();
    let _held = TcpListener::bind(url.strip_prefix("http://").unwrap()).unwrap();
    let output = run(&["dev", "--listen-client-urls", &url, "--data-dir", &data.display().to_string()]);
    let line = refusal(&output, 1);
    assert!(line.contains(&format!("--listen-client-urls: {url} is in use by another process")), "{line}");
    assert!(!data.exists());
}

#[test]
fn a_folder_that_is_not_braids_is_left_alone() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("photos.tar"), "precious").unwrap();
    let output = run(&["dev", "--listen-client-urls", &free_url(), "--data-dir", &dir.path().display().to_string()]);
    let line = refusal(&output, 1);
    assert!(line.contains("holds \"photos.tar\" but was not made by braid"), "{line}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_of_another_role_cluster_or_process_is_refused() {
    let mut cluster = Cluster::dev(&[]);
    let data = cluster.path("dev");
    let identity = format!("{data}/identity.toml");
    let before = fs::read_to_string(&identity).unwrap();

    let in_use = refusal(&run(&["dev", "--listen-client-urls", &free_url(), "--data-dir", &data]), 1);
    assert!(in_use.contains("another process uses the data folder"), "{in_use}");

    assert!(stop(cluster.process("dev")).success());
    let (peer, client) = (free_url(), free_url());
    let ports = ["--listen-peer-urls", &peer, "--listen-client-urls", &client, "--data-dir", &data];
    let role = refusal(&run(&[&["server"], &ports[..]].concat()), 1);
    assert!(role.contains("belongs to `braid dev`, not to `braid server`"), "{role}");
    let stores = refusal(&run(&["dev", "--listen-client-urls", &client, "--data-dir", &data, "--stores", "3"]), 1);
    assert!(stores.contains("was made with --stores 1"), "{stores}");

    assert_eq!(fs::read_to_string(&identity).unwrap(), before, "nothing is overwritten");
    cluster.process("dev").restart().unwrap();
    cluster.wait_healthy();
}

#[test]
fn a_folder_of_another_cluster_is_refused() {
    let dir = tempdir().unwrap();
    let _turn = crate::harness::turn();
    let (peer, client) = (free_url(), free_url());
    let data = dir.path().join("data").display().to_string();
    let mut args =
        texts(&["server", "--listen-peer-urls", &peer, "--listen-client-urls", &client, "--data-dir", &data]);
    let mut server = Process::start(spec(dir.path(), "server", args.clone())).unwrap();
    wait_for("the folder to be made", || {
        must_run(&mut server);
        fs::metadata(format!("{data}/identity.toml")).ok()
    });
    assert!(stop(&mut server).success());

    args.extend(texts(&["--initial-cluster-token", "other"]));
    let output = output(braid().args(&args), b"");
    let line = refusal(&output, 1);
    assert!(line.contains("belongs to cluster") && line.contains("--initial-cluster-token"), "{line}");
}

#[test]
fn a_damaged_identity_stops_the_start() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("identity.toml"), "format = 1\nrole = \"d").unwrap();
    let output = run(&["dev", "--listen-client-urls", &free_url(), "--data-dir", &dir.path().display().to_string()]);
    let line = refusal(&output, 1);
    assert!(line.contains("identity.toml is damaged"), "{line}");
    assert_eq!(fs::read_to_string(dir.path().join("identity.toml")).unwrap(), "format = 1\nrole = \"d");
}
