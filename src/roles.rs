//! The roles: what each is made of, in which order its parts start and stop.
//!
//! Every role starts the same way, so that a wrong flag, a port in use or a foreign folder changes nothing:
//!
//! 1. The flags are checked against each other.
//! 2. Logs, metrics and signals ([`process`]).
//! 3. Ports are bound.
//! 4. The data folder is locked and compared with what the process is (`crate::folder`).
//! 5. The parts open: placement ([`member`]), then the store ([`store_part`]), then the proxy ([`proxy_part`]); each
//!    needs the ones before it. The peer port ([`fabric`]) serves from the first part on.
//!
//! They stop in the other order, the peer port last: as long as a part lives it can answer.

pub mod dev;
mod fabric;
mod links;
mod member;
pub mod placement;
mod process;
pub mod proxy;
mod proxy_part;
pub mod server;
pub mod store;
mod store_part;
mod waiting;
