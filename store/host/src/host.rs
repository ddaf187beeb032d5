//! A host: its threads and what they share.
//!
//! | thread          | does                                                                   |
//! |-----------------|------------------------------------------------------------------------|
//! | `raft-N`        | raft groups of the regions with id % workers = N, log writes           |
//! | `apply`         | committed entries of all regions                                       |
//! | `raft-helper-N` | makes and takes in raft snapshots                                      |
//! | `log-gc`        | syncs RocksDB's WAL, then lets the log go; gives files back            |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use braid_proto::id::{ClusterId, Incarnation, PeerId, RegionId, StoreId};
use braid_proto::pb::{Domain, RaftFrame, Region, RegionEpoch};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::{Condvar, Mutex};
use prost::Message as _;
use rocksdb::{DB, WriteBatch};

use crate::apply::{self, ApplyTask, Delegate};
use crate::bell::{self, Bell, Ringing};
use crate::config::{HostConfig, Timing};
use crate::error::{AbortOnPanic, OpenError, fatal};
use crate::gc::Keep;
use crate::handle::{PeerHandle, Post};
use crate::inbound::Door;
use crate::log::LogStore;
use crate::mail::{Birth, MailBox, Note, Origin};
use crate::meta::{ApplyState, Key, RegionState};
use crate::pace::Pace;
use crate::peer::{Env, raft_logger};
use crate::recover::{self, Found, Opened};
use crate::snapshot::{self, HelperTask};
use crate::support::{Now, SupportTable};
use crate::table::RegionTable;
use crate::worker::Worker;
use crate::{Inbound, StateMachine, Transport};

/// Mail that waits for one worker.
const MAIL_MAX: usize = 16 << 10;
/// How long creating a region waits for a raft snapshot of the same region that came first.
const INSTALL_PATIENCE: Duration = Duration::from_secs(30);
/// Threads that make and take in raft snapshots.
const HELPERS: usize = 2;
/// See `nice(1)`.
const HELPER_NICENESS: i32 = 10;

/// What the threads of a host share.
pub(crate) struct Core {
    pub cluster_id: ClusterId,
    pub domain: Domain,
    pub incarnation: u64,
    pub env: Env,
    pub db: Arc<DB>,
    pub log: Arc<dyn LogStore>,
    pub machine: Arc<dyn StateMachine>,
    pub transport: Arc<dyn Transport>,
    pub table: Mutex<RegionTable>,
    /// Peers without region state, by region: they are in no table.
    pub blanks: Mutex<BTreeMap<u64, PeerHandle>>,
    /// Notified when a reservation in `table` ends.
    pub table_changed: Condvar,
    pub posts: Vec<Post>,
    pub snap_dir: PathBuf,
    pub snapshot_number: AtomicU64,
    pub snapshots_running: Arc<AtomicUsize>,
    pub snapshot_pace: Arc<Pace>,
    /// Bytes of committed entries on their way to the apply thread.
    pub apply_bytes: AtomicUsize,
    /// Until then peers of an earlier start neither vote nor campaign.
    pub still_until: Now,
    /// Hosts that share a region with this one.
    neighbours: ArcSwap<Vec<u64>>,
    apply: Ringing<ApplyTask>,
    helpers: Sender<HelperTask>,
    gc: Sender<Truncated>,
    /// Held while the folder is used.
    _lock: std::fs::File,
}

/// A region's log is truncated by an applied entry; its bytes may go once RocksDB is durable.
enum Truncated {
    Region { region: u64, peer: u64, index: u64 },
    Stop,
}

impl Core {
    pub fn worker_of(&self, region: u64) -> usize {
        (region % self.posts.len() as u64) as usize
    }

    pub fn post(&self, region: u64) -> &Post {
        &self.posts[self.worker_of(region)]
    }

    /// Tells the worker of `region`. Lost only when the worker has ended, which ends the region too.
    pub fn note(&self, region: u64, note: Note) {
        self.post(region).notes.send(note);
    }

    pub fn apply_later(&self, task: ApplyTask) {
        self.apply.send(task);
    }

    pub fn help(&self, task: HelperTask) {
        _ = self.helpers.send(task);
    }

    pub fn truncated(&self, region: u64, peer: u64, index: u64) {
        _ = self.gc.send(Truncated::Region { region, peer, index });
    }

    /// An empty frame to `host`.
    pub fn frame(&self, host: u64) -> RaftFrame {
        RaftFrame {
            cluster_id: self.cluster_id.0,
            domain: self.domain as i32,
            from_host: self.env.host_id,
            to_host: host,
            from_incarnation: self.incarnation,
            messages: Vec::new(),
            support: None,
        }
    }

