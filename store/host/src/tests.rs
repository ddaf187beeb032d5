//! Whole hosts in one process: real logs, real databases, a network that can be cut.

mod basics;
mod changes;
mod chaos;
mod cluster;
mod destroyed;
mod folders;
mod kv;
mod leases;
mod merges;
mod net;
mod sleep;
mod snapshots;
mod splits;
