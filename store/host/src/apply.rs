//! The apply thread: committed entries of all regions of a host, each region's in index order.
//!
//! For each hand-over: data entries go to the machine with a batch that already holds the apply state, host entries are
//! applied by the host itself; then what readers see moves; then whoever proposed is told; then the raft worker. A
//! region's data and its apply state are always in one RocksDB batch, so a crash leaves a prefix of the log applied.
//!
//! Host entries: a split is written with sync, because the child's raft group may acknowledge at once what a power
//! failure would otherwise take from under it, and so are changes of peers and the steps of a merge. A truncation is not: the log goes only after the next WAL sync (`host`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::id::{PeerId, StoreId, Term};
use braid_proto::pb::{Peer, Region};
use crossbeam_channel::Receiver;
use raft::eraftpb::{Entry as RaftEntry, EntryType};
use rocksdb::{WriteBatch, WriteOptions};

use crate::absorb::put_to_rest;
use crate::bell::Bell;
use crate::change;
use crate::destroy;
use crate::error::fatal;
use crate::handle::PeerHandle;
use crate::host::Core;
use crate::mail::{Applied, Birth, Note, Origin};
use crate::merge::refuse_frozen;
use crate::meta::{Admin, ApplyState, CF_HOST, Change, Key, RegionState};
use crate::peer::Committed;
use crate::split::halves;
use crate::{Done, Entry, Outcome, RegionMachine};

mod merges;

/// Work of the apply thread. Unbounded queue: workers stop handing over when its bytes exceed their budget.
pub(crate) enum ApplyTask {
    /// A peer from now on; replaces what was known of its region.
    Register(Box<Delegate>),
    Committed(Committed),
    /// The worker has given this peer up: nothing of it follows.
    Bury {
        region: u64,
        own: Peer,
    },
    /// A raft snapshot of its target has ended this peer; `rest` of its data has to go.
    Absorbed {
        region: u64,
        own: Peer,
        rest: Option<Box<Region>>,
    },
    Stop,
}

/// One region as the apply thread sees it.
pub(crate) struct Delegate {
    pub handle: PeerHandle,
    pub machine: Arc<dyn RegionMachine>,
    pub state: ApplyState,
}

/// The regions of the host.
#[derive(Default)]
struct Host {
    live: HashMap<u64, Delegate>,
    /// Regions whose peer was destroyed and did not come back. Bounded by the regions this host ever gave up.
    buried: HashSet<u64>,
}

/// The thread's body.
pub(crate) fn run(core: &Arc<Core>, tasks: &Receiver<ApplyTask>, bell: &Bell) {
    let mut host = Host::default();
    loop {
        let Ok(task) = tasks.try_recv() else {
            bell.wait(None);
            continue;
        };
        match task {
            ApplyTask::Stop => return,
            ApplyTask::Register(delegate) => {
                if delegate.handle.frozen().is_some() {
                    delegate.tell_frozen();
                }
                host.add(*delegate);
            }
            ApplyTask::Bury { region, own } => {
                if destroy::bury(core, &mut host.live, region, own) {
                    host.buried.insert(region);
                }
            }
            ApplyTask::Absorbed { region, own, rest } => {
                let delegate = host.live.remove(&region);
                host.buried.insert(region);
                put_to_rest(core, delegate, region, own, rest);
            }
            ApplyTask::Committed(committed) => host.apply(core, committed),
        }
    }
}

impl Host {
    fn add(&mut self, delegate: Delegate) {
        self.buried.remove(&delegate.handle.id());
        self.live.insert(delegate.handle.id(), delegate);
    }

