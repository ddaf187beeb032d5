//! The gate in front of a member's host: what of the group's messages reaches it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_host::{Inbound, Pace};
use braid_proto::pb::{RaftFrame, RaftMessage};

/// Nothing passes.
const CLOSED: u64 = 0;
/// Everything passes.
const OPEN: u64 = u64::MAX;
/// 1 where the member of this process takes part in the group, 0 where it waits until it may.
const TAKES_PART: &str = "braid_placement_takes_part";

/// Keeps messages for peers that the member may not be away from its host. Closed at first.
pub struct Gate {
    inner: Arc<dyn Inbound>,
    /// The peer whose messages pass, [`CLOSED`] or [`OPEN`].
    admits: AtomicU64,
}

impl Gate {
    /// A closed gate before `inner`.
    pub fn new(inner: Arc<dyn Inbound>) -> Self {
        metrics::gauge!(TAKES_PART).set(0.0);
        Self { inner, admits: AtomicU64::new(CLOSED) }
    }

    /// Everything passes from now on.
    pub fn open(&self) {
        self.admits.store(OPEN, Ordering::Release);
        metrics::gauge!(TAKES_PART).set(1.0);
    }

    /// Only what is for this peer passes; 0: nothing.
    pub fn admit_only(&self, peer: u64) {
        self.admits.store(peer, Ordering::Release);
    }

    /// What of `frame` passes.
    fn passes(&self, frame: &mut RaftFrame) -> bool {
        let admits = self.admits.load(Ordering::Acquire);
        if admits != OPEN {
            let for_it = |message: &RaftMessage| message.to.is_some_and(|to| to.id == admits);
            frame.messages.retain(for_it);
        }
        admits != CLOSED
    }
}

impl Inbound for Gate {
    fn receive(&self, mut frame: RaftFrame) {
        if self.passes(&mut frame) {
            self.inner.receive(frame);
        }
    }

    fn receive_snapshot(&self, mut frame: RaftFrame, dir: PathBuf) {
        if self.passes(&mut frame) && !frame.messages.is_empty() {
            return self.inner.receive_snapshot(frame, dir);
        }
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "files of a refused raft snapshot are left; the next start removes them");
        }
    }

    fn snapshot_dir(&self) -> &Path {
        self.inner.snapshot_dir()
    }

    fn snapshot_pace(&self) -> Arc<Pace> {
        self.inner.snapshot_pace()
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::Peer;
    use parking_lot::Mutex;

    use super::*;

    const NOTHING: [usize; 0] = [];

    #[derive(Default)]
    struct Host(Mutex<Vec<usize>>);

    impl Inbound for Host {
        fn receive(&self, frame: RaftFrame) {
            self.0.lock().push(frame.messages.len());
        }

        fn receive_snapshot(&self, frame: RaftFrame, _: PathBuf) {
            self.0.lock().push(100 + frame.messages.len());
        }

        fn snapshot_dir(&self) -> &Path {
            Path::new("")
        }

        fn snapshot_pace(&self) -> Arc<Pace> {
            Arc::new(Pace::new(0))
        }
    }

    #[test]
    fn only_messages_for_the_new_peer_pass() {
        let host = Arc::new(Host::default());
        let gate = Gate::new(Arc::clone(&host) as Arc<dyn Inbound>);
        let to = |ids: &[u64]| {
            let message = |id: &u64| RaftMessage { to: Some(Peer::voter(*id, 1)), ..Default::default() };
            RaftFrame { messages: ids.iter().map(message).collect(), ..Default::default() }
        };
        let snapshot = || tempfile::tempdir().expect("a folder").keep();
        let seen = |what: &dyn Fn()| {
            what();
            std::mem::take(&mut *host.0.lock())
        };
        assert_eq!(seen(&|| gate.receive(to(&[3]))), NOTHING);
        let dir = snapshot();
        assert_eq!(seen(&|| gate.receive_snapshot(to(&[3]), dir.clone())), NOTHING);
        assert!(!dir.exists(), "the files of what is refused go");
        gate.admit_only(104);
        // Support between hosts has no message and passes.
        assert_eq!(seen(&|| gate.receive(to(&[]))), [0]);
        assert_eq!(seen(&|| gate.receive(to(&[3, 104, 4]))), [1]);
        assert_eq!(seen(&|| gate.receive_snapshot(to(&[3]), snapshot())), NOTHING);
        assert_eq!(seen(&|| gate.receive_snapshot(to(&[104]), snapshot())), [101]);
        gate.open();
        assert_eq!(seen(&|| gate.receive(to(&[3, 104]))), [2]);
    }
}
