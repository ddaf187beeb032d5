//! Stop and start: what was there is there again, and the revision goes on.

use crate::etcdctl::Etcdctl;
use crate::harness::{Cluster, PATIENCE, stop};

#[test]
fn a_graceful_stop_loses_nothing_and_leaves_no_hole() {
    let mut cluster = Cluster::dev(&["--stores", "3", "--regions", "4"]);
    let etcdctl = Etcdctl::of(&cluster);
    for key in ["a", "b", "z"] {
        etcdctl.put(key, "before");
    }
    let before = etcdctl.revision_of("z");
    assert!(stop(cluster.process("dev")).success(), "a graceful stop is a success");
    cluster.process("dev").restart().unwrap();
    cluster.wait_healthy();
    assert_eq!(etcdctl.get("a"), ["a", "before"]);
    etcdctl.put("m", "after");
    assert_eq!(etcdctl.revision_of("m"), before + 1, "the planned stop kept the numbers dense");
}

#[test]
fn everything_killed_at_once_comes_back_with_every_acknowledged_write() {
    let mut cluster = Cluster::servers(&["--initial-regions", "4"]);
    let etcdctl = Etcdctl::of(&cluster);
    for i in 0..40 {
        etcdctl.put(&format!("{}-key-{i}", char::from(b'0' + i)), &format!("value {i}"));
    }
    let newest = etcdctl.revision_of(&format!("{}-key-39", char::from(b'0' + 39)));
    cluster.processes.iter_mut().for_each(|process| process.kill().unwrap());
    cluster.processes.iter_mut().for_each(|process| process.restart().unwrap());
    cluster.wait_healthy();
    for i in 0..40 {
        let key = format!("{}-key-{i}", char::from(b'0' + i));
        assert_eq!(etcdctl.get(&key), [key.clone(), format!("value {i}")]);
    }
    etcdctl.put("after", "1");
    assert!(etcdctl.revision_of("after") > newest, "no revision is given out twice");
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut cluster = Cluster::dev(&[]);
    let dev = cluster.process("dev");
    // A client's open request would keep a graceful stop waiting; without one it may be over before the second signal.
    dev.terminate().unwrap();
    let _ = dev.terminate();
    let status = dev.wait(PATIENCE).unwrap();
    assert!(matches!(status.code(), Some(0 | 130)), "{status}");
}
