//! The gRPC services of a placement member. Only the leader answers, but to other members; the others say who leads.

mod admin;
mod members;
mod placement;
mod sequencer;

pub use admin::AdminService;
pub use members::MembersService;
pub use placement::PlacementService;
pub use sequencer::SequencerService;
