//! The proxy as clients see it: a real gRPC client on loopback, a real placement client, and behind the proxy a small
//! in-memory cluster that is told when to misbehave.

mod client;
mod cluster;
mod endpoints;
mod faults;
mod hashes;
mod kv;
mod process;
mod ranges;
mod remote;
mod spread;
mod watches;
mod world;