    /// Asks the hosts around for support, those whose turn it is.
    pub fn ask_support(&self, now: Now) {
        let neighbours = self.neighbours.load();
        for (host, request) in self.env.support.tick(neighbours.iter().copied(), now) {
            self.transport.send(RaftFrame { support: Some(request), ..self.frame(host) });
        }
    }

    /// After the table has changed.
    pub fn refresh_neighbours(&self) {
        let mut hosts: Vec<u64> = self.table.lock().neighbours(self.env.host_id).into_iter().collect();
        hosts.sort_unstable();
        if **self.neighbours.load() != hosts {
            self.neighbours.store(Arc::new(hosts));
        }
    }
}

/// Gapless stretches of support from other hosts. Equal: none of them has ended between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupportHeld(Vec<(u64, u64, Now)>);

/// Runs the raft groups of one process on one folder.
pub struct Host {
    core: Arc<Core>,
    inbound: Arc<Door>,
    threads: Mutex<Option<Threads>>,
    stopped: AtomicBool,
}

struct Threads {
    workers: Vec<JoinHandle<()>>,
    apply: JoinHandle<()>,
    helpers: Vec<JoinHandle<()>>,
    gc: JoinHandle<()>,
}

impl Host {
    /// Opens the folder, repairs what a crash left half done, and starts all regions in it. Blocks; not for a runtime's
    /// worker thread.
    pub fn open(
        config: HostConfig,
        machine: Arc<dyn StateMachine>,
        transport: Arc<dyn Transport>,
    ) -> Result<Host, OpenError> {
        Self::open_with(config, Timing::default(), machine, transport)
    }

    /// The same, with a clockwork of its own.
    pub fn open_with(
        config: HostConfig,
        timing: Timing,
        machine: Arc<dyn StateMachine>,
        transport: Arc<dyn Transport>,
    ) -> Result<Host, OpenError> {
        if config.workers == 0 || config.host_id == 0 {
            return Err(OpenError::Config("a raft host needs at least one worker and an id other than 0".to_owned()));
        }
        let Opened { lock, db, log, snap_dir, incarnation, regions } = recover::open(&config, &*machine)?;
        let (boxes, posts) = post_boxes(config.workers);
        let apply_bell = Arc::default();
        let (apply, apply_tasks) = bell::queue(Arc::clone(&apply_bell));
        let (helpers, helper_tasks) = unbounded();
        let (gc, gc_tasks) = unbounded();
        let keep = Keep { entries: config.log_keep_entries, bytes: config.log_keep_bytes };
        let support = Arc::new(SupportTable::new(config.host_id, incarnation, timing.support));
        let snapshot_pace = Arc::new(Pace::new(config.snapshot_bytes_per_second));
        let core = Arc::new(Core {
            cluster_id: config.cluster_id,
            domain: config.domain,
            incarnation,
            env: Env { host_id: config.host_id, timing, keep, support, logger: raft_logger() },
            db,
            log,
            machine,
            transport,
            table: Mutex::default(),
            blanks: Mutex::default(),
            table_changed: Condvar::new(),
            posts,
            snap_dir: snap_dir.clone(),
            snapshot_number: AtomicU64::new(0),
            snapshots_running: Arc::default(),
            snapshot_pace: Arc::clone(&snapshot_pace),
            apply_bytes: AtomicUsize::new(0),
            still_until: Now::monotonic().plus(timing.quiet()),
            neighbours: ArcSwap::default(),
            apply,
            helpers,
            gc,
            _lock: lock,
        });
        for found in regions {
            core.start(found)?;
        }
        core.refresh_neighbours();
        let threads = start_threads(&core, boxes, (apply_tasks, apply_bell), &helper_tasks, gc_tasks)
            .map_err(|error| OpenError::io(&config.dir, error))?;
        let inbound = Arc::new(Door { core: Arc::downgrade(&core), snap_dir, snapshot_pace });
        tracing::info!(host = config.host_id, incarnation, dir = %config.dir.display(), "raft host open");
        Ok(Host { core, inbound, threads: Mutex::new(Some(threads)), stopped: AtomicBool::new(false) })
    }

    /// The present stretches of support from every host that shares a region with this one; `None`: at least one of them
    /// does not support this host at this moment.
    pub fn support_held(&self) -> Option<SupportHeld> {
        let neighbours = self.core.neighbours.load();
        let held = |host: &u64| {
            let held = self.core.env.support.cell(*host).held();
            (Now::monotonic() < held.until).then_some((*host, held.incarnation, held.since))
        };
        neighbours.iter().map(held).collect::<Option<_>>().map(SupportHeld)
    }

