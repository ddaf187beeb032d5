use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn shell(folder: &Path, script: &str) -> Spec {
    Spec {
        name: "child".into(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        env_hidden_prefixes: Vec::new(),
        log: folder.join("log"),
    }
}

/// State letter of a process in /proc; none if it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn output_is_kept_and_the_end_is_awaited() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(shell(folder.path(), "echo one; echo two >&2; echo three; exit 3")).unwrap();
    assert_eq!(process.wait(LONG).unwrap().code(), Some(3));
    assert!(process.log_tail(2).ends_with("two\nthree"), "{}", process.log_tail(2));
    assert!(process.terminate().unwrap_err().to_string().contains("already ended"));
}

#[test]
fn a_wait_that_is_too_short_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(shell(folder.path(), "exec sleep 1000")).unwrap();
    let error = process.wait(Duration::from_millis(20)).unwrap_err().to_string();
    assert!(error.contains("has not ended"), "{error}");
    process.terminate().unwrap();
    assert_eq!(process.wait(LONG).unwrap().signal(), Some(15));
}

#[test]
fn a_paused_process_stands_still_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(shell(folder.path(), "exec sleep 1000")).unwrap();
    process.pause().unwrap();
    assert_eq!(state(process.pid()), Some('T'));
    process.resume().unwrap();
    assert_ne!(state(process.pid()), Some('T'));
    assert!(process.ended().unwrap().is_none());
}

#[test]
fn even_a_paused_process_can_be_killed_and_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(shell(folder.path(), "exec sleep 1000")).unwrap();
    assert!(process.restart().unwrap_err().to_string().contains("still runs"));
    let first = process.pid();
    process.pause().unwrap();
    process.kill().unwrap();
    process.kill().unwrap();
    assert_eq!(process.ended().unwrap().unwrap().signal(), Some(9));
    process.restart().unwrap();
    assert_ne!(process.pid(), first);
    assert!(process.ended().unwrap().is_none());
}

#[test]
fn a_dropped_process_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(shell(folder.path(), "exec sleep 1000")).unwrap();
    let pid = process.pid();
    assert!(state(pid).is_some());
    drop(process);
    assert_eq!(state(pid), None);
}

#[test]
fn the_environment_is_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    // CARGO_PKG_NAME is set by the test runner.
    let mut spec = shell(folder.path(), "echo \"<$GIVEN> <$CARGO_PKG_NAME>\"");
    spec.env.push(("GIVEN".into(), "yes".into()));
    spec.env_hidden_prefixes.push("CARGO_".into());
    let mut process = Process::start(spec).unwrap();
    process.wait(LONG).unwrap();
    assert!(process.log_tail(1).ends_with("<yes> <>"), "{}", process.log_tail(1));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Process::start(Spec { program: "/no/such/program".into(), ..shell(folder.path(), "") }).unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

#[test]
fn free_ports_differ_and_can_be_bound() {
    let ports: Vec<_> = (0..20).map(|_| free_port().unwrap()).collect();
    let listeners: Vec<_> = ports.iter().map(|&port| TcpListener::bind(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(listeners.len(), 20);
}
