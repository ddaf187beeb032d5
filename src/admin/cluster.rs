//! Commands about the cluster as a whole.

pub mod health;
pub mod rebalance;
pub mod status;
pub mod why;