    /// Tells this start from those before: one more than at the last one, from [`HostConfig::first_incarnation`] on.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.core.incarnation)
    }

    /// Makes this host's peers of new regions. Idempotent: a region that exists already stays as it is. All or nothing;
    /// durable on return. Blocks on the disk.
    pub fn create_regions(&self, regions: Vec<Region>) -> Result<(), String> {
        if self.stopped.load(std::sync::atomic::Ordering::Acquire) {
            return Err("the host is stopping".to_owned());
        }
        let host = StoreId(self.core.env.host_id);
        for region in &regions {
            check_new(region, host)?;
        }
        // Held over the write: two creations, or a creation and a split, must not pass each other's check.
        let mut table = self.core.table.lock();
        // A raft snapshot may be faster than whoever tells all hosts to create it; then it is left to end, either way.
        let deadline = Instant::now() + INSTALL_PATIENCE;
        let arriving = |table: &RegionTable, id: u64| table.get(id).is_none() && table.is_reserved(id);
        while let Some(busy) = regions.iter().find(|region| arriving(&table, region.id)) {
            if self.core.table_changed.wait_until(&mut table, deadline).timed_out() {
                return Err(format!("{} is being installed by a raft snapshot; try again", busy.region_id()));
            }
        }
        let mut new: Vec<Region> = Vec::new();
        let mut seen = HashSet::new();
        for region in regions {
            if table.get(region.id).is_some() || !seen.insert(region.id) {
                continue;
            }
            let own = region.peer_on(host).expect("checked").id;
            if self.core.tombstone(region.id).is_some_and(|buried| buried >= own) {
                tracing::info!(region = region.id, peer = own, "not created again: this peer was removed from it");
                continue;
            }
            if let Some(other) = table.overlapping(&region.range(), region.id) {
                return Err(format!("{} would overlap r{other}", region.region_id()));
            }
            new.push(region);
        }
        if let Some((one, other)) = overlap(&new) {
            return Err(format!("{one} would overlap {other}"));
        }
        if new.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::new();
        for region in &new {
            let cf = self.core.cf_host();
            let state = RegionState::normal(region.clone(), &[]).encode_to_vec();
            batch.put_cf(cf, Key::RegionState(region.id).encode(), state);
            batch.put_cf(cf, Key::ApplyState(region.id).encode(), ApplyState::INITIAL.encode());
        }
        self.core.write_host(batch, true);
        // CRASH: regions are durable, nothing of their logs is. Safe: the start-up takes them as untouched.
        let handles: Vec<PeerHandle> = new.iter().map(|region| self.core.enter(&mut table, region, None)).collect();
        drop(table);
        for handle in handles {
            self.core.give_birth(handle, ApplyState::INITIAL, Origin::Created);
        }
        self.core.refresh_neighbours();
        Ok(())
    }

    /// The peer of `region` here.
    pub fn handle(&self, region: RegionId) -> Option<PeerHandle> {
        self.core.table.lock().get(region.0).cloned()
    }

    /// All peers here, in key order.
    pub fn handles(&self) -> Vec<PeerHandle> {
        self.core.table.lock().handles().cloned().collect()
    }

    /// The peer whose region holds `key`.
    pub fn handle_at(&self, key: &[u8]) -> Option<PeerHandle> {
        self.core.table.lock().at(key).cloned()
    }

    /// Peers here that have known no leader for long ([`Timing::lonely`]), with the epoch they have applied (0.0: they
    /// have no region state): perhaps they were removed while they were away. Frozen ones wait for their target. At most `limit` of them.
    pub fn lonely(&self, limit: usize) -> Vec<(RegionId, PeerId, RegionEpoch)> {
        let now = Now::monotonic();
        let blanks: Vec<PeerHandle> = self.core.blanks.lock().values().cloned().collect();
        let lonely = |handle: &PeerHandle| handle.0.is_lonely(now, &self.core.env.timing) && !self.core.is_kept(handle);
        let entry =
            |handle: PeerHandle| (RegionId(handle.id()), PeerId(handle.0.peer.id), handle.region().region_epoch());
        self.handles().into_iter().chain(blanks).filter(lonely).take(limit).map(entry).collect()
    }

    /// Placement knows that `peer` is no member of `region`, in a configuration after `known`. True: it is being destroyed,
    /// because what it has applied is at most `known`.
    pub fn destroy_peer(&self, region: RegionId, peer: PeerId, known: RegionEpoch) -> bool {
        let handle = self.handle(region).or_else(|| self.core.blanks.lock().get(&region.0).cloned());
        let Some(handle) = handle.filter(|handle| handle.0.peer.id == peer.0) else { return false };
        let newer = handle.region().region_epoch().conf_ver > known.conf_ver;
        if newer || handle.0.view.load().leading || self.core.is_kept(&handle) {
            return false;
        }
        let note = Note::Destroy { region: region.0, peer: peer.0, conf_ver: known.conf_ver };
        self.core.note(region.0, note);
        true
    }

    /// The target of a frozen region as its peer on this host is, or ended, if it has left the epoch of the freeze: what
    /// [`PeerHandle::propose_thaw`] takes as proof, also of a target that was taken in itself meanwhile.
    pub fn proof_of_thaw(&self, source: RegionId) -> Option<Region> {
        self.core.proof_of_thaw(source.0).ok()
    }

    /// Where the transport delivers.
    pub fn inbound(&self) -> Arc<dyn Inbound> {
        Arc::clone(&self.inbound) as Arc<dyn Inbound>
    }

    /// The database that holds the regions' data.
    pub fn db(&self) -> Arc<DB> {
        Arc::clone(&self.core.db)
    }

    /// Bytes on disk: log and data.
    pub fn used_bytes(&self) -> u64 {
        self.data_bytes() + self.core.log.used_bytes()
    }

    /// Bytes of the data's files alone: what a quota counts. The log is bounded by itself, and its files are preallocated.
    pub fn data_bytes(&self) -> u64 {
        self.core.db.live_files().map_or(0, |files| files.iter().map(|file| file.size as u64).sum())
    }

    /// Stops all threads; what is unanswered is answered `Unknown` (or `Dropped` where that is certain). Leaders are not
    /// handed over. The folder is free once this and everything opened from it is dropped.
    pub fn shutdown(&self) {
        self.stopped.store(true, std::sync::atomic::Ordering::Release);
        let Some(threads) = self.threads.lock().take() else { return };
        self.core.snapshot_pace.close();
        for post in &self.core.posts {
            post.notes.send(Note::Stop);
        }
        threads.workers.into_iter().for_each(join);
        for _ in 0..HELPERS {
            self.core.help(HelperTask::Stop);
        }
        threads.helpers.into_iter().for_each(join);
        self.core.apply_later(ApplyTask::Stop);
        join(threads.apply);
        _ = self.core.gc.send(Truncated::Stop);
        join(threads.gc);
        if let Err(error) = self.core.db.flush_wal(true) {
            tracing::error!(%error, "the data was not synced on the way out; the log still has it");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn join(thread: JoinHandle<()>) {
    // A thread that panicked has ended the process already.
    _ = thread.join();
}

fn check_new(region: &Region, host: StoreId) -> Result<(), String> {
    let id = region.region_id();
    if !id.is_valid() || region.epoch.is_none() {
        return Err(format!("{id} needs an id and an epoch"));
    }
    if region.range().is_empty() {
        return Err(format!("{id} holds no keys"));
    }
    if region.peer_on(host).is_none() {
        return Err(format!("{id} has no peer on host {}", host.0));
    }
    let mut seen = HashMap::new();
    for peer in &region.peers {
        if peer.id == 0 || peer.store_id == 0 || seen.insert(peer.id, peer.store_id).is_some() {
            return Err(format!("{id} has peers without distinct ids"));
        }
    }
    if region.peers.iter().all(|peer| peer.learner) {
        return Err(format!("{id} has no voter"));
    }
    Ok(())
}

/// Two of `regions` that share keys.
fn overlap(regions: &[Region]) -> Option<(RegionId, RegionId)> {
    let mut sorted: Vec<&Region> = regions.iter().collect();
    sorted.sort_unstable_by(|a, b| a.start.cmp(&b.start));
    let mut neighbours = sorted.windows(2).map(|pair| (pair[0], pair[1]));
    let found = neighbours.find(|(one, other)| one.end.is_empty() || one.end > other.start);
    found.map(|(one, other)| (one.region_id(), other.region_id()))
}

type Boxes = Vec<Receiver<Note>>;

fn post_boxes(workers: usize) -> (Boxes, Vec<Post>) {
    let post = |_| {
        let bell = Arc::default();
        let mail = Arc::new(MailBox::new(MAIL_MAX, Arc::clone(&bell)));
        let (notes, noted) = bell::queue(bell);
        (noted, Post { mail, notes, posted_bytes: Arc::default() })
    };
    (0..workers).map(post).unzip()
}

impl Core {
    /// Puts a region into the table.
    fn enter(&self, table: &mut RegionTable, region: &Region, apply: Option<ApplyState>) -> PeerHandle {
        let own = *region.peer_on(StoreId(self.env.host_id)).expect("checked: the region has a peer here");
        let apply = Some(apply.unwrap_or(ApplyState::INITIAL));
        let handle = PeerHandle::new(region.clone(), own, apply, self.post(region.id).clone());
        table.put(region.clone(), handle.clone());
        handle
    }

    fn start(&self, found: Found) -> Result<(), OpenError> {
        let Found { region, apply, frozen, absorbed } = found;
        if region.peer_on(StoreId(self.env.host_id)).is_none() {
            let what = format!("{} has no peer on this host", region.region_id());
            return Err(OpenError::damaged(&self.snap_dir, what));
        }
        let handle = self.enter(&mut self.table.lock(), &region, Some(apply));
        handle.0.frozen.store(frozen.map(Arc::new));
        handle.0.set_absorbed(absorbed);
        self.give_birth(handle, apply, Origin::Restarted);
        Ok(())
    }

    /// Opens the machine and lets the threads know of the peer.
    fn give_birth(&self, handle: PeerHandle, apply: ApplyState, origin: Origin) {
        let id = handle.id();
        let machine = self.machine.open_region(Arc::clone(&self.db), handle.clone());
        let delegate = Delegate { handle: handle.clone(), machine: Arc::clone(&machine), state: apply };
        self.apply_later(ApplyTask::Register(Box::new(delegate)));
        self.note(id, Note::Create(Box::new(Birth { handle, machine, apply, origin })));
    }
}

fn start_threads(
    core: &Arc<Core>,
    boxes: Boxes,
    (apply_tasks, apply_bell): (Receiver<ApplyTask>, Arc<Bell>),
    helper_tasks: &Receiver<HelperTask>,
    gc_tasks: Receiver<Truncated>,
) -> std::io::Result<Threads> {
    let mut workers = Vec::new();
    for (index, notes) in boxes.into_iter().enumerate() {
        let worker = Worker::new(index, Arc::clone(core), notes);
        workers.push(spawn(format!("raft-{index}"), "raft worker", move || worker.run())?);
    }
    let apply_core = Arc::clone(core);
    let apply = spawn("apply".to_owned(), "apply", move || apply::run(&apply_core, &apply_tasks, &apply_bell))?;
    let mut helpers = Vec::new();
    for index in 0..HELPERS {
        let (core, tasks) = (Arc::clone(core), helper_tasks.clone());
        helpers.push(spawn(format!("raft-helper-{index}"), "raft helper", move || {
            give_way();
            snapshot::run(&core, &tasks);
        })?);
    }
    let gc_core = Arc::clone(core);
    let gc = spawn("log-gc".to_owned(), "log gc", move || collect_garbage(&gc_core, &gc_tasks))?;
    Ok(Threads { workers, apply, helpers, gc })
}

/// Lets every other thread of the machine go first: making and taking in raft snapshots is much work in which nobody waits
/// for the next millisecond.
fn give_way() {
    // On Linux this is about the calling thread. Elsewhere it would be about the process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, HELPER_NICENESS) {
        tracing::debug!(%error, "raft helpers run at the usual priority");
    }
}

fn spawn(name: String, what: &'static str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        let _guard = AbortOnPanic(what);
        body();
    })
}

