//! Placement's replicated state as a value: what every member agrees on, entry by entry.
//!
//! `apply` is the whole state machine: deterministic, without clock or I/O. It answers what the proposer wants to know
//! and names the rows that changed, so that the shell writes only those.
//!
//! What is here: the cluster's identity, its stores and what operators want of them, what schedulers go by, the one
//! counter of ids, the regions it began with, the sequencer's window, and what travels with every bound. What is not: where regions are now (their own raft groups know, and report
//! it), who is alive, and proxies. All of that is the leader's memory.

use std::collections::{BTreeMap, BTreeSet};

use braid_proto::id::{ClusterId, Revision, SequencerEpoch, StoreId};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{CloseWindow, FirstRegions, FoundCluster, OpenWindow, Region, SetScheduling};

use crate::sequencer::{LastAnswer, Marks, WindowRecord};

pub mod rows;
mod stores;
#[cfg(test)]
mod tests;

use rows::Row;
pub use stores::{Drain, StoreRecord};

/// Version of the format of all rows and entries. A member that finds a newer one does not start.
pub const FORMAT: u32 = 1;
/// Ids that one entry may take: the first regions of a large cluster, with all their peers.
pub const IDS_MAX: u64 = 1_000_000;

/// What operators want of schedulers. What the names mean is not this module's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// Schedulers that are paused, by name.
    pub paused: BTreeSet<String>,
    /// Settings that are not at their defaults.
    pub settings: BTreeMap<String, String>,
}

/// What applying an entry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Done, and there is nothing to say about it.
    Done,
    /// The store has this id.
    Store(StoreId),
    /// The ids from this one on are the proposer's.
    Ids(u64),
    /// Nothing: so much, or more, is compacted already.
    CompactedBefore,
    /// It changed nothing; why.
    Refused(String),
}

/// See the module's page.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    cluster_id: ClusterId,
    /// Lowest id never handed out. Only grows.
    next_id: u64,
    stores: BTreeMap<StoreId, StoreRecord>,
    first_regions: BTreeMap<u64, Region>,
    regions_started: bool,
    window: WindowRecord,
    marks: Marks,
    scheduling: Scheduling,
}

impl Default for State {
    fn default() -> Self {
        Self {
            cluster_id: ClusterId::INVALID,
            next_id: 1,
            stores: BTreeMap::new(),
            first_regions: BTreeMap::new(),
            regions_started: false,
            window: WindowRecord::default(),
            marks: Marks::default(),
            scheduling: Scheduling::default(),
        }
    }
}

impl State {
    /// The cluster; invalid before its first entry.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// What schedulers go by.
    pub fn scheduling(&self) -> &Scheduling {
        &self.scheduling
    }

    /// Every store that ever joined, by id.
    pub fn stores(&self) -> impl Iterator<Item = &StoreRecord> {
        self.stores.values()
    }

    /// One store.
    pub fn store(&self, id: StoreId) -> Option<&StoreRecord> {
        self.stores.get(&id)
    }

    /// The regions that the cluster began with, by id; none before it has begun.
    pub fn first_regions(&self) -> impl ExactSizeIterator<Item = &Region> {
        self.first_regions.values()
    }

    /// Whether each first region has had a leader.
    pub fn regions_started(&self) -> bool {
        self.regions_started
    }

    /// What is committed about numbering.
    pub fn window(&self) -> &WindowRecord {
        &self.window
    }

