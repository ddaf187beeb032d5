//! How stores, proxies and the admin command reach placement.
//!
//! - [`PlacementClient`]: one method per call; finds the leader, follows its refusals, retries until the caller's deadline.
//! - [`Numbers`]: this process's way to revisions: batches, repeats and orders numbering requests (rules N2, N5, N6, Q1).
//!
//! Knows placement only by its messages.

mod client;
mod members;
mod numbers;
mod numbers_core;

pub use client::{ClientError, PlacementClient};
pub use numbers::{Numbers, NumbersConfig};
pub use numbers_core::{Block, NumberError};
