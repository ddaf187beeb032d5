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
use tokio::sync::{mpsc, oneshot};

use crate::state::rows::Row;
use crate::state::{Applied, State};

/// Column family of the state's rows.
pub const CF_PLACEMENT: &str = "placement";
/// Operations that may wait for their result at once.
const WAITING_MAX: usize = 4_096;

/// What the raft side tells the leader's shell.
#[derive(Debug)]
pub enum RoleChange {
    /// This member leads and has applied the first entry of the term.
    Leads(Term),
    /// It does not lead in this term.
    Follows(Term, Option<Peer>),
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

type Waiting = HashMap<u64, oneshot::Sender<Result<Applied, ProposeError>>>;

/// The replicated state as this member has applied it, and the way to change it.
pub struct Replica {
    member: u64,
    /// Tells this process's proposals from those before a restart.
    life: u64,
    number: AtomicU64,
    state: RwLock<State>,
    waiting: Mutex<Waiting>,
    handle: OnceLock<PeerHandle>,
    roles: mpsc::UnboundedSender<RoleChange>,
    /// Called at once, on the raft thread, when this member stops leading: before anything else can happen.
    on_follower: OnceLock<Box<dyn Fn(Term, Option<Peer>) + Send + Sync>>,
}

impl Replica {
    /// Nothing applied yet; the host fills it. Role changes are few, so their channel needs no bound.
    pub fn new(member: u64, life: u64, roles: mpsc::UnboundedSender<RoleChange>) -> Arc<Self> {
        Arc::new(Self {
            member,
            life,
            number: AtomicU64::new(0),
            state: RwLock::default(),
            waiting: Mutex::default(),
            handle: OnceLock::new(),
            roles,
            on_follower: OnceLock::new(),
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

    /// Sets what is called when this member stops leading. Once, before the host opens.
    pub fn set_on_follower(&self, call: impl Fn(Term, Option<Peer>) + Send + Sync + 'static) {
        if self.on_follower.set(Box::new(call)).is_err() {
            unreachable!("set once, where the member is opened");
        }
    }

    /// Commits and applies `op` in `term`.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(self: &Arc<Self>, term: Term, op: Op) -> Result<Applied, ProposeError> {
        let handle = self.handle.get().ok_or(ProposeError::NotLeader)?;
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.len() >= WAITING_MAX {
                return Err(ProposeError::Overloaded);
            }
            waiting.insert(number, tell);
        }
        let command = PlacementCommand { member: self.member, incarnation: self.life, number, op: Some(op) };
        let replica = Arc::clone(self);
        let done = Box::new(move |outcome| match outcome {
            // Told by apply, with the result.
            Outcome::Applied => {}
            Outcome::Dropped => replica.tell(number, Err(ProposeError::NotLeader)),
            Outcome::Unknown => replica.tell(number, Err(ProposeError::Unknown)),
        });
        handle.propose(term, command.encode_to_vec().into(), done);
        told.await.unwrap_or(Err(ProposeError::Unknown))
    }

    fn tell(&self, number: u64, result: Result<Applied, ProposeError>) {
        if let Some(tell) = self.waiting.lock().remove(&number) {
            _ = tell.send(result);
        }
    }

    fn load(&self, db: &DB) {
        let cf = db.cf_handle(CF_PLACEMENT).expect("opened with the database");
        let rows = db.iterator_cf(cf, IteratorMode::Start).map(|row| {
            row.unwrap_or_else(|error| panic!("placement's data in {} cannot be read: {error}", db.path().display()))
        });
        let loaded = State::load(rows);
        *self.state.write() =
            loaded.unwrap_or_else(|error| panic!("placement's data in {} cannot be used: {error}", db.path().display()));
    }
}

/// The state machine that the host runs.
pub struct Machine(pub Arc<Replica>);

impl StateMachine for Machine {
    fn column_families(&self) -> Vec<ColumnFamilyDescriptor> {
        vec![ColumnFamilyDescriptor::new(CF_PLACEMENT, Options::default())]
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
                    panic!("placement index {}: an operation this version does not know; start the newer one", entry.index)
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
        _ = self.replica.roles.send(RoleChange::Leads(term));
    }

    fn on_follower(&self, term: Term, leader: Option<Peer>) {
        if let Some(call) = self.replica.on_follower.get() {
            call(term, leader);
        }
        _ = self.replica.roles.send(RoleChange::Follows(term, leader));
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
