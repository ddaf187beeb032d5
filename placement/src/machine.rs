//! Placement's one region as a state machine of the host: [`State`] in memory, its rows in RocksDB, and a way to propose
//! an operation and learn what it came to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_host::{DataRange, Entry, Outcome, PeerHandle, RegionMachine, StateMachine};
use braid_proto::id::Term;
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{Peer, PlacementCommand, Region};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use rocksdb::{ColumnFamilyDescriptor, DB, IteratorMode, Options, WriteBatch};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::state::rows::Row;
use crate::state::{Applied, State};

/// Column family of the state's rows.
pub const CF_PLACEMENT: &str = "placement";
/// Memory of the rows not yet in files.
const MEMTABLE_BYTES: usize = 4 << 20;
/// Operations that may wait for their result at once.
const WAITING_MAX: usize = 4_096;

/// What this member is to its group, by the newest term it has heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads and has applied the first entry of the term.
    Leads(Term),
    /// It does not lead in this term; the member that does, if known.
    Follows(Term, Option<u64>),
}

impl Role {
    /// Whether `news` is about a later moment. Within a term a leader may become a follower, never the other way round,
    /// so this also holds where calls of two threads cross.
    fn precedes(self, news: Role) -> bool {
        match (self, news) {
            (Role::Leads(known) | Role::Follows(known, _), Role::Leads(term)) => term > known,
            (Role::Leads(known) | Role::Follows(known, _), Role::Follows(term, _)) => term >= known,
        }
    }
}

/// Why an operation has no result.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProposeError {
    /// This member does not lead, or leadership moved: the operation certainly did not happen.
    #[error("this placement member does not lead")]
    NotLeader,
    /// The operation may have happened.
    #[error("leadership moved while the operation was under way; it may have happened")]
    Unknown,
    /// Too many operations wait.
    #[error("too many operations wait for placement's log")]
    Overloaded,
}

/// Told once what an operation came to: on the apply thread, or on the proposer's own if it was refused at once.
pub type Told = Box<dyn FnOnce(Result<Applied, ProposeError>) + Send>;

/// Told each change of role, in order, before anybody else can see it. Must not block.
pub type Observer = Box<dyn Fn(Role) + Send + Sync>;

/// The replicated state as this member has applied it, and the way to change it.
pub struct Replica {
    member: u64,
    /// Tells this process's proposals from those before a restart.
    life: u64,
    number: AtomicU64,
    state: RwLock<State>,
    waiting: Mutex<HashMap<u64, Told>>,
    handle: OnceLock<PeerHandle>,
    role: watch::Sender<Role>,
    observer: OnceLock<Observer>,
}

impl Replica {
    /// Nothing applied yet; the host fills it. `life` is drawn anew with every start of the process.
    pub fn new(member: u64, life: u64) -> Arc<Self> {
        Arc::new(Self {
            member,
            life,
            number: AtomicU64::new(0),
            state: RwLock::default(),
            waiting: Mutex::default(),
            handle: OnceLock::new(),
            role: watch::Sender::new(Role::Follows(Term::INVALID, None)),
            observer: OnceLock::new(),
        })
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read())
    }

    /// The raft side; none before the host is open.
    pub fn handle(&self) -> Option<&PeerHandle> {
        self.handle.get()
    }

    /// This member's role, and its changes.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    /// Sets who is told of each change of role. Once, before the host opens.
    pub fn set_observer(&self, observer: Observer) {
        assert!(self.observer.set(observer).is_ok(), "the observer is set once, where the member is opened");
    }

    /// Commits and applies `op` in `term`, then calls `told`, possibly before this returns.
    pub fn propose_then(self: &Arc<Self>, term: Term, op: Op, told: Told) {
        let Some(handle) = self.handle.get() else { return told(Err(ProposeError::NotLeader)) };
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            drop(waiting);
            return told(Err(ProposeError::Overloaded));
        }
        waiting.insert(number, told);
        drop(waiting);
        let command = PlacementCommand { member: self.member, incarnation: self.life, number, op: Some(op) };
        let replica = Arc::clone(self);
        let done = Box::new(move |outcome| match outcome {
            // Told by apply, with the result.
            Outcome::Applied => {}
            Outcome::Dropped => replica.tell(number, Err(ProposeError::NotLeader)),
            Outcome::Unknown => replica.tell(number, Err(ProposeError::Unknown)),
        });
        handle.propose(term, command.encode_to_vec().into(), done);
    }

    /// Commits and applies `op` in `term`. Waits as long as the group needs to decide: callers bring their own patience.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(self: &Arc<Self>, term: Term, op: Op) -> Result<Applied, ProposeError> {
        let (tell, told) = oneshot::channel();
        self.propose_then(term, op, Box::new(move |result| _ = tell.send(result)));
        told.await.unwrap_or(Err(ProposeError::Unknown))
    }

    fn tell(&self, number: u64, result: Result<Applied, ProposeError>) {
        let told = self.waiting.lock().remove(&number);
        if let Some(told) = told {
            told(result);
        }
    }

    fn take_role(&self, news: Role) {
        self.role.send_if_modified(|known| {
            let is_news = *known != news && known.precedes(news);
            if is_news {
                *known = news;
                if let Some(observer) = self.observer.get() {
                    observer(news);
                }
            }
            is_news
        });
    }

    fn load(&self, db: &DB) {
        let cf = db.cf_handle(CF_PLACEMENT).expect("opened with the database");
        let rows = db.iterator_cf(cf, IteratorMode::Start).map(|row| {
            row.unwrap_or_else(|error| panic!("placement's data in {} cannot be read: {error}", db.path().display()))
        });
        let loaded = State::load(rows);
        *self.state.write() = loaded
            .unwrap_or_else(|error| panic!("placement's data in {} cannot be used: {error}", db.path().display()));
    }
}

