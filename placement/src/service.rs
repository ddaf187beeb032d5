//! The gRPC services of a placement member. Only the leader answers; the others say who leads.

mod admin;
mod placement;
mod sequencer;

pub use admin::AdminService;
pub use placement::PlacementService;
pub use sequencer::SequencerService;