/// The log GC thread. Log goes only after what was applied from it is durable in RocksDB, one sync for many regions.
fn collect_garbage(core: &Core, tasks: &Receiver<Truncated>) {
    let mut next_purge = Instant::now() + core.env.timing.purge;
    loop {
        let mut truncated: HashMap<u64, (u64, u64)> = HashMap::new();
        let first = match tasks.recv_deadline(next_purge) {
            Ok(task) => Some(task),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        for task in first.into_iter().chain(tasks.try_iter()) {
            match task {
                Truncated::Region { region, peer, index } => _ = truncated.insert(region, (peer, index)),
                Truncated::Stop => return,
            }
        }
        if !truncated.is_empty() {
            if let Err(error) = core.db.flush_wal(true) {
                fatal(format_args!("{} cannot be synced: {error}", core.db.path().display()));
            }
            for (region, (peer, index)) in truncated {
                core.note(region, Note::Compact { region, peer, index });
            }
        }
        if Instant::now() >= next_purge {
            next_purge = Instant::now() + core.env.timing.purge;
            match core.log.purge() {
                Ok(regions) => regions.into_iter().for_each(|region| core.note(region, Note::ForceCompact { region })),
                Err(error) => tracing::warn!(%error, "old log files were not removed, trying again later"),
            }
        }
    }
}
