//! What a host keeps for a merge, and how a frozen peer ends here.
//!
//! A replica that says it is frozen stays as it is until the target's log has decided; that is what makes `Merge` work on
//! every store. So nothing but the target ends it:
//!
//! | the target's peer here            | the frozen peer                                                             |
//! |-----------------------------------|-----------------------------------------------------------------------------|
//! | applies the merge                 | a tombstone, in the batch that makes the target grow; its data stays        |
//! | takes a raft snapshot behind it   | a tombstone, in the batch that says so; what the snapshot does not bring goes |
//! | has left the epoch without it     | is a peer like any other: may be thawed, may be destroyed                   |
//! | is not here yet, or not that far  | is kept, whoever says that it was removed                                   |
//! | was destroyed                     | is a peer like any other                                                    |
//!
//! Whether a raft snapshot lies behind the merge, its manifest says (`absorbed`): ranges prove nothing, because what was
//! taken in may have been split off again. The same holds for a thaw: the proof is that the target's peer *here* has left
//! the epoch while the source is still there. Both end in one write, so there is no moment at which the source is gone and
//! the target may still come to the merge in its log.
//!
//! | step of a merge at apply                     | after it, a crash finds              | redo                     |
//! |----------------------------------------------|--------------------------------------|--------------------------|
//! | target, apply state, source's tombstone      | a tombstone without data; the log    | the log is cleaned       |
//! | log of the source cleaned (its worker)       | a tombstone                          | nothing                  |

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::pb::{Peer, Region, RegionEpoch, SnapshotManifest};

use crate::PeerHandle;
use crate::apply::Delegate;
use crate::change::ChangeRefused;
use crate::destroy::uncovered;
use crate::error::fatal;
use crate::host::Core;
use crate::lease::LeaseBasis;
use crate::mail::{Command, Note, Reshape};
use crate::merge::{Frozen, is_past};
use crate::table::RegionTable;

/// A frozen peer that ends because a raft snapshot of its target says that it was taken in.
pub(crate) struct Absorbed {
    pub region: Arc<Region>,
    pub own: Peer,
    /// The part of its range that the snapshot does not bring.
    pub rest: Option<Region>,
}

/// What the peers of `manifest`'s absorbed regions on a host ask of whoever takes it in.
pub(crate) enum Leftovers {
    /// These are frozen for it, and end with the installation. Most often none.
    Frozen(Vec<u64>),
    /// These are not, and have to go first: (region, peer).
    Stale(Vec<(u64, u64)>),
}

impl Core {
    /// Whether a frozen peer has to stay for its target's sake.
    pub fn is_kept(&self, handle: &PeerHandle) -> bool {
        let Some(frozen) = handle.frozen() else { return false };
        let target = self.table.lock().get(frozen.target.0).map(|target| target.region().region_epoch());
        match target {
            Some(epoch) => !is_past(epoch, frozen.epoch),
            None => self.tombstone(frozen.target.0).is_none(),
        }
    }

    /// Passes on a command, unless it is a step of a merge that other peers of this host do not allow.
    pub fn judge_merge(&self, region: u64, command: Command) -> Option<Command> {
        let Command::Reshape { term, reshape, done } = command else { return Some(command) };
        let judged = match &*reshape {
            Reshape::Thaw(_) => self.proof_of_thaw(region).map(drop),
            Reshape::Merge(source) => self.may_merge(region, source),
            Reshape::Freeze(_) | Reshape::Bump(_) => Ok(()),
        };
        match judged {
            Ok(()) => Some(Command::Reshape { term, reshape, done }),
            Err(why) => {
                tracing::info!(region, ?reshape, why, "step of a merge refused");
                done(Err(ChangeRefused::NotNow(why.to_owned())));
                None
            }
        }
    }

