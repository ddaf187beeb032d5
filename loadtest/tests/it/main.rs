//! The library against a KV service in memory that can be told to misbehave: no server program is needed.

mod differential;
mod faults;
mod lease;
mod linear;
mod load_and_verify;
mod memory;
mod runner;
mod soak;
mod watch;