/// The state machine that the host runs.
pub struct Machine(pub Arc<Replica>);

impl StateMachine for Machine {
    fn column_families(&self) -> Vec<ColumnFamilyDescriptor> {
        let mut options = Options::default();
        // All rows of a large cluster are a few MiB; the default would keep 64 MiB of them in memory.
        options.set_write_buffer_size(MEMTABLE_BYTES);
        vec![ColumnFamilyDescriptor::new(CF_PLACEMENT, options)]
    }

    fn open_region(&self, db: Arc<DB>, peer: PeerHandle) -> Arc<dyn RegionMachine> {
        self.0.load(&db);
        // After a snapshot the same peer gets a fresh machine: the handle stays.
        _ = self.0.handle.set(peer);
        Arc::new(Member { replica: Arc::clone(&self.0), db })
    }

    fn data_ranges(&self, _: &Region) -> Vec<DataRange> {
        vec![DataRange { cf: CF_PLACEMENT, start: Vec::new(), end: Vec::new() }]
    }
}

struct Member {
    replica: Arc<Replica>,
    db: Arc<DB>,
}

impl RegionMachine for Member {
    fn apply(&self, entries: &[Entry], mut batch: WriteBatch) {
        let cf = self.db.cf_handle(CF_PLACEMENT).expect("opened with the database");
        let mut results = Vec::with_capacity(entries.len());
        {
            let mut state = self.replica.state.write();
            for entry in entries {
                let command = decode(entry);
                let Some(op) = command.op else {
                    panic!(
                        "placement index {}: an operation this version does not know; start the newer one",
                        entry.index
                    )
                };
                let (applied, rows) = state.apply(op);
                for row in rows {
                    put(&mut batch, cf, row, &state);
                }
                if (command.member, command.incarnation) == (self.replica.member, self.replica.life) {
                    results.push((command.number, applied));
                }
            }
        }
        if let Err(error) = self.db.write(batch) {
            panic!("placement's data in {} cannot be written: {error}", self.db.path().display());
        }
        for (number, applied) in results {
            self.replica.tell(number, Ok(applied));
        }
    }

    fn on_leader(&self, term: Term) {
        self.replica.take_role(Role::Leads(term));
    }

    fn on_follower(&self, term: Term, leader: Option<Peer>) {
        self.replica.take_role(Role::Follows(term, leader.map(|peer| peer.store_id)));
    }

    fn on_region(&self, _: &Region) {}

    fn approximate_size(&self) -> (u64, u64) {
        (0, 0)
    }
}

fn decode(entry: &Entry) -> PlacementCommand {
    PlacementCommand::decode(entry.data.clone())
        .unwrap_or_else(|error| panic!("placement index {}: a committed entry does not decode: {error}", entry.index))
}

fn put(batch: &mut WriteBatch, cf: &rocksdb::ColumnFamily, row: Row, state: &State) {
    batch.put_cf(cf, row.key(), state.value(row));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_taken_by_term_whichever_thread_is_faster() {
        let replica = Replica::new(1, 1);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        replica.set_observer(Box::new(move |role| log.lock().push(role)));
        let (leads, follows) = (|term| Role::Leads(Term(term)), |term| Role::Follows(Term(term), Some(2)));
        for news in [follows(4), leads(5), leads(5), follows(5), leads(5), follows(4), follows(7), leads(6), leads(8)] {
            replica.take_role(news);
        }
        assert_eq!(*seen.lock(), [follows(4), leads(5), follows(5), follows(7), leads(8)]);
        assert_eq!(*replica.role().borrow(), leads(8));
    }
}
