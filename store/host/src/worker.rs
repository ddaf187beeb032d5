//! The raft worker: one thread that owns the raft groups of its regions.
//!
//! ```text
//!  mail, notes, tick ──► step ──► collect ──► leaders' messages out ──► snapshot intents (RocksDB)
//!        ▲                                                                   │
//!        └── while something is ready ◄── acks out ◄── finish ◄── one log write, one fsync for all regions
//! ```
//!
//! The log is written inline. A store whose disk hangs therefore stops ticking, heartbeating and asking for support,
//! and loses its leaders by itself, instead of staying a leader that cannot commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use braid_proto::id::StoreId;
use crossbeam_channel::Receiver;
use raft::Ready;

use crate::absorb::{Absorbed, Leftovers};
use crate::apply::ApplyTask;
use crate::error::fatal;
use crate::guard::VoteGuard;
use crate::handle::PeerHandle;
use crate::host::Core;
use crate::log::LogOp;
use crate::mail::{Birth, Letter, Mail, MailBox, Note, Origin, Parcel};
use crate::meta::RaftState;
use crate::peer::{Effects, Peer};
use crate::snapshot::{HelperTask, Permit};
use crate::support::{Now, Standing};

mod births;
mod deaths;
mod outbox;
mod patience;
mod rounds;

use births::EarlyVotes;
use patience::Patience;
pub(crate) use rounds::PATROL_TICKS;

/// Notes, and pieces of mail, taken before raft gets to work on them.
const DRAIN_MAX: usize = 1024;
/// Raft messages likewise: one piece of mail may hold as many as a frame.
const LETTERS_MAX: usize = 4096;
/// Bytes of committed entries that may wait for the apply thread, over all regions.
const APPLY_BYTES_MAX: usize = 64 << 20;

pub(crate) struct Worker {
    index: usize,
    core: Arc<Core>,
    mail: Arc<MailBox>,
    notes: Receiver<Note>,
    /// By region, ordered: equal input leaves equal output.
    /// Each in a place of its own: nodes of the tree are half empty where ids rise.
    peers: BTreeMap<u64, Box<Peer>>,
    /// Peers that raft may want something for.
    dirty: BTreeSet<u64>,
    /// Peers that are ticked; all others sleep.
    awake: BTreeSet<u64>,
    /// How this store stood to the others at the last tick: what sleepers rely on.
    standings: Vec<Standing>,
    patience: Patience,
    ticks: u64,
    /// The region that the patrol came to last.
    patrolled: Option<u64>,
    /// What the patrol owes, in peers times ticks.
    patrol_due: u64,
    /// Of this worker in metrics.
    label: String,
    next_tick: Instant,
    early_votes: EarlyVotes,
    /// Regions whose peer here is destroyed and whose data is not deleted yet.
    dying: BTreeSet<u64>,
    /// Regions led here whose followers do not know of everything that is committed, and when they are told.
    untold: BTreeMap<u64, Now>,
    /// Truncations that go with the next log write.
    compactions: Vec<(u64, u64)>,
    next_gc: Instant,
    stopping: bool,
}

impl Worker {
    pub fn new(index: usize, core: Arc<Core>, notes: Receiver<Note>) -> Self {
        let mail = Arc::clone(&core.posts[index].mail);
        let next_gc = Instant::now() + core.env.timing.log_gc;
        let label = format!("{}-{index}", core.domain.as_str_name().to_lowercase());
        Self {
            index,
            core,
            mail,
            notes,
            peers: BTreeMap::new(),
            dirty: BTreeSet::new(),
            awake: BTreeSet::new(),
            standings: Vec::new(),
            patience: Patience::new(),
            ticks: 0,
            patrolled: None,
            patrol_due: 0,
            label,
            next_tick: Instant::now(),
            early_votes: EarlyVotes::default(),
            dying: BTreeSet::new(),
            untold: BTreeMap::new(),
            compactions: Vec::new(),
            next_gc,
            stopping: false,
        }
    }

