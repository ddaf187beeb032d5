//! The proxy as clients see it: a real gRPC client on loopback, a real placement client, and behind the proxy a small
//! in-memory cluster that is told when to misbehave.

mod client;
mod cluster;
mod endpoints;
mod faults;
mod feeds;
mod hashes;
mod kv;
mod leases;
mod process;
mod ranges;
mod recipes;
mod remote;
mod spread;
mod spread_leases;
mod watches;
mod world;