    fn apply(&mut self, core: &Arc<Core>, committed: Committed) {
        let region = committed.region;
        let ended = |delegate: &Delegate| delegate.handle.0.gone.load(Ordering::Acquire);
        if self.buried.contains(&region) || self.live.get(&region).is_some_and(ended) {
            // Handed over before the worker knew.
            core.apply_bytes.fetch_sub(committed.bytes, Ordering::AcqRel);
            return committed.done.into_iter().for_each(|(_, done)| done(Outcome::Unknown));
        }
        let Some(mut delegate) = self.live.remove(&region) else {
            fatal(format_args!("entries of r{region} are to be applied, which is not open"));
        };
        if delegate.apply(core, committed, self) {
            delegate.bury(core);
            self.buried.insert(region);
        } else {
            self.live.insert(region, delegate);
        }
    }
}

/// What a hand-over changed beside data.
#[derive(Default)]
struct Changed {
    effect: Applied,
    /// This peer was removed: nothing after it is applied.
    removed: bool,
    /// A raft snapshot of its target has ended this peer: likewise.
    absorbed: bool,
}

impl Delegate {
    /// Returns whether the peer was removed. `host` holds the other regions.
    fn apply(&mut self, core: &Arc<Core>, committed: Committed, host: &mut Host) -> bool {
        let Committed { region, peer, entries, mut done, lead, bytes } = committed;
        assert_eq!(peer, self.handle.peer().id, "r{region}: entries of another peer");
        let count = entries.len() as u64;
        let mut changed = Changed::default();
        let mut run = Vec::with_capacity(entries.len());
        for entry in entries {
            assert_eq!(entry.index, self.state.applied_index + run.len() as u64 + 1, "r{region}: gap in the log");
            match self.kind(&entry) {
                Some(admin) => {
                    self.apply_run(core, &mut run, &mut done);
                    self.apply_admin(core, &entry, admin, &mut done, &mut changed, host);
                    if changed.removed || changed.absorbed {
                        core.apply_bytes.fetch_sub(bytes, Ordering::AcqRel);
                        done.into_iter().for_each(|(_, done)| done(Outcome::Unknown));
                        return changed.removed;
                    }
                }
                None => run.push(entry),
            }
        }
        self.apply_run(core, &mut run, &mut done);
        metrics::counter!("braid_raft_applied_entries_total").increment(count);
        if let Some(term) = lead.filter(|term| self.handle.is_leader(Term(*term))) {
            self.machine.on_leader(Term(term));
        }
        core.apply_bytes.fetch_sub(bytes, Ordering::AcqRel);
        let (index, effect) = (self.state.applied_index, changed.effect);
        core.note(region, Note::Applied { region, peer, index, bytes, effect });
        false
    }

    fn kind(&self, entry: &RaftEntry) -> Option<Admin> {
        let admin = match entry.get_entry_type() {
            EntryType::EntryNormal => Admin::decode(&entry.context, &entry.data),
            EntryType::EntryConfChangeV2 => change::decode(&entry.context, &entry.data).map(|c| Some(Admin::Change(c))),
            EntryType::EntryConfChange => Err("a change of peers of a kind that nobody proposes".to_owned()),
        };
        match admin {
            Ok(admin) => admin,
            Err(why) => fatal(format_args!("r{} index {}: {why}", self.handle.id(), entry.index)),
        }
    }

    /// Applies consecutive entries without host entries among them.
    fn apply_run(&mut self, core: &Core, run: &mut Vec<RaftEntry>, done: &mut Vec<(u64, Done)>) {
        let Some(last) = run.last() else { return };
        self.state.applied_index = last.index;
        self.state.applied_term = last.term;
        let mut batch = WriteBatch::new();
        self.put_state(core, &mut batch);
        // Empty entries are raft's own: the first of each term.
        let data = run.drain(..).filter(|entry| !entry.data.is_empty());
        let entries: Vec<Entry> =
            data.map(|entry| Entry { index: entry.index, term: Term(entry.term), data: entry.data }).collect();
        // On every replica alike. Whoever leads refuses to propose them, so this is an entry of a leader that did not know.
        let refused = !entries.is_empty() && self.handle.frozen().is_some();
        if refused {
            tracing::warn!(region = self.handle.id(), "data for a frozen region is not applied");
        }
        if entries.is_empty() || refused {
            core.write_host(batch, false);
        } else {
            self.machine.apply(&entries, batch);
        }
        self.publish_applied();
        self.tell(done, if refused { Outcome::Dropped } else { Outcome::Applied });
    }

