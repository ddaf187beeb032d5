//! Loads, measures and checks any etcd v3 endpoint, from outside: plain gRPC, no knowledge of what answers.
//!
//! | To | Module |
//! |---|---|
//! | talk to endpoints | `client` (connections, what an error means), `session` (repeat what is idempotent) |
//! | fill a cluster | `dataset` (Kubernetes-like objects), `keys` (numbered keys), `loader` |
//! | read a data set back | `verify` |
//! | measure | `workload`, `runner`, `histogram`, `resources`, `report`; `compare` for two systems side by side |
//! | measure watches | `watch`: events per second, latency, memory, catch-up, idle regions; `measure` names every row |
//! | measure leases | `lease`: puts beside expiry, storms, memory; the other workloads with leases are in `workload` |
//! | run clusters and break them | `process` (start, kill, pause), `cluster` (three members of one kind) |
//! | compare a server with etcd's semantics | `model` (what must be answered), `differential` (random programs) |
//! | judge a cluster that was broken | `writer` (steady writes) makes a `history`, `check` finds what is wrong in it |
//! | break a cluster while it is judged | `faults`: blows to processes and through braid's admin service, a watch's history |
//! | watch the disk under compaction | `overwrite` (the same keys, at a fixed rate); `metrics` reads servers' pages |
//! | show growth, moves and capacity | `scale` (placement, proxies and stores as processes of their own); `admin` gives orders |
//! | judge transactions | `linear` (strict serializability of everything that is asked) |
//!
//! `command` holds one file for each subcommand of the `loadtest` program; everything else is as usable from tests.

pub mod admin;
pub mod check;
pub mod client;
pub mod cluster;
pub mod command;
pub mod compare;
pub mod dataset;
pub mod differential;
pub mod faults;
pub mod final_state;
pub mod histogram;
pub mod history;
pub mod keys;
pub mod lease;
pub mod linear;
pub mod loader;
pub mod measure;
pub mod metrics;
pub mod model;
pub mod overwrite;
pub mod process;
pub mod progress;
pub mod random;
pub mod report;
pub mod resources;
pub mod runner;
pub mod scale;
pub mod session;
pub mod verify;
pub mod watch;
pub mod workload;
pub mod writer;