    /// The target's peer here, or what is left of it, if it shows that the source was not taken in. Read together with
    /// the source's being there: it leaves the table under the lock under which the target grows.
    pub fn proof_of_thaw(&self, source: u64) -> Result<Region, &'static str> {
        let table = self.table.lock();
        let source = table.get(source).ok_or("the region is not open here")?;
        let frozen = source.frozen().ok_or("the region is not frozen")?;
        let target = frozen.target.0;
        let here = table.get(target).map(|target| (*target.region()).clone());
        let here = here.or_else(|| self.tombstone_state(target).and_then(|grave| grave.region));
        match here {
            Some(region) if is_past(region.region_epoch(), frozen.epoch) => Ok(region),
            Some(_) => Err("the target's peer here has not left the epoch of the freeze"),
            None => Err("the target has no peer here that could show that the region was not taken in"),
        }
    }

    fn may_merge(&self, target: u64, source: &Region) -> Result<(), &'static str> {
        let table = self.table.lock();
        let target = table.get(target).ok_or("the region is not open here")?;
        let here = table.get(source.id).ok_or("the source has no peer here")?;
        let wanted = Frozen { target: target.region().region_id(), epoch: target.region().region_epoch() };
        if here.frozen() != Some(wanted) || *here.region() != *source {
            return Err("the source's peer here is not frozen so, for the region as it is now");
        }
        Ok(())
    }

    /// Peers here of the regions that a raft snapshot's region has taken in.
    pub fn leftovers(&self, target: u64, manifest: &SnapshotManifest) -> Leftovers {
        let table = self.table.lock();
        let here: Vec<&PeerHandle> = manifest.absorbed.iter().filter_map(|id| table.get(*id)).collect();
        let (frozen, stale): (Vec<_>, Vec<_>) =
            here.into_iter().partition(|handle| handle.frozen().is_some_and(|frozen| frozen.target.0 == target));
        if stale.is_empty() {
            Leftovers::Frozen(frozen.iter().map(|handle| handle.id()).collect())
        } else {
            Leftovers::Stale(stale.iter().map(|handle| (handle.id(), handle.0.peer.id)).collect())
        }
    }

    /// Ends the peers of regions that `target`, whose raft snapshot is about to be installed, has taken in: from here on
    /// nothing of them is written but the tombstones that go with the intent.
    pub fn end_absorbed(&self, target: &Region, manifest: &SnapshotManifest) -> Vec<Absorbed> {
        let mut table = self.table.lock();
        let mut ended = Vec::new();
        for id in &manifest.absorbed {
            let Some(handle) = table.get(*id).cloned() else { continue };
            if handle.frozen().is_none_or(|frozen| frozen.target.0 != target.id) {
                fatal(format_args!("r{id}, which r{} has taken in, is not frozen for it here", target.id));
            }
            let region = handle.region();
            handle.0.gone.store(true, Ordering::Release);
            handle.0.basis.store(Arc::new(LeaseBasis::default()));
            table.remove(*id);
            // A split keeps the left part, so there is at most one piece: the right one.
            let rest = uncovered(&region.range(), &[target.range()]).pop();
            let rest = rest.map(|piece| Region { start: piece.start, end: piece.end, ..(*region).clone() });
            if let Some(rest) = &rest {
                assert!(table.reserve(*id, rest.range()), "nobody else was in the range of r{id}");
            }
            tracing::info!(region = id, target = target.id, "this peer's region was taken in before the raft snapshot");
            ended.push(Absorbed { region, own: handle.0.peer, rest });
        }
        ended
    }
}

/// Regions that stand in the way of a message's peer but for those which are to go into it.
pub(crate) fn in_the_way(table: &RegionTable, region: &Region) -> bool {
    let goes_into = |id: u64| {
        let frozen = table.get(id).and_then(PeerHandle::frozen);
        frozen.is_some_and(|frozen| frozen.target.0 == region.id)
    };
    table.overlapping_but(&region.range(), region.id, goes_into).is_some()
}

/// The delegate of a source at its merge: the protocol has it here, frozen, or the data would be lost.
pub(crate) fn take_source(
    live: &mut HashMap<u64, Delegate>,
    buried: &mut HashSet<u64>,
    target: u64,
    epoch: RegionEpoch,
    source: &Region,
) -> Delegate {
    let wanted = |delegate: &Delegate| {
        let frozen = delegate.handle.frozen();
        frozen.is_some_and(|frozen| frozen.target.0 == target && frozen.epoch == epoch)
            && *delegate.handle.region() == *source
    };
    if !live.get(&source.id).is_some_and(wanted) {
        let found = live.get(&source.id).map(|delegate| (delegate.handle.region(), delegate.handle.frozen()));
        fatal(format_args!(
            "r{target} at {epoch} takes in {source:?}, which is not frozen for it on this host (found: {found:?}): its \
             data would be lost"
        ));
    }
    buried.insert(source.id);
    live.remove(&source.id).expect("just seen")
}

/// The last of a peer whose raft snapshot of the target ended it, on the apply thread.
pub(crate) fn put_to_rest(core: &Core, delegate: Option<Delegate>, region: u64, own: Peer, rest: Option<Box<Region>>) {
    if let Some(delegate) = delegate {
        delegate.machine.on_destroyed();
    }
    core.note(region, Note::Buried { region, peer: own.id, buried: true, data: rest });
}
