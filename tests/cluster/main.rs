//! Whole clusters of real processes, driven by an unchanged etcdctl and by braid's own load generator.
//!
//! - `startup`: what an operator gets wrong, and the one line that says so.
//! - `tour`: the guided tour of the README, word for word.
//! - `etcdctl`: etcd's client on eight regions over three store processes.
//! - `web`: `/health`, `/version`, `/metrics`.
//! - `compaction`: one boundary for all regions, through restarts and failures.
//! - `consistency`: all replicas hold the same, and one that does not is found.
//! - `admin`: `braid admin` against a running cluster.
//! - `restart`: stop, start again, everything is there.
//! - `differential`: random programs, every answer compared with a model of etcd.
//! - `kill`: processes are killed under load; every acknowledged write survives.
//! - `examples`: the programs of `docs/examples`.
//! - `leases`: leases, locks and elections; stores are killed and paused under them.
//! - `watch`: every event once and in order, while regions fail and move.
//! - `serializability`: processes are killed under transactions; what clients were told is strictly serializable.
//!
//! Clusters start on free loopback ports below the range of outgoing connections, so that a killed process finds its
//! port free when it comes back. One cluster runs at a time: they share the machine's few cores.

mod admin;
mod clients;
mod compaction;
mod consistency;
mod differential;
mod etcdctl;
mod examples;
mod harness;
mod kill;
mod leases;
mod reshape;
mod restart;
mod serializability;
mod startup;
mod tour;
mod watch;
mod web;
