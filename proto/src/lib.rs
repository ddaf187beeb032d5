//! The words braid's crates share: wire messages, ids, keys and ranges, wire errors, and the traits by which one
//! service calls another. Knows nobody: every other crate may depend on this one, it depends on none.

pub mod address;
pub mod check;
pub mod epoch;
pub mod error;
pub mod etcd;
pub mod id;
pub mod key;
pub mod range;
pub mod service;
pub mod span;

#[allow(missing_docs, clippy::all, reason = "generated from proto/braid/braid.proto, where the docs are")]
mod generated {
    tonic::include_proto!("braid");
}

/// braid's own messages and services (`proto/braid/braid.proto`).
pub mod pb {
    pub use super::generated::*;
}