    /// The thread's body.
    pub fn run(mut self) {
        while !self.stopping {
            // Work that is left over when a tick is due only lets mail in.
            if self.dirty.is_empty() && !self.drain() {
                self.mail.bell().wait(Some(self.next_call()));
            }
            self.drain();
            let now = Instant::now();
            if now >= self.next_tick {
                // After a stall there is one tick, not many: time that nobody saw must not start elections.
                self.next_tick = now + self.core.env.timing.tick;
                self.tick(now);
            }
            self.work();
        }
        self.close();
    }

    /// When there is something to do even if nobody writes.
    fn next_call(&self) -> Instant {
        let Some(tell) = self.untold.values().min() else { return self.next_tick };
        self.next_tick.min(Instant::now() + tell.since(Now::monotonic()))
    }

    /// Lets leaders tell what is committed whose followers have waited for it long enough.
    fn tell(&mut self) {
        if self.untold.is_empty() {
            return;
        }
        let now = Now::monotonic();
        let Self { untold, peers, dirty, .. } = self;
        untold.retain(|region, at| {
            if *at > now {
                return true;
            }
            let again = peers.get_mut(region).and_then(|peer| peer.tell(now));
            match again {
                Some(later) => *at = later,
                None => _ = dirty.insert(*region),
            }
            again.is_some()
        });
    }

    /// Takes what notes and mail there are. False: none.
    fn drain(&mut self) -> bool {
        let mut any = false;
        for _ in 0..DRAIN_MAX {
            let Ok(note) = self.notes.try_recv() else { break };
            self.on_note(note);
            any = true;
        }
        let mut letters = 0;
        for _ in 0..DRAIN_MAX {
            let Ok(mail) = self.mail.receiver().try_recv() else { break };
            letters += self.on_mail(mail.open());
            any = true;
            if letters >= LETTERS_MAX {
                break;
            }
        }
        any
    }

    /// Returns how many raft messages it held.
    fn on_mail(&mut self, mail: Mail) -> usize {
        let now = Now::monotonic();
        let mut count = 0;
        match mail {
            Mail::Messages { host, incarnation, letters } => {
                count = letters.len();
                for letter in letters.into_iter().filter(|letter| letter.from.store_id == host) {
                    self.on_letter(letter, incarnation, now);
                }
            }
            Mail::Snapshot(parcel) => {
                if parcel.letter.from.store_id == parcel.host {
                    self.on_snapshot(*parcel, now);
                }
            }
            Mail::Propose { region, term, data, done } => {
                self.core.posts[self.index].posted_bytes.fetch_sub(data.len(), Ordering::AcqRel);
                match self.peers.get_mut(&region) {
                    Some(peer) => {
                        peer.propose(term, data, done);
                        self.touch(region);
                    }
                    None => done(crate::Outcome::Dropped),
                }
            }
            Mail::Command { region, command } => {
                let Some(command) = self.core.judge_merge(region, command) else { return count };
                match self.peers.get_mut(&region) {
                    Some(peer) => {
                        peer.command(command, now, &self.core.env);
                        self.touch(region);
                    }
                    None => command.refuse("the region is not open here"),
                }
            }
        }
        count
    }

    /// A raft message.
    fn on_letter(&mut self, letter: Letter, incarnation: u64, now: Now) {
        if letter.to.store_id != self.core.env.host_id {
            return;
        }
        let region = letter.region;
        if self.is_removed(&letter) || letter.gone {
            return;
        }
        if !self.peers.contains_key(&region) && !self.conceive(&letter) {
            return self.keep_early(letter, incarnation);
        }
        let Some(peer) = self.peers.get_mut(&region).filter(|peer| peer.peer_id() == letter.to.id) else { return };
        peer.step((letter.from, letter.conf_ver()), incarnation, letter.message, now, &self.core.env);
        self.touch(region);
    }

