//! Measures leases where an operation again and again is not enough: what happens to others when leases end.
//!
//! Leases that are kept alive, come and go, or hold locks are ordinary workloads (`workload`). Here are:
//!
//! | To learn | Module |
//! |---|---|
//! | what puts feel when a lease with many keys expires every second | `expiry`, a row of `compare` |
//! | how long it takes until a great many leases that expire at once are gone | `storm` |
//! | what a lease costs in memory, and how a restart goes with very many | `memory` |
//!
//! `ends` holds servers to what they promise meanwhile: no lease ends early, none is lost, none leaves a key behind, and
//! all keys of a lease go at one revision. `grant` makes very many leases.

pub mod ends;
pub mod expiry;
pub mod grant;
pub mod keep_alive;
pub mod memory;
pub mod storm;
