//! Frames and raft snapshots between hosts: over gRPC, or hand to hand inside one process.
//!
//! ```text
//!  raft worker ── send ──► LocalRegistry: the target lives here ──────────────────────────────► Inbound::receive
//!                    └──► Lane (one per domain, sender, target): bounded queue ── Stream RPC ──► RaftService ──┘
//!  raft worker ── send_snapshot ──► 4 at a time, paced ── Snapshot RPC ──► files checked and synced ──► Inbound
//! ```
//!
//! 1. A lane is one connection with one `Stream` call that stays open. Its request body takes straight from the queue,
//!    so what queued up while the connection was busy leaves as one frame, in order. Frames above [`FRAME_BYTES`] are
//!    cut between messages.
//! 2. Nothing waits: a full queue, an unknown host and a host that could not be reached just now drop the frame and
//!    say so. Raft repeats what is lost. Reconnecting is the lane's own work, with a pause that grows to half a second.
//! 3. A receiver takes a frame only if cluster, domain and host are its own; addresses get reused.
//! 4. Snapshots have their own connections, so that they never stand in front of heartbeats.
//!
//! Deliberately absent: retries of frames, knowledge of raft beyond "the data of a snapshot message is a manifest".

mod address_book;
mod client;
mod lane;
mod local;
mod receive;
mod send;
mod service;
#[cfg(test)]
mod tests;

use std::time::Duration;

use braid_proto::pb::Domain;
use tonic::transport::Endpoint;

pub use address_book::AddressBook;
pub use client::{GrpcTransport, TransportConfig, Unreachable};
pub use local::LocalRegistry;
pub use service::RaftService;

/// Largest gRPC message taken or sent. An entry is at most a few MiB; one message of many entries stays far below.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Frames are cut between messages where they grow beyond this.
pub const FRAME_BYTES: usize = 4 << 20;
/// Snapshots sent at once by a process, and received at once by a process.
pub const SNAPSHOTS_AT_ONCE: usize = 4;

const _: () = assert!(FRAME_BYTES * 4 <= MESSAGE_BYTES_MAX);

/// Connecting takes a round trip; a host that needs longer is down as far as raft is concerned.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection on which nothing answers for two of these is closed.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// How every connection to `address` (`host:port`) is made.
fn endpoint(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| format!("{address}: {error}"))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

/// An error with its causes, on one line: tonic's own text says only "transport error".
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A host as logs and refusals name it.
fn name(domain: Domain, host: u64) -> String {
    match domain {
        Domain::Placement => format!("placement member {host:x}"),
        Domain::Store => format!("store s{host}"),
    }
}
