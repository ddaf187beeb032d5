//! The proxy: speaks etcd's v3 API to unchanged clients and braid's own words to stores and placement.
//!
//! It owns no truth. What it holds are caches that refusals correct, and requests that are under way; it may die at any
//! time without losing anything but its connections.
//!
//! ```text
//! serve ─► front ─► kv ─► regions (braid_store_client) ─► a region's leader
//!            ├─► lease ─► the same
//!            ├─► watch ─► stores, by region
//!            ├─► recipe ─► kv, lease, watch
//!            └─► cluster, maintenance, admin, missing, http
//! ```
//!
//! | Module | What it does |
//! |---|---|
//! | [`proxy`] | puts everything together |
//! | [`serve`], `front`, `handled`, `in_flight` | the client port: connections, overload, counters |
//! | `crew`, `gather` | the requests of a connection in one task, many answers in one write |
//! | `authority` | clients whose `:authority` is none |
//! | [`kv`] | Range, RangeStream, Put, DeleteRange, Txn, Compact |
//! | [`lease`] | leases: what their regions are asked, keep-alives of a stream side by side |
//! | `transact` | writes over several regions |
//! | [`watch`] | events of many regions as one ordered stream for each client |
//! | [`recipe`] | locks and elections, run here |
//! | `presence`, `shared` | the heartbeat, what services share |
//! | `hash_kv`, `inspect`, `region_check` | whether replicas hold the same |
//! | `cluster`, `maintenance`, `admin`, `missing`, `http` | the other services |

pub mod config;
pub mod kv;
pub mod lease;
pub mod maintenance;
pub mod proxy;
pub mod serve;

pub mod front;
pub mod in_flight;
pub mod presence;
pub mod recipe;
pub mod shared;
mod transact;
pub mod watch;

mod admin;
mod authority;
mod cluster;
mod crew;
mod gather;
mod handled;
mod hash_kv;
mod http;
mod inspect;
mod missing;
mod region_check;

pub use config::ProxyConfig;
pub use maintenance::ETCD_VERSION;
pub use proxy::Proxy;
