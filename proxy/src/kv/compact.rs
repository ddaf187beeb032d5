//! Compact: not there yet.

use tonic::Status;

/// What a client is told. It must not take this for a compaction that has happened.
pub fn not_available() -> Status {
    Status::unimplemented("braid: compaction is not available in this version")
}
