//! Flags, variables and files together. One process has one environment, so the variables used here are used by no
//! other test.

use std::path::PathBuf;

use super::types::{ClusterState, LogFormat};
use super::usage::Exit;
use super::*;

fn line(text: &str) -> Vec<OsString> {
    std::iter::once("braid").chain(text.split_whitespace()).map(OsString::from).collect()
}

fn read(text: &str) -> Result<Command, Exit> {
    parse(line(text)).map(|cli| cli.command)
}

fn must_refuse(text: &str) -> String {
    match read(text) {
        Err(Exit::Usage(line)) => {
            assert_eq!(line.lines().count(), 1, "one line, but got: {line}");
            line
        }
        other => panic!("{text}: {other:?}"),
    }
}

fn server(text: &str) -> roles::ServerArgs {
    match read(text) {
        Ok(Command::Server(args)) => args,
        other => panic!("{text}: {other:?}"),
    }
}

fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("braid.toml");
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

#[test]
fn the_command_line_is_consistent() {
    layers::with_environment(command()).debug_assert();
}

#[test]
fn a_server_starts_with_etcds_defaults() {
    let args = server("server");
    assert_eq!(args.member.name, "default");
    assert_eq!(args.client.listen_client_urls, ["http://localhost:2379".parse().unwrap()]);
    assert_eq!(args.member.listen_peer_urls, ["http://localhost:2380".parse().unwrap()]);
    assert_eq!(args.client.max_request_bytes, 1_572_864);
    assert_eq!(args.client.max_txn_ops, 128);
    assert_eq!(args.member.initial_cluster_state, ClusterState::New);
}

#[test]
fn dev_has_its_own_defaults() {
    let Ok(Command::Dev(args)) = read("dev") else { panic!("dev is a command") };
    assert_eq!(args.client.listen_client_urls, ["http://127.0.0.1:2379".parse().unwrap()]);
    assert_eq!(args.process.log_level, "warn");
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let (_dir, path) = file(
        "name = \"from-file\"\nmax-txn-ops = 7\nlog-format = \"json\"\n\
         listen-client-urls = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]\nlabels = \"zone=a,rack=b\"\n",
    );
    let args = server(&format!("server --name from-flag --config-file {}", path.display()));
    assert_eq!(args.member.name, "from-flag");
    assert_eq!(args.client.max_txn_ops, 7);
    assert_eq!(args.process.log_format, LogFormat::Json);
    assert_eq!(args.client.listen_client_urls.len(), 2);
    assert_eq!(args.labels.labels.len(), 2);
    assert_eq!(args.client.max_request_bytes, 1_572_864);
}

#[test]
fn the_interval_of_watch_notices_has_both_of_etcds_names() {
    let interval = |text: &str| server(text).client.watch_progress_notify_interval.0.as_millis();
    assert_eq!(interval("server"), 600_000);
    assert_eq!(interval("server --watch-progress-notify-interval 5s"), 5_000);
    assert_eq!(interval("server --experimental-watch-progress-notify-interval=250ms"), 250);
    let (_dir, path) = file("experimental-watch-progress-notify-interval = \"7s\"\n");
    assert_eq!(interval(&format!("server --config-file {}", path.display())), 7_000);
    let error = must_refuse("server --watch-progress-notify-interval 1ms");
    assert!(error.contains("too short; notices come every 100ms at most"), "{error}");
}

