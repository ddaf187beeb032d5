//! Start-up of a host: whose folder it is, what its two engines say of each region, and what a crash left half done.
//!
//! 1. Lock the folder, read `IDENT`: a folder of somebody else is refused before anything in it is touched.
//! 2. Open the log and RocksDB.
//! 3. For each region state: finish a raft snapshot that was being installed, or the destruction of a peer; check that log and data fit together.
//!    What does not fit was lost or damaged, and is refused: acknowledged entries may be gone.
//! 4. Give the process its incarnation, durable.
//!
//! Checks of a region: the applied index lies in the log, under the same term; the log begins no later than the applied
//! index ends; the commit index of the raft state lies in the log. Only a region nothing was ever written to may lack a
//! log (a crash right after its creation or split).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use braid_proto::key::KeyRange;
use braid_proto::pb::{Domain, Region};
use prost::Message as _;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBRecoveryMode, IteratorMode, Options, WriteBatch,
    WriteOptions,
};

use crate::StateMachine;
use crate::config::HostConfig;
use crate::destroy::{clear_data, put_cleared};
use crate::error::OpenError;
use crate::log::{EngineLog, LogOp, LogStore, LogWrite};
use crate::merge::Frozen;
use crate::meta::{ApplyState, CF_HOST, FORMAT, INITIAL_INDEX, Ident, Key, PeerState, RaftState, RegionState};
use crate::snapshot::{replace_data, write_normal};

/// A folder that is ours, opened and repaired.
pub(crate) struct Opened {
    /// Held as long as the folder is used.
    pub lock: File,
    pub db: Arc<DB>,
    pub log: Arc<dyn LogStore>,
    pub snap_dir: PathBuf,
    pub incarnation: u64,
    /// Every region here.
    pub regions: Vec<Found>,
}

/// A region of the folder, with its validated apply state.
pub(crate) struct Found {
    pub region: Region,
    pub apply: ApplyState,
    pub frozen: Option<Frozen>,
    pub absorbed: Vec<u64>,
}

pub(crate) fn open(config: &HostConfig, machine: &dyn StateMachine) -> Result<Opened, OpenError> {
    let dir = &config.dir;
    fs::create_dir_all(dir).map_err(|error| OpenError::io(dir, error))?;
    let lock = lock(dir)?;
    let fresh = check_ident(config)?;
    let snap_dir = dir.join("snap");
    fs::create_dir_all(&snap_dir).map_err(|error| OpenError::io(&snap_dir, error))?;
    let log: Arc<dyn LogStore> = EngineLog::open(&dir.join("log"), config.log_purge_bytes)?;
    let db = Arc::new(open_db(config, machine)?);
    machine.opened(&db).map_err(|why| OpenError::damaged(dir, why))?;
    let recovery = Recovery { dir, db: &db, log: &*log, machine, snap_dir: &snap_dir };
    let regions = recovery.regions()?;
    recovery.clean_snapshots()?;
    if fresh {
        // Regions come after `IDENT`, so a first start that was interrupted leaves engines without regions only.
        if !regions.is_empty() || !log.regions().is_empty() {
            return Err(OpenError::damaged(dir, "the file IDENT is missing"));
        }
        write_ident(config)?;
    }
    let incarnation = next_incarnation(dir, &db, config.first_incarnation)?;
    Ok(Opened { lock, db, log, snap_dir, incarnation, regions })
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| OpenError::io(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(OpenError::io(&path, error)),
    }
}

fn ident(config: &HostConfig) -> Ident {
    let domain = config.domain as i32;
    Ident { format: FORMAT, cluster_id: config.cluster_id.0, domain, host_id: config.host_id }
}

fn describe(ident: &Ident) -> String {
    let kind = match Domain::try_from(ident.domain) {
        Ok(Domain::Store) => "store",
        Ok(Domain::Placement) => "placement member",
        Err(_) => "unknown process",
    };
    format!("{kind} {} of cluster {:x}", ident.host_id, ident.cluster_id)
}

