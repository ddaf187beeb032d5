//! A network between members of one process that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use braid_host::{Inbound, Transport};
use braid_proto::pb::RaftFrame;
use parking_lot::Mutex;

#[derive(Default)]
pub struct Net {
    members: Mutex<BTreeMap<u64, Arc<dyn Inbound>>>,
    isolated: Mutex<BTreeSet<u64>>,
    pub snapshots: AtomicUsize,
}

impl Net {
    pub fn attach(&self, member: u64, inbound: Arc<dyn Inbound>) {
        self.members.lock().insert(member, inbound);
    }

    pub fn detach(&self, member: u64) {
        self.members.lock().remove(&member);
    }

    /// Nobody reaches `member`, and it reaches nobody.
    pub fn isolate(&self, member: u64) {
        self.isolated.lock().insert(member);
    }

    pub fn heal(&self) {
        self.isolated.lock().clear();
    }

    fn reach(&self, frame: &RaftFrame) -> Option<Arc<dyn Inbound>> {
        let isolated = self.isolated.lock();
        if isolated.contains(&frame.from_host) || isolated.contains(&frame.to_host) {
            return None;
        }
        self.members.lock().get(&frame.to_host).cloned()
    }
}

/// The network as one member uses it.
pub struct Port(pub Arc<Net>);

impl Transport for Port {
    fn send(&self, frame: RaftFrame) -> bool {
        let to = self.0.reach(&frame);
        to.map(|inbound| inbound.receive(frame)).is_some()
    }

    fn send_snapshot(&self, frame: RaftFrame, files: Vec<PathBuf>, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        let Some(inbound) = self.0.reach(&frame) else { return done(Err("not reachable".to_owned())) };
        let number = self.0.snapshots.fetch_add(1, Ordering::AcqRel);
        std::thread::spawn(move || {
            let dir = inbound.snapshot_dir().join(format!("in-{number}"));
            match copy(&files, &dir) {
                Ok(()) => {
                    inbound.receive_snapshot(frame, dir);
                    done(Ok(()));
                }
                Err(error) => done(Err(error.to_string())),
            }
        });
    }
}

fn copy(files: &[PathBuf], dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for (number, file) in files.iter().enumerate() {
        fs::copy(file, dir.join(format!("{number}.sst")))?;
    }
    Ok(())
}
