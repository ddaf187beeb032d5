//! Which part of a braid server a thread works for, as far as its name tells.
//!
//! Proxy, the requests of the store and the services of placement share the threads of one tokio runtime, so these cannot be
//! told apart from outside; raft, apply and RocksDB have threads of their own.

use std::collections::BTreeMap;

/// The roles in the order of a table's columns.
pub const ROLES: [&str; 6] = ["proxy and services", "raft", "log", "apply", "RocksDB", "other"];

/// The role of a group of threads (`Usage::groups`).
pub fn role(group: &str) -> &'static str {
    match group {
        "tokio-rt-worker" => "proxy and services",
        "raft" | "raft-helper" => "raft",
        "log-gc" | "re-metrics" | "re-purge" => "log",
        "apply" => "apply",
        "compaction" => "RocksDB",
        _ if group.starts_with("rocksdb") => "RocksDB",
        _ => "other",
    }
}

/// Sums by role.
pub fn by_role(groups: &BTreeMap<String, f64>) -> BTreeMap<&'static str, f64> {
    let mut roles = BTreeMap::new();
    for (group, time) in groups {
        *roles.entry(role(group)).or_default() += time;
    }
    roles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_one_of_the_roles() {
        for group in ["tokio-rt-worker", "raft", "raft-helper", "log-gc", "apply", "rocksdb:low", "compaction", "etcd"]
        {
            assert!(ROLES.contains(&role(group)), "{group}");
        }
        let groups =
            BTreeMap::from([("raft".to_owned(), 2.0), ("raft-helper".to_owned(), 3.0), ("etcd".to_owned(), 7.0)]);
        assert_eq!(by_role(&groups), BTreeMap::from([("raft", 5.0), ("other", 7.0)]));
    }
}