/// Returns whether the folder is new.
fn check_ident(config: &HostConfig) -> Result<bool, OpenError> {
    let path = config.dir.join("IDENT");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(OpenError::io(&path, error)),
    };
    let damaged = || OpenError::damaged(&config.dir, "the file IDENT cannot be read");
    let (sum, body) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return Err(damaged());
    }
    let found = Ident::decode(body).map_err(|_| damaged())?;
    if found.format > FORMAT {
        return Err(OpenError::Format { dir: config.dir.clone(), found: found.format, known: FORMAT });
    }
    if found.format < FORMAT {
        return Err(OpenError::OldFormat { dir: config.dir.clone(), found: found.format, known: FORMAT });
    }
    let wanted = ident(config);
    if (Ident { format: FORMAT, ..found }) != wanted {
        let (found, wanted) = (describe(&found), describe(&wanted));
        return Err(OpenError::Foreign { dir: config.dir.clone(), found, wanted });
    }
    Ok(false)
}

fn write_ident(config: &HostConfig) -> Result<(), OpenError> {
    let body = ident(config).encode_to_vec();
    let mut bytes = crc32fast::hash(&body).to_le_bytes().to_vec();
    bytes.extend(body);
    let (path, temporary) = (config.dir.join("IDENT"), config.dir.join("IDENT.new"));
    let write = || -> std::io::Result<()> {
        fs::write(&temporary, &bytes)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &path)?;
        crate::snapshot::sync_dir(&config.dir)
    };
    write().map_err(|error| OpenError::io(&path, error))
}

fn open_db(config: &HostConfig, machine: &dyn StateMachine) -> Result<DB, OpenError> {
    let dir = config.dir.join("kv");
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // A hole in the WAL must not be skipped: an apply state could get ahead of its data.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(2 * config.memtable_bytes as u64);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_background_jobs(background_jobs());
    options.set_max_open_files(1024);
    let mut host = Options::default();
    host.set_write_buffer_size(config.memtable_bytes.min(8 << 20));
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(config.block_cache_bytes.min(8 << 20)));
    host.set_block_based_table_factory(&blocks);
    let mut families = machine.column_families();
    families.push(ColumnFamilyDescriptor::new(CF_HOST, host));
    families.push(ColumnFamilyDescriptor::new("default", Options::default()));
    DB::open_cf_descriptors(&options, &dir, families).map_err(|error| OpenError::engine(&dir, error))
}

/// Threads for flushes and compactions, by the machine's cores. RocksDB runs one compaction at a time as long as that keeps up,
/// whatever this says; the others are for when files pile up in level 0, which ends in writes that wait.
fn background_jobs() -> i32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.clamp(2, 8) as i32
}

fn next_incarnation(dir: &Path, db: &DB, first: u64) -> Result<u64, OpenError> {
    let cf = db.cf_handle(CF_HOST).expect("opened with the database");
    let key = Key::Incarnation.encode();
    let next = match db.get_cf(cf, &key).map_err(|error| OpenError::engine(dir, error))? {
        None => first,
        Some(bytes) => {
            let bytes = bytes.as_slice().try_into();
            1 + u64::from_be_bytes(bytes.map_err(|_| OpenError::damaged(dir, "the start counter cannot be read"))?)
        }
    };
    let mut batch = WriteBatch::new();
    batch.put_cf(cf, key, next.to_be_bytes());
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options).map_err(|error| OpenError::engine(dir, error))?;
    Ok(next)
}

struct Recovery<'a> {
    dir: &'a Path,
    db: &'a DB,
    log: &'a dyn LogStore,
    machine: &'a dyn StateMachine,
    snap_dir: &'a Path,
}

