//! How requests find the regions of a cluster: routes, attempts, connections. Proxies use it for clients' requests,
//! stores for what transactions over several regions say to each other.
//!
//! ```text
//! regions ─► stores ─► a region's leader
//!    │
//!    └─► router ─► placement (GetRoutes)
//! ```
//!
//! | Module | What it does |
//! |---|---|
//! | [`regions`], [`retry`] | one request to one region: attempts and what follows from refusals |
//! | [`route`], [`router`] | which region holds a key |
//! | [`stores`] | how a store is reached |
//! | [`locks`] | the locks of a transaction over several regions |
//! | [`bound`], [`deadline`] | revisions to read at, patience |
//!
//! It owns no truth: what it holds are caches that refusals correct.

pub mod bound;
pub mod deadline;
pub mod locks;
pub mod regions;
pub mod retry;
pub mod route;
pub mod router;
pub mod stores;

pub use regions::Regions;
