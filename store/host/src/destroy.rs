//! The end of a peer: it was removed from its region, and everything of it here goes, once and for good.
//!
//! Who says so: the removal itself, where the peer applies it; a message of a member whose configuration is newer; a
//! message to a later peer of the region on this host; placement, which is asked about peers that know no leader.
//!
//! | step                       | thread | after it, a crash finds                         | redo            |
//! |----------------------------|--------|-------------------------------------------------|-----------------|
//! | tombstone, synced          | apply  | a tombstone with data to clear; the log         | steps 2 to 4    |
//! | log cleaned, synced        | worker | a tombstone with data to clear                  | steps 3 and 4   |
//! | data deleted               | helper | the same                                        | steps 3 and 4   |
//! | tombstone without data     | helper | a tombstone: the peer's id never comes back     | nothing         |
//!
//! From the first step to the last the region's range stays reserved and its id is taken, so nobody else's data can lie
//! where the old data is deleted; a restart does the rest before it opens anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::key::KeyRange;
use braid_proto::pb::{Peer, Region};
use prost::Message as _;
use rocksdb::{DB, WriteBatch, WriteOptions};

use crate::StateMachine;
use crate::apply::Delegate;
use crate::error::fatal;
use crate::host::Core;
use crate::lease::LeaseBasis;
use crate::mail::Note;
use crate::meta::{CF_HOST, Key, PeerState, RegionState};
use crate::snapshot::clear;

/// Step 1, for a peer that the worker has given up. A blank peer that has got its region meanwhile stays.
pub(crate) fn bury(core: &Arc<Core>, regions: &mut HashMap<u64, Delegate>, region: u64, own: Peer) -> bool {
    if regions.get(&region).is_some_and(|delegate| core.is_kept(&delegate.handle)) {
        // It was frozen after the worker had looked.
        core.note(region, Note::Buried { region, peer: own.id, buried: false, data: None });
        return false;
    }
    let known = regions.get(&region).is_some_and(|delegate| delegate.handle.0.peer.id == own.id);
    if let Some(delegate) = regions.remove(&region).filter(|_| known) {
        delegate.bury(core);
        return true;
    }
    // Held over the write: nobody makes the region while its tombstone is written.
    let table = core.table.lock();
    let blank = table.get(region).is_none() && !table.is_reserved(region);
    if blank {
        let state = RegionState::tombstone(Region { id: region, ..Region::default() }, own, false);
        write(&core.db, |batch, cf| batch.put_cf(cf, Key::RegionState(region).encode(), state.encode_to_vec()));
    }
    drop(table);
    core.note(region, Note::Buried { region, peer: own.id, buried: blank, data: None });
    blank
}

impl Delegate {
    /// Step 1, for a peer that holds data.
    pub fn bury(self, core: &Arc<Core>) {
        let Self { handle, machine, .. } = self;
        let region = handle.region();
        let shared = &handle.0;
        shared.gone.store(true, Ordering::Release);
        shared.basis.store(Arc::new(LeaseBasis::default()));
        put_tombstone(&core.db, &region, shared.peer);
        // CRASH: the tombstone is there, log and data are too. Safe: the start-up removes both before it opens anything.
        {
            let mut table = core.table.lock();
            table.remove(region.id);
            assert!(table.reserve(region.id, region.range()), "nobody else was in the range of r{}", region.id);
        }
        core.refresh_neighbours();
        tracing::info!(region = region.id, peer = shared.peer.id, epoch = %region.region_epoch(), "peer destroyed");
        metrics::counter!("braid_raft_peers_destroyed_total").increment(1);
        machine.on_destroyed();
        let data = Some(Box::new((*region).clone()));
        core.note(region.id, Note::Buried { region: region.id, peer: shared.peer.id, buried: true, data });
    }
}

/// The tombstone of a peer whose data is still there.
pub(crate) fn put_tombstone(db: &DB, region: &Region, own: Peer) {
    let state = RegionState::tombstone(region.clone(), own, true);
    write(db, |batch, cf| {
        batch.put_cf(cf, Key::RegionState(region.id).encode(), state.encode_to_vec());
        batch.delete_cf(cf, Key::ApplyState(region.id).encode());
        batch.delete_cf(cf, Key::SnapshotRaftState(region.id).encode());
    });
}

