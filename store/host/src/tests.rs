//! Whole hosts in one process: real logs, real databases, a network that can be cut.

mod basics;
mod cluster;
mod kv;
mod net;
mod snapshots;