    /// What travels with every bound.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// Applies one entry. The rows are those whose value is another now.
    pub fn apply(&mut self, op: Op) -> (Applied, Vec<Row>) {
        match op {
            Op::FoundCluster(found) => self.found(found),
            Op::AdmitStore(admit) => self.admit_store(&admit),
            Op::AllocateIds(allocate) => self.allocate_ids(allocate.count),
            Op::FirstRegions(first) => self.begin_with(first),
            Op::RegionsStarted(_) => {
                self.regions_started = true;
                (Applied::Done, vec![Row::Cluster])
            }
            Op::OpenWindow(open) => self.open_window(open),
            Op::CloseWindow(close) => self.close_window(&close),
            Op::Compact(compact) => self.compact(Revision(compact.revision)),
            Op::SetStore(set) => self.set_store(set),
            Op::RemoveStore(remove) => self.remove_store(remove),
            Op::HoldPeers(hold) => self.hold_peers(StoreId(hold.store_id)),
            Op::SetScheduling(set) => self.set_scheduling(set),
        }
    }

    fn found(&mut self, found: FoundCluster) -> (Applied, Vec<Row>) {
        if self.cluster_id.is_valid() {
            return refused(format!("this is cluster {} already", self.cluster_id));
        }
        self.cluster_id = ClusterId(found.cluster_id);
        self.scheduling.paused = found.paused.into_iter().collect();
        (Applied::Done, vec![Row::Cluster, Row::Scheduling])
    }

    fn set_scheduling(&mut self, set: SetScheduling) -> (Applied, Vec<Row>) {
        let kept = &mut self.scheduling;
        kept.paused.extend(set.pause);
        set.resume.iter().for_each(|name| _ = kept.paused.remove(name));
        kept.settings.extend(set.settings);
        kept.settings.retain(|_, value| !value.is_empty());
        (Applied::Done, vec![Row::Scheduling])
    }

    fn allocate_ids(&mut self, count: u64) -> (Applied, Vec<Row>) {
        if !(1..=IDS_MAX).contains(&count) {
            return refused(format!("{count} ids at once, 1 to {IDS_MAX} are given"));
        }
        (Applied::Ids(self.take_ids(count)), vec![Row::Cluster])
    }

    fn take_ids(&mut self, count: u64) -> u64 {
        let first = self.next_id;
        self.next_id += count;
        first
    }

    fn begin_with(&mut self, first: FirstRegions) -> (Applied, Vec<Row>) {
        if !self.first_regions.is_empty() {
            return refused("the cluster has its first regions already".into());
        }
        let mut rows = Vec::new();
        for region in first.regions {
            for peer in &region.peers {
                if let Some(record) = self.stores.get_mut(&StoreId(peer.store_id)) {
                    record.held_peers = true;
                }
            }
            rows.push(Row::FirstRegion(region.id));
            self.first_regions.insert(region.id, region);
        }
        rows.extend(self.stores.keys().map(|id| Row::Store(*id)));
        (Applied::Done, rows)
    }

    fn open_window(&mut self, open: OpenWindow) -> (Applied, Vec<Row>) {
        let (epoch, end) = (SequencerEpoch(open.epoch), Revision(open.end));
        if self.window.open(epoch, end, Revision(open.given)) {
            return (Applied::Done, vec![Row::Window]);
        }
        refused(format!("no window up to {end} for {epoch}: {} has one up to {}", self.window.epoch, self.window.end))
    }

    fn close_window(&mut self, close: &CloseWindow) -> (Applied, Vec<Row>) {
        let (epoch, last) = (SequencerEpoch(close.epoch), Revision(close.last));
        let answers = close.answers.iter().map(LastAnswer::from).collect();
        if self.window.close(epoch, last, answers) {
            return (Applied::Done, vec![Row::Window]);
        }
        refused(format!("{epoch} cannot end at {last}: {} has a window up to {}", self.window.epoch, self.window.end))
    }

    /// A boundary only rises. Whether it lies in the future was judged by the sequencer.
    fn compact(&mut self, revision: Revision) -> (Applied, Vec<Row>) {
        if !self.marks.may_compact(revision) {
            return (Applied::CompactedBefore, Vec::new());
        }
        self.marks.compacted = Some(revision);
        (Applied::Done, vec![Row::Marks])
    }
}

fn refused(why: String) -> (Applied, Vec<Row>) {
    (Applied::Refused(why), Vec::new())
}
