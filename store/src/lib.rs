//! A store: regions of the key space, each a raft group, with etcd's multi-version data under them.
//!
//! ```text
//! proxy ── RegionRequest ──► service ─► region ─► pipeline (pure, store/core) ─► numbers ─► sequencer
//!                                         │  ▲          │ Propose
//!                                   read ─┤  │ outcome  ▼
//!                                         ▼  │        host (raft, log, apply; store/host)
//!                                       engine (RocksDB) ◄── apply
//! ```
//!
//! Deliberately absent: routing (the proxy's), the choice of stores (placement's), client headers (the proxy's).

mod compaction;
pub mod engine;
mod flow;
mod frontier;
mod hash;
mod heartbeat;
mod leases;
mod load;
#[cfg(test)]
mod lone;
mod machine;
mod merge;
mod multi;
mod orders;
mod read;
mod region;
mod reports;
mod service;
mod space;
mod store;
mod watch;

pub use service::RegionStoreService;
pub use space::SpaceLimits;
pub use store::{OpenError, Registered, Store, StoreConfig, register};
pub use watch::{BadOrder, Following, RegionWatchService};
