//! The placement driver: assigns regions to stores and numbers revisions. One raft group of 1, 3 or 5 members.
//!
//! ```text
//!  pure                                          shell
//!  sequencer   numbers, windows, handover   ◄──  office    lease, windows through raft, NumberService
//!  state       what all members agree on    ◄──  machine   the host's state machine, propose and learn the result
//!  bootstrap   the first regions            ◄──  founding  what the leader does for a young cluster
//!  regions     where regions are            ◄──  service   gRPC: Placement, Sequencer, Admin, Members
//!  presence    who is alive
//!  removed     which peers are gone              split, transfer ──► orders: what stores are told
//!  schedule    which region shall be where  ◄──  scheduling  feeds it, gives its orders
//!                                                compaction the boundary below which history is given up
//!                                                leader    what all of the above share
//!                                                membership whether a member takes part, and as which peer
//!                                                placement one member: open, follow the role, stop
//! ```
//!
//! Regions, stores' state and proxies are the leader's memory, learned again from heartbeats after each election; only
//! what nobody else could tell is replicated.

pub mod bootstrap;
mod compaction;
mod founding;
mod leader;
mod machine;
mod membership;
mod office;
pub mod orders;
mod placement;
pub mod presence;
pub mod regions;
mod removed;
pub mod schedule;
mod scheduling;
pub mod sequencer;
mod service;
mod split;
pub mod state;
mod transfer;

pub use compaction::AutoCompaction;
pub use placement::{MemberConfig, Placement, PlacementConfig, PlacementError};
pub use service::{AdminService, MembersService, PlacementService, SequencerService};