    fn put_state(&self, core: &Core, batch: &mut WriteBatch) {
        batch.put_cf(core.cf_host(), Key::ApplyState(self.handle.id()).encode(), self.state.encode());
    }

    fn publish_applied(&self) {
        let shared = &self.handle.0;
        shared.applied_index.set(self.state.applied_index);
        shared.applied_term.store(self.state.applied_term, Ordering::Release);
    }

    /// Tells everybody up to the applied index.
    fn tell(&self, done: &mut Vec<(u64, Done)>, outcome: Outcome) {
        let told = done.iter().take_while(|(index, _)| *index <= self.state.applied_index).count();
        done.drain(..told).for_each(|(_, done)| done(outcome));
    }

    fn apply_admin(
        &mut self,
        core: &Arc<Core>,
        entry: &RaftEntry,
        admin: Admin,
        done: &mut Vec<(u64, Done)>,
        changed: &mut Changed,
        host: &mut Host,
    ) {
        self.state.applied_index = entry.index;
        self.state.applied_term = entry.term;
        match admin {
            Admin::Compact(compact) => {
                if compact.index > self.state.truncated_index && compact.index < entry.index {
                    self.state.truncated_index = compact.index;
                    self.state.truncated_term = compact.term;
                    metrics::counter!("braid_raft_log_truncations_total").increment(1);
                    changed.effect.truncated = Some((compact.index, compact.term));
                }
                self.write_state(core);
                self.tell(done, Outcome::Applied);
            }
            Admin::Split(split) => {
                changed.effect.reshaped = true;
                let halves = refuse_frozen(self.handle.frozen()).and_then(|()| halves(&self.handle.region(), &split));
                match halves {
                    Ok((parent, child)) => {
                        host.add(self.split(core, parent, child));
                        self.tell(done, Outcome::Applied);
                    }
                    Err(why) => {
                        tracing::warn!(region = self.handle.id(), index = entry.index, why, "split refused at apply");
                        self.write_state(core);
                        self.tell(done, Outcome::Dropped);
                    }
                }
            }
            Admin::Freeze(_) | Admin::Thaw(_) | Admin::Merge(_) | Admin::Bump(_) => {
                changed.effect.reshaped |= matches!(admin, Admin::Freeze(_));
                match self.apply_merge(core, &admin, host) {
                    Some(outcome) => self.tell(done, outcome),
                    None => changed.absorbed = true,
                }
            }
            Admin::Change(change) => match self.change(&change) {
                // Its own state stays as it was: the tombstone is written from it.
                Ok(region) if region.peer(PeerId(self.handle.0.peer.id)).is_none() => {
                    tracing::info!(region = region.id, epoch = %region.region_epoch(), "this peer was removed");
                    changed.removed = true;
                }
                Ok(region) => {
                    self.change_peers(core, region);
                    changed.effect.changes.push(change);
                    self.tell(done, Outcome::Applied);
                }
                Err(why) => {
                    tracing::warn!(
                        region = self.handle.id(),
                        index = entry.index,
                        why,
                        "change of peers refused at apply"
                    );
                    self.write_state(core);
                    self.tell(done, Outcome::Dropped);
                }
            },
        }
    }

    /// The region with other peers, or why it keeps those it has.
    fn change(&self, change: &Change) -> Result<Region, String> {
        refuse_frozen(self.handle.frozen())?;
        change::changed(&self.handle.region(), change)
    }