impl Recovery<'_> {
    fn regions(&self) -> Result<Vec<Found>, OpenError> {
        let mut regions: Vec<Found> = Vec::new();
        let mut graves: Vec<(u64, RegionState)> = Vec::new();
        for (id, state) in self.states()? {
            if state.state() == PeerState::Tombstone {
                graves.push((id, state));
                continue;
            }
            let region = state.region.clone().filter(|region| region.id == id);
            let region = region.ok_or_else(|| self.damaged(format!("the state of r{id} is empty")))?;
            let apply = self.apply_state(id)?;
            let applying = state.state() == PeerState::Applying;
            if applying {
                self.finish_snapshot(&region, &state)?;
            }
            self.check(id, apply)?;
            let absorbed = if applying { state.manifest.unwrap_or_default().absorbed } else { state.absorbed };
            regions.push(Found { region, apply, frozen: state.frozen.map(Frozen::from), absorbed });
        }
        let live: Vec<KeyRange> = regions.iter().map(|found| found.region.range()).collect();
        for (id, state) in graves {
            self.finish_destruction(id, &state, &live)?;
        }
        let known: Vec<u64> = regions.iter().map(|found| found.region.id).collect();
        for id in self.log.regions() {
            if !known.contains(&id) && self.log.span(id).is_some() {
                return Err(
                    self.damaged(format!("the log holds entries of r{id}, of which the kv folder knows nothing"))
                );
            }
        }
        Ok(regions)
    }

    fn damaged(&self, what: impl Into<String>) -> OpenError {
        OpenError::damaged(self.dir, what)
    }

    fn states(&self) -> Result<Vec<(u64, RegionState)>, OpenError> {
        let cf = self.db.cf_handle(CF_HOST).expect("opened with the database");
        let (start, end) = Key::regions();
        let mut states = Vec::new();
        for row in self.db.iterator_cf(cf, IteratorMode::From(&start, rocksdb::Direction::Forward)) {
            let (key, value) = row.map_err(|error| OpenError::engine(self.dir, error))?;
            if *key >= *end {
                break;
            }
            match Key::decode(&key) {
                Some(Key::RegionState(id)) => {
                    let state = RegionState::decode(&*value);
                    states.push((id, state.map_err(|_| self.damaged(format!("the state of r{id} cannot be read")))?));
                }
                Some(_) => {}
                None => return Err(self.damaged(format!("unknown key {key:?} in the kv folder"))),
            }
        }
        Ok(states)
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, OpenError> {
        let cf = self.db.cf_handle(CF_HOST).expect("opened with the database");
        self.db.get_cf(cf, key.encode()).map_err(|error| OpenError::engine(self.dir, error))
    }

    fn apply_state(&self, id: u64) -> Result<ApplyState, OpenError> {
        let bytes = self.get(Key::ApplyState(id))?;
        let state = bytes.and_then(|bytes| ApplyState::decode(&bytes));
        state.ok_or_else(|| self.damaged(format!("the apply state of r{id} cannot be read")))
    }

    /// Steps 2 to 4 of an installation that a crash interrupted.
    fn finish_snapshot(&self, region: &Region, state: &RegionState) -> Result<(), OpenError> {
        let id = region.id;
        let brought = self.get(Key::SnapshotRaftState(id))?.and_then(|bytes| RaftState::decode(&bytes));
        let brought = brought.ok_or_else(|| self.damaged(format!("the raft snapshot of r{id} has no raft state")))?;
        let stored = self.log.raft_state(id).map_err(|error| self.damaged(error.to_string()))?;
        let behind = stored.is_none_or(|stored| stored.peer_id != brought.peer_id || stored.commit < brought.commit);
        if behind {
            // The crash came between intent and log: the log is still the one before the snapshot.
            let newer = stored.filter(|stored| stored.peer_id == brought.peer_id && stored.term > brought.term);
            let raft_state = newer.map_or(brought, |stored| RaftState { commit: brought.commit, ..stored });
            let mut write = LogWrite::default();
            write.push(id, LogOp::Clean);
            write.push(id, LogOp::State(raft_state));
            self.log.write(write, true).map_err(|error| OpenError::engine(self.dir, error))?;
        }
        let dir = self.snap_dir.join(&state.snapshot_dir);
        let manifest = state.manifest.clone().unwrap_or_default();
        for number in 0..manifest.files.len() {
            if !dir.join(format!("{number}.sst")).is_file() {
                return Err(self.damaged(format!("{} lacks file {number} of a raft snapshot", dir.display())));
            }
        }
        replace_data(self.db, self.machine, state.replaced.as_ref(), region, &manifest, &dir)
            .map_err(|why| OpenError::engine(self.dir, why))?;
        write_normal(self.db, region, &manifest.absorbed).map_err(|error| OpenError::engine(self.dir, error))?;
        tracing::info!(region = id, "finished the installation of a raft snapshot");
        Ok(())
    }

    /// Steps 2 to 4 of a destruction that a crash interrupted.
    fn finish_destruction(&self, id: u64, state: &RegionState, live: &[KeyRange]) -> Result<(), OpenError> {
        let own = state.own.ok_or_else(|| self.damaged(format!("the tombstone of r{id} names no peer")))?;
        let stored = self.log.raft_state(id).map_err(|error| self.damaged(error.to_string()))?;
        // A later peer of the region may have voted already; that stays.
        let later = stored.is_some_and(|stored| stored.peer_id > own.id);
        if !later && (stored.is_some() || self.log.span(id).is_some()) {
            let mut write = LogWrite::default();
            write.push(id, LogOp::Clean);
            self.log.write(write, true).map_err(|error| OpenError::engine(self.dir, error))?;
        }
        if let Some(region) = &state.replaced {
            clear_data(self.db, self.machine, region, live).map_err(|why| OpenError::engine(self.dir, why))?;
            put_cleared(self.db, region, own);
            tracing::info!(region = id, peer = own.id, "finished the destruction of a peer");
        }
        Ok(())
    }

    /// Whether log and applied state of a region fit together.
    fn check(&self, id: u64, apply: ApplyState) -> Result<(), OpenError> {
        let wrong = |what: String| Err(self.damaged(format!("r{id}: {what}")));
        let stored = self.log.raft_state(id).map_err(|error| self.damaged(error.to_string()))?;
        let span = self.log.span(id);
        let untouched = apply == ApplyState::INITIAL;
        if stored.is_none() && !untouched {
            return wrong(format!("applied up to {}, but its log is gone", apply.applied_index));
        }
        if apply.truncated_index > apply.applied_index || apply.truncated_index < INITIAL_INDEX {
            return wrong(format!("impossible apply state {apply:?}"));
        }
        let last = span.map_or(apply.truncated_index, |(_, last)| last.max(apply.truncated_index));
        if let Some((first, last)) = span
            && first > apply.truncated_index + 1
            && last > apply.truncated_index
        {
            return wrong(format!("its log begins at {first}, but {} is needed", apply.truncated_index + 1));
        }
        if apply.applied_index > last {
            let applied = apply.applied_index;
            return wrong(format!("applied up to {applied}, but its log ends at {last}: the end of the log is lost"));
        }
        if let Some(stored) = stored.filter(|stored| stored.commit > last) {
            return wrong(format!("committed up to {}, but its log ends at {last}", stored.commit));
        }
        if apply.applied_index > apply.truncated_index {
            let index = apply.applied_index;
            let entries = self.log.entries(id, index, index + 1, usize::MAX);
            let entries = entries.map_err(|error| self.damaged(format!("r{id}: {error}")))?;
            if entries[0].term != apply.applied_term {
                let (found, applied) = (entries[0].term, apply.applied_term);
                return wrong(format!("index {index} was applied in term {applied}, its log has term {found}"));
            }
            if stored.is_some_and(|stored| stored.term < apply.applied_term) {
                return wrong("its raft state is older than what was applied".to_owned());
            }
        }
        Ok(())
    }

    /// Removes what is left of raft snapshots: after the regions are whole, nothing in the folder is needed.
    fn clean_snapshots(&self) -> Result<(), OpenError> {
        let entries = fs::read_dir(self.snap_dir).map_err(|error| OpenError::io(self.snap_dir, error))?;
        for entry in entries {
            let path = entry.map_err(|error| OpenError::io(self.snap_dir, error))?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|error| OpenError::io(&path, error))?;
        }
        Ok(())
    }
}
