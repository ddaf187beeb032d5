//! A network between hosts of one process. Frames arrive at once, on the sender's thread; snapshots on their own thread.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use braid_proto::pb::{RaftFrame, RaftMessage};
use parking_lot::{Mutex, RwLock};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::{Inbound, Transport};

/// Learns of raft messages that were delivered.
pub type Watch = Box<dyn Fn(u64, u64, &Message) + Send + Sync>;

/// Decides about one raft message: false drops it.
pub type Filter = Box<dyn Fn(u64, u64, &Message) -> bool + Send + Sync>;

#[derive(Default)]
pub struct Net {
    hosts: RwLock<HashMap<u64, Arc<dyn Inbound>>>,
    /// Pairs (from, to) that do not reach each other.
    cut: Mutex<Vec<(u64, u64)>>,
    filter: RwLock<Option<Filter>>,
    watch: RwLock<Option<Watch>>,
    /// While a test holds it, whoever sends stands still.
    pub gate: RwLock<()>,
    pub snapshots_sent: AtomicUsize,
    /// How many snapshots are to fail before one is let through.
    pub snapshots_to_fail: AtomicUsize,
    number: AtomicU64,
}

impl Net {
    pub fn attach(&self, host: u64, inbound: Arc<dyn Inbound>) {
        self.hosts.write().insert(host, inbound);
    }

    pub fn detach(&self, host: u64) {
        self.hosts.write().remove(&host);
    }

    /// Cuts a host off from all others, in both directions.
    pub fn isolate(&self, host: u64) {
        let mut cut = self.cut.lock();
        for other in (1..10).filter(|other| *other != host) {
            cut.extend([(host, other), (other, host)]);
        }
    }

    /// `host` hears nobody.
    pub fn cut_to(&self, host: u64) {
        self.cut.lock().extend((1..10).map(|other| (other, host)));
    }

    /// Nobody hears `host`.
    pub fn cut_from(&self, host: u64) {
        self.cut.lock().extend((1..10).map(|other| (host, other)));
    }

    pub fn heal(&self) {
        self.cut.lock().clear();
        *self.filter.write() = None;
    }

    /// Lets every raft message be judged.
    pub fn filter(&self, filter: Filter) {
        *self.filter.write() = Some(filter);
    }

    /// Lets every raft message be seen once its receiver has it.
    pub fn after(&self, watch: Watch) {
        *self.watch.write() = Some(watch);
    }

    fn passes(&self, from: u64, to: u64, message: &RaftMessage) -> bool {
        let filter = self.filter.read();
        let Some(filter) = &*filter else { return true };
        filter(from, to, &Message::parse_from_bytes(&message.message).unwrap())
    }

    fn reach(&self, from: u64, to: u64) -> Option<Arc<dyn Inbound>> {
        if self.cut.lock().contains(&(from, to)) {
            return None;
        }
        self.hosts.read().get(&to).cloned()
    }
}

/// The network as one host uses it.
pub struct Port(pub Arc<Net>);

impl Transport for Port {
    fn send(&self, mut frame: RaftFrame) -> bool {
        drop(self.0.gate.read());
        let Some(inbound) = self.0.reach(frame.from_host, frame.to_host) else { return false };
        let (from, to) = (frame.from_host, frame.to_host);
        frame.messages.retain(|message| self.0.passes(from, to, message));
        let messages = frame.messages.clone();
        inbound.receive(frame);
        if let Some(watch) = &*self.0.watch.read() {
            messages.iter().for_each(|m| watch(from, to, &Message::parse_from_bytes(&m.message).unwrap()));
        }
        true
    }

    fn send_snapshot(&self, frame: RaftFrame, files: Vec<PathBuf>, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        let fail = self.0.snapshots_to_fail.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        let inbound = self.0.reach(frame.from_host, frame.to_host).filter(|_| fail.is_err());
        let net = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let Some(inbound) = inbound else { return done(Err("not reachable".to_owned())) };
            let number = net.number.fetch_add(1, Ordering::AcqRel);
            let dir = inbound.snapshot_dir().join(format!("in-{}-{number}", frame.to_host));
            let copied = (|| {
                fs::create_dir(&dir)?;
                for (number, file) in files.iter().enumerate() {
                    fs::copy(file, dir.join(format!("{number}.sst")))?;
                }
                Ok::<(), std::io::Error>(())
            })();
            if let Err(error) = copied {
                return done(Err(error.to_string()));
            }
            net.snapshots_sent.fetch_add(1, Ordering::AcqRel);
            inbound.receive_snapshot(frame, dir);
            done(Ok(()));
        });
    }
}

/// Whether a message is of this kind.
pub fn is(message: &Message, kind: MessageType) -> bool {
    message.get_msg_type() == kind
}

/// Whether it is no raft message but tells a peer that it was removed.
pub fn dismisses(message: &Message) -> bool {
    is(message, MessageType::MsgHup) && message.from == 0
}