#[test]
fn every_flag_of_every_role_has_its_variable() {
    let command = layers::with_environment(command());
    for role in ["dev", "server", "placement", "store", "proxy", "admin"] {
        for arg in command.find_subcommand(role).unwrap().get_arguments() {
            let Some(flag) = arg.get_long().filter(|flag| *flag != "help") else { continue };
            let variable = format!("BRAID_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "{role} --{flag}");
        }
    }
}

#[test]
fn an_unknown_key_names_the_nearest_setting() {
    let (_dir, path) = file("data_dir = \"x\"\n");
    let error = must_refuse(&format!("server --config-file {}", path.display()));
    assert!(error.contains("no setting \"data_dir\"; the nearest is \"data-dir\""), "{error}");

    let (_dir, path) = file("wal-dir = \"x\"\n");
    let error = must_refuse(&format!("server --config-file {}", path.display()));
    assert!(error.contains("put --data-dir on the fast disk"), "{error}");

    let (_dir, path) = file("config-file = \"x\"\n");
    let error = must_refuse(&format!("server --config-file {}", path.display()));
    assert!(error.contains("cannot name another one"), "{error}");
}

#[test]
fn a_wrong_file_is_named_with_its_fault() {
    let error = must_refuse("server --config-file /nonexistent/braid.toml");
    assert!(error.contains("cannot read the config file /nonexistent/braid.toml"), "{error}");

    let (_dir, path) = file("name = \"a\"\nmax-txn-ops = = 3\n");
    let error = must_refuse(&format!("server --config-file {}", path.display()));
    assert!(error.contains("line 2 is not TOML"), "{error}");

    let (_dir, path) = file("max-txn-ops = \"many\"\n");
    let error = must_refuse(&format!("server --config-file {}", path.display()));
    assert!(error.contains("braid.toml: --max-txn-ops"), "{error}");

    let (_dir, path) = file("[labels]\nzone = \"a\"\n");
    let error = must_refuse(&format!("server --config-file {}", path.display()));
    assert!(error.contains("labels must be a text"), "{error}");
}

#[test]
fn wrong_flags_say_what_to_do() {
    let cases = [
        (
            "server --listen-client-url http://a:1",
            "unknown flag --listen-client-url; the nearest is --listen-client-urls",
        ),
        ("server --snapshot-count 5", "--snapshot-count: braid does not have it, because each region bounds"),
        ("server --enable-v2", "--enable-v2: braid does not have it, because it speaks only etcd's v3 API"),
        ("server --cert-file=x", "--cert-file: braid does not have TLS yet"),
        (
            "server --listen-client-urls 127.0.0.1:2379",
            "--listen-client-urls: \"127.0.0.1:2379\" must start with http://",
        ),
        (
            "server --initial-cluster-state fresh",
            "--initial-cluster-state is \"fresh\", but must be one of new, existing",
        ),
        ("dev --stores 0", "--stores: 0 is not in 1..=64"),
        ("dev extra", "\"extra\" is not expected here"),
        ("server --name", "--name needs a value"),
        ("servr", "unknown command \"servr\"; the nearest is \"server\""),
        ("admin region transfer-leader 7", "give --to <ID>"),
        ("admin region split --key \\q", "--key: "),
        ("admin region transfer-leader s1 --to 2", "\"s1\" is no id"),
        ("admin region split", "give <KEY|--key <KEY>|--region <ID>>"),
        ("admin region split --region 7", "give --by <BY>"),
        ("admin region split a --region 7 --by size", "cannot be used with"),
        ("admin region split --region 7 --by age", "--by is \"age\", but must be one of size, load"),
        ("admin region merge 7", "give --into <ID>"),
        ("admin region move-peer 7 --from s1", "give --to <ID>"),
        ("admin region move-peer 7 --from s1 --to s2 --timeout 5", "give --wait"),
        ("admin region show s3", "\"s3\" is no id"),
        ("admin region list --limit 0", "--limit: 0 is not in 1.."),
        ("admin region scatter", "give <ID|--all|--start <KEY>|--end <KEY>>"),
        ("admin region scatter 7 --all", "cannot be used with"),
        ("admin store label s1", "give <NAME=VALUE>"),
        ("admin store label s1 zone", "\"zone\" must be NAME=VALUE, for example zone=a, or NAME= to take a label away"),
        ("admin store weight s1 heavy", "invalid float"),
        ("admin store drain s1 --stop --wait", "cannot be used with"),
        ("admin store lable s1", "unknown command \"lable\"; the nearest is \"label\""),
        ("admin scheduler pause", "give <NAME>"),
        ("admin scheduler set replicas", "\"replicas\" must be NAME=VALUE, for example replicas=5"),
        ("admin operator cancel", "give <REGION|--all>"),
        ("admin operator cancel 7 --all", "cannot be used with"),
        ("admin rebalance --status --timeout 5", "cannot be used with"),
        ("admin rebalance --timeout 0", "--timeout: 0 is not in 1.."),
    ];
    for (text, expect) in cases {
        let error = must_refuse(text);
        assert!(error.contains(expect), "{text}: {error}");
    }
}

#[test]
fn help_is_no_fault() {
    assert!(matches!(read("--help"), Err(Exit::Text(_))));
    assert!(matches!(read("server --help"), Err(Exit::Text(_))));
    assert!(matches!(read("--version"), Err(Exit::Text(_))));
    assert!(matches!(read(""), Err(Exit::Help(_))));
    assert!(matches!(read("admin region"), Err(Exit::Help(_))));
}