    /// The peers of the region change; the data stays.
    fn change_peers(&self, core: &Core, region: Region) {
        let mut batch = WriteBatch::new();
        let state = RegionState::normal(region.clone(), &self.handle.0.absorbed());
        batch.put_cf(core.cf_host(), Key::RegionState(region.id).encode(), prost::Message::encode_to_vec(&state));
        self.put_state(core, &mut batch);
        core.write_host(batch, true);
        tracing::info!(region = region.id, epoch = %region.region_epoch(), peers = ?region.peers, "peers changed");
        metrics::counter!("braid_raft_peer_changes_total").increment(1);
        {
            let mut table = core.table.lock();
            self.handle.0.region.store(Arc::new(region.clone()));
            table.put(region.clone(), self.handle.clone());
        }
        self.publish_applied();
        self.machine.on_region(&region);
        core.refresh_neighbours();
    }

    fn write_state(&self, core: &Core) {
        let mut batch = WriteBatch::new();
        self.put_state(core, &mut batch);
        core.write_host(batch, false);
        self.publish_applied();
    }

    fn split(&mut self, core: &Arc<Core>, parent: Region, child: Region) -> Delegate {
        let own = child.peer_on(StoreId(core.env.host_id)).copied();
        let Some(own) = own else { fatal(format_args!("r{} has no peer on this host", child.id)) };
        let buried_before = core.tombstone(child.id).is_some_and(|buried| buried >= own.id);
        let mut batch = split_batch(core, (&parent, &self.handle.0.absorbed()), &child);
        self.put_state(core, &mut batch);
        core.write_host(batch, true);
        // CRASH: both regions are durable, the child's raft group has written nothing. Safe: it starts from the initial
        // index, keeping a vote that a message-made peer of it may have stored in the log.
        let leads = self.handle.0.view.load().leading;
        let handle = PeerHandle::new(child.clone(), own, Some(ApplyState::INITIAL), core.post(child.id).clone());
        {
            let mut table = core.table.lock();
            self.handle.0.region.store(Arc::new(parent.clone()));
            table.put(parent.clone(), self.handle.clone());
            table.put(child.clone(), handle.clone());
        }
        self.publish_applied();
        self.machine.on_region(&parent);
        let machine = core.machine.open_region(Arc::clone(&core.db), handle.clone());
        tracing::info!(parent = parent.id, child = child.id, "region split");
        metrics::counter!("braid_raft_splits_total").increment(1);
        let origin = if leads { Origin::SplitLeader } else { Origin::SplitFollower };
        let birth = Birth { handle: handle.clone(), machine: Arc::clone(&machine), apply: ApplyState::INITIAL, origin };
        core.note(child.id, Note::Create(Box::new(birth)));
        if buried_before {
            // A blank peer of the child was here and was removed, before the split that makes it arrived.
            let note = Note::Destroy { region: child.id, peer: own.id, conf_ver: u64::MAX };
            core.note(child.id, note);
        }
        core.refresh_neighbours();
        Delegate { handle, machine, state: ApplyState::INITIAL }
    }
}

/// What a split writes but for the parent's apply state.
fn split_batch(core: &Core, (parent, absorbed): (&Region, &[u64]), child: &Region) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let cf = core.cf_host();
    for (region, absorbed) in [(parent, absorbed), (child, &[])] {
        let state = RegionState::normal(region.clone(), absorbed);
        batch.put_cf(cf, Key::RegionState(region.id).encode(), prost::Message::encode_to_vec(&state));
    }
    batch.put_cf(cf, Key::ApplyState(child.id).encode(), ApplyState::INITIAL.encode());
    batch
}

impl Core {
    /// Writes a batch of the host's own. A failure ends the process.
    pub fn write_host(&self, batch: WriteBatch, sync: bool) {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        if let Err(error) = self.db.write_opt(batch, &options) {
            fatal(format_args!("{} cannot be written: {error}", self.db.path().display()));
        }
    }

    /// The host's column family.
    pub fn cf_host(&self) -> &rocksdb::ColumnFamily {
        self.db.cf_handle(CF_HOST).expect("opened with the database")
    }
}