/// Steps 3 and 4 at run time, and the region's way out of the table.
pub(crate) fn clear_away(core: &Core, region: &Region, own: Peer) {
    let live = core.table.lock().ranges_in(&region.range());
    if let Err(why) = clear_data(&core.db, &*core.machine, region, &live) {
        fatal(format_args!("the data of r{}, whose peer is destroyed, cannot be deleted: {why}", region.id));
    }
    // CRASH: the data is gone, the tombstone still says it has to go. Safe: nobody else has the range yet.
    put_cleared(&core.db, region, own);
    core.table.lock().release(region.id);
    core.table_changed.notify_all();
    core.note(region.id, Note::Cleared { region: region.id });
}

/// Step 3: deletes the data of `region`, but for what lies in `live` ranges. May be repeated.
pub(crate) fn clear_data(
    db: &DB,
    machine: &dyn StateMachine,
    region: &Region,
    live: &[KeyRange],
) -> Result<(), String> {
    for piece in uncovered(&region.range(), live) {
        let piece = Region { start: piece.start, end: piece.end, ..region.clone() };
        machine.before_clear(db, &piece)?;
        for range in machine.data_ranges(&piece) {
            clear(db, &range)?;
        }
    }
    Ok(())
}

/// Step 4: what is left is that the peer was here.
pub(crate) fn put_cleared(db: &DB, region: &Region, own: Peer) {
    let state = RegionState::tombstone(region.clone(), own, false);
    write(db, |batch, cf| batch.put_cf(cf, Key::RegionState(region.id).encode(), state.encode_to_vec()));
}

fn write(db: &DB, fill: impl FnOnce(&mut WriteBatch, &rocksdb::ColumnFamily)) {
    let mut batch = WriteBatch::new();
    fill(&mut batch, db.cf_handle(CF_HOST).expect("opened with the database"));
    let mut options = WriteOptions::default();
    options.set_sync(true);
    if let Err(error) = db.write_opt(batch, &options) {
        fatal(format_args!("{} cannot be written: {error}", db.path().display()));
    }
}

/// The parts of `range` that lie in none of the `live` ranges, which do not overlap each other.
pub(crate) fn uncovered(range: &KeyRange, live: &[KeyRange]) -> Vec<KeyRange> {
    let mut live: Vec<&KeyRange> = live.iter().filter(|held| held.overlaps(range)).collect();
    live.sort_unstable_by(|a, b| a.start.cmp(&b.start));
    let mut pieces = Vec::new();
    let mut start = range.start.clone();
    for held in live {
        if start < held.start {
            pieces.push(KeyRange { start, end: held.start.clone() });
        }
        if held.end.is_empty() {
            return pieces;
        }
        start = held.end.clone();
    }
    if range.end.is_empty() || start < range.end {
        pieces.push(KeyRange { start, end: range.end.clone() });
    }
    pieces
}

impl Core {
    /// The newest peer of `region` on this host that was destroyed, by id.
    pub fn tombstone(&self, region: u64) -> Option<u64> {
        self.tombstone_state(region).map(|state| state.own.map_or(u64::MAX, |own| own.id))
    }

    /// What is left of the newest peer of `region` that was destroyed.
    pub fn tombstone_state(&self, region: u64) -> Option<RegionState> {
        match self.db.get_cf(self.cf_host(), Key::RegionState(region).encode()) {
            Ok(None) => None,
            Ok(Some(bytes)) => match RegionState::decode(&*bytes) {
                Ok(state) => (state.state() == PeerState::Tombstone).then_some(state),
                Err(error) => fatal(format_args!("the state of r{region} cannot be read: {error}")),
            },
            Err(error) => fatal(format_args!("the state of r{region} cannot be read: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    #[test]
    fn only_what_nobody_else_holds_is_deleted() {
        let all = range("b", "m");
        assert_eq!(uncovered(&all, &[]), std::slice::from_ref(&all));
        assert_eq!(uncovered(&all, &[range("a", "b"), range("m", "")]), std::slice::from_ref(&all));
        assert_eq!(uncovered(&all, &[range("e", "g"), range("a", "c")]), [range("c", "e"), range("g", "m")]);
        assert_eq!(uncovered(&all, &[range("k", "")]), [range("b", "k")]);
        assert_eq!(uncovered(&all, &[range("", "")]), []);
        assert_eq!(uncovered(&range("b", ""), &[range("c", "d")]), [range("b", "c"), range("d", "")]);
    }
}