    fn on_snapshot(&mut self, parcel: Parcel, now: Now) {
        let (letter, manifest) = (&parcel.letter, &parcel.manifest);
        let id = letter.region;
        let Some(region) = manifest.region.as_ref().filter(|region| region.id == id) else { return };
        if letter.to.store_id != self.core.env.host_id || region.peer_on(StoreId(self.core.env.host_id)).is_none() {
            return;
        }
        let ending = match self.core.leftovers(id, manifest) {
            Leftovers::Frozen(ending) => ending,
            Leftovers::Stale(stale) => {
                tracing::info!(region = id, ?stale, "raft snapshot refused: what it has taken in is not gone yet");
                for (region, peer) in stale {
                    self.core.note(region, Note::Destroy { region, peer, conf_ver: u64::MAX });
                }
                return;
            }
        };
        if !self.peers.contains_key(&id) && !self.conceive(letter) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.peer_id() == letter.to.id) else { return };
        metrics::counter!("braid_raft_snapshots_received_total").increment(1);
        {
            let mut table = self.core.table.lock();
            // In the table, but this peer is none yet: it is about to be replaced by the one that was created.
            let created = !peer.is_initialised() && table.get(id).is_some();
            if created || peer.is_installing() || !table.reserve_over(id, region.range(), &ending) {
                tracing::info!(region = id, "raft snapshot refused: its range, or the region, is taken at the moment");
                return;
            }
        }
        if !peer.step_snapshot(parcel, now, &self.core.env) {
            self.core.table.lock().release(id);
            self.core.table_changed.notify_all();
        }
        self.touch(id);
    }

    fn on_note(&mut self, note: Note) {
        match note {
            Note::Create(birth) => self.create(*birth),
            Note::Applied { region, peer, index, bytes, effect } => {
                let core = Arc::clone(&self.core);
                let Some(live) = self.live(region, peer) else { return };
                live.on_applied((index, bytes), &effect, Now::monotonic(), &core.env);
                if let Some((index, _)) = effect.truncated {
                    self.core.truncated(region, peer, index);
                }
            }
            Note::Installed { region, peer, machine, apply } => {
                if let Some(live) = self.live(region, peer) {
                    live.on_installed(machine, apply);
                    let doom = live.doom();
                    self.condemn(region, peer, doom);
                    self.core.blanks.lock().remove(&region);
                }
            }
            Note::Generated { region, peer, to, result } => {
                if let Some(live) = self.live(region, peer) {
                    live.on_generated(to, result);
                }
            }
            Note::Sent { region, peer, to, ok } => {
                if let Some(live) = self.live(region, peer) {
                    live.on_sent(to, ok);
                }
            }
            Note::Unreachable { region, peer, to } => {
                if let Some(live) = self.live(region, peer) {
                    live.on_unreachable(to);
                }
            }
            Note::Destroy { region, peer, conf_ver } => self.condemn_by_placement(region, peer, conf_ver),
            Note::Buried { region, peer, buried, data } => self.on_buried(region, peer, buried, data),
            Note::Cleared { region } => _ = self.dying.remove(&region),
            Note::GiveUp { region, term } => {
                if let Some(peer) = self.peers.get_mut(&region) {
                    peer.give_up(term);
                    self.touch(region);
                }
            }
            Note::Compact { region, peer, index } => {
                if self.live(region, peer).is_some() {
                    self.compactions.push((region, index));
                }
            }
            Note::ForceCompact { region } => {
                let env = &self.core.env;
                if let Some(peer) = self.peers.get_mut(&region) {
                    peer.consider_gc(env, true);
                    self.touch(region);
                }
            }
            Note::Stop => self.stopping = true,
        }
    }

    /// The peer, if it is still the one that the note is about.
    fn live(&mut self, region: u64, peer: u64) -> Option<&mut Peer> {
        if self.peers.get(&region)?.peer_id() != peer {
            return None;
        }
        self.touch(region);
        self.peers.get_mut(&region).map(Box::as_mut)
    }

    /// Does what raft wants until it wants nothing more, or a tick is due: under load that never ends support must be
    /// asked for all the same.
    fn work(&mut self) {
        loop {
            self.tell();
            if self.dirty.is_empty() && self.compactions.is_empty() {
                return;
            }
            let dirty = std::mem::take(&mut self.dirty);
            let now = Now::monotonic();
            let mut effects = Effects::default();
            let room = self.core.apply_bytes.load(Ordering::Acquire) < APPLY_BYTES_MAX;
            let mut taken: Vec<(u64, Ready)> = Vec::new();
            for region in dirty {
                let Some(peer) = self.peers.get_mut(&region) else { continue };
                if let Some(ready) = peer.collect(now, &self.core.env, room, &mut effects) {
                    taken.push((region, ready));
                }
            }
            self.send(&mut effects);
            self.write(&mut effects);
            for (region, ready) in taken {
                let peer = self.peers.get_mut(&region).expect("taken from here");
                peer.finish(ready, now, &self.core.env, &mut effects);
                if peer.is_busy() {
                    self.dirty.insert(region);
                }
                if let Some(at) = peer.tells_at(now) {
                    self.untold.entry(region).and_modify(|due| *due = at.min(*due)).or_insert(at);
                }
            }
            self.send(&mut effects);
            self.hand_over(effects);
            if Instant::now() >= self.next_tick {
                return;
            }
            // New mail goes first between rounds, so that its entries share the next fsync.
            if !self.dirty.is_empty() {
                self.drain();
            }
        }
    }

    /// One log write for all regions of the round; the intents of raft snapshots before it.
    fn write(&mut self, effects: &mut Effects) {
        for install in &effects.installs {
            let ended = self.core.end_absorbed(&install.region, &install.manifest);
            if let Err(why) = crate::snapshot::write_intent(&self.core, install, &ended) {
                fatal(format_args!("a raft snapshot cannot be installed: {why}"));
            }
            // CRASH: they are tombstones, their logs are there. Safe: the start-up cleans those.
            for Absorbed { region, own, rest } in ended {
                self.core.apply_later(ApplyTask::Absorbed { region: region.id, own, rest: rest.map(Box::new) });
            }
        }
        for (region, index) in self.compactions.drain(..) {
            effects.log.push(region, LogOp::Compact(index + 1));
        }
        let log = std::mem::take(&mut effects.log);
        if log.is_empty() {
            return;
        }
        metrics::histogram!("braid_raft_log_batch_entries").record(effects.appended as f64);
        let start = Instant::now();
        if let Err(error) = self.core.log.write(log, effects.sync) {
            fatal(format_args!("the raft log cannot be written: {error}"));
        }
        metrics::histogram!("braid_raft_log_write_seconds").record(start.elapsed().as_secs_f64());
    }

    /// Everything that other threads do.
    fn hand_over(&mut self, effects: Effects) {
        for committed in effects.committed {
            self.core.apply_bytes.fetch_add(committed.bytes, Ordering::AcqRel);
            self.core.apply_later(ApplyTask::Committed(committed));
        }
        for install in effects.installs {
            self.core.help(HelperTask::Install(Box::new(install)));
        }
        for (region, peer, to) in effects.generate {
            // Only so many at once, generating and sending; raft asks again for the others.
            let Some(permit) = Permit::take(&self.core.snapshots_running) else { break };
            if let Some(live) = self.peers.get_mut(&region) {
                live.on_generating();
            }
            self.core.help(HelperTask::Generate { region, peer, to, permit });
        }
    }

    /// Nobody answers after this.
    fn close(&mut self) {
        self.mail.close();
        for peer in self.peers.values_mut() {
            peer.abandon();
        }
    }
}
