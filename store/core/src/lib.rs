//! The pure half of a store: requests, numbers and outcomes in, changes and effects out.
//!
//! ```text
//!   pipeline  order of one led region: queue ─► eval ─► numbers ─► raft entry ─► answers
//!      │
//!    eval     etcd's transaction semantics on a [`view::View`]; knows nothing of order
//!      │
//!    view     what an evaluation sees: in-flight writes ([`overlay`]) over applied data ([`view::BaseView`])
//!      │
//!   record    one live value;  placeholder  revisions that are not known yet;  buckets  counts of live keys;
//!   hash      what two replicas of a range are compared by;  epoch  which requests a region serves;  load  how busy it is
//! ```
//!
//! Deliberately absent: clocks, threads, files, sockets, randomness, RocksDB. The engine side is `braid-store`'s.

pub mod buckets;
pub mod epoch;
pub mod eval;
pub mod hash;
pub mod load;
pub mod overlay;
pub mod pipeline;
pub mod placeholder;
pub mod record;
pub mod view;
