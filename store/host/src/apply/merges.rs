//! Host entries that freeze, thaw, merge and bump regions: what they make of a region is `merge`'s to say, what this host
//! keeps for them `absorb`'s.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_proto::pb::Region;
use prost::Message as _;
use rocksdb::WriteBatch;

use super::{Delegate, Host};
use crate::Outcome;
use crate::absorb::take_source;
use crate::error::fatal;
use crate::host::Core;
use crate::lease::LeaseBasis;
use crate::mail::Note;
use crate::merge::{Frozen, absorbed, bumped, frozen, merged, thawed};
use crate::meta::{Admin, Key, Merge, RegionState};

impl Delegate {
    /// Applies such an entry, whose index is the applied one. The outcome; None: this peer has ended meanwhile.
    pub(super) fn apply_merge(&mut self, core: &Arc<Core>, admin: &Admin, host: &mut Host) -> Option<Outcome> {
        let (region, state) = (self.handle.region(), self.handle.frozen());
        let done = match admin {
            Admin::Freeze(freeze) => frozen(&region, state, freeze)
                .map(|(region, frozen)| self.reshape(core, region, Some(frozen)).then(|| self.tell_frozen())),
            Admin::Thaw(thaw) => {
                thawed(&region, state, thaw).map(|region| self.reshape(core, region, None).then(|| self.tell_frozen()))
            }
            Admin::Bump(bump) => {
                bumped(&region, state, bump).map(|region| self.reshape(core, region, None).then_some(()))
            }
            Admin::Merge(merge) => merged(&region, state, merge).map(|whole| {
                self.merge(core, merge, whole, host);
                Some(())
            }),
            Admin::Compact(_) | Admin::Split(_) | Admin::Change(_) => unreachable!("applied elsewhere"),
        };
        match done {
            Ok(Some(())) => Some(Outcome::Applied),
            Ok(None) => None,
            Err(why) => {
                let index = self.state.applied_index;
                tracing::info!(region = region.id, index, why, ?admin, "step of a merge refused at apply");
                self.write_state(core);
                Some(Outcome::Dropped)
            }
        }
    }

    /// The machine learns what it is frozen for, or that it is not any more.
    pub(super) fn tell_frozen(&self) {
        self.machine.on_frozen(self.handle.frozen().as_ref());
    }

    /// The region gets another version, and is frozen or not. False: a raft snapshot of its target has ended this peer.
    fn reshape(&self, core: &Core, region: Region, frozen: Option<Frozen>) -> bool {
        let mut batch = WriteBatch::new();
        let mut state = RegionState::normal(region.clone(), &self.handle.0.absorbed());
        state.frozen = frozen.map(Into::into);
        batch.put_cf(core.cf_host(), Key::RegionState(region.id).encode(), state.encode_to_vec());
        self.put_state(core, &mut batch);
        {
            // Held over the write: who ends this peer does it under the lock, and writes over it afterwards.
            let mut table = core.table.lock();
            let shared = &self.handle.0;
            if shared.gone.load(Ordering::Acquire) {
                return false;
            }
            core.write_host(batch, true);
            // CRASH: the freeze is durable and nobody has heard of it. Safe: it is found at the start.
            shared.region.store(Arc::new(region.clone()));
            shared.frozen.store(frozen.map(Arc::new));
            table.put(region.clone(), self.handle.clone());
        }
        tracing::info!(region = region.id, epoch = %region.region_epoch(), ?frozen, "region reshaped");
        self.publish_applied();
        self.machine.on_region(&region);
        true
    }

    /// The region takes in its neighbour, whose peer here ends.
    fn merge(&mut self, core: &Arc<Core>, merge: &Merge, whole: Region, host: &mut Host) {
        let source = merge.source.as_ref().expect("judged");
        let target = self.handle.region();
        let ended = take_source(&mut host.live, &mut host.buried, target.id, merge.epoch.unwrap_or_default(), source);
        let own = ended.handle.0.peer;
        let absorbed = absorbed(self.handle.0.absorbed(), ended.handle.0.absorbed(), source.id);

        let cf = core.cf_host();
        let mut batch = WriteBatch::new();
        let state = RegionState::normal(whole.clone(), &absorbed);
        batch.put_cf(cf, Key::RegionState(whole.id).encode(), state.encode_to_vec());
        self.put_state(core, &mut batch);
        let tombstone = RegionState::tombstone(source.clone(), own, false);
        batch.put_cf(cf, Key::RegionState(source.id).encode(), tombstone.encode_to_vec());
        batch.delete_cf(cf, Key::ApplyState(source.id).encode());
        batch.delete_cf(cf, Key::SnapshotRaftState(source.id).encode());
        if let Err(why) = core.machine.merge(&core.db, &target, source, &mut batch) {
            fatal(format_args!("r{} cannot take in r{}: {why}", target.id, source.id));
        }
        core.write_host(batch, true);
        // CRASH: the merge is durable, the log of the source is there. Safe: its tombstone has no data, the start-up cleans
        // the log.
        {
            let mut table = core.table.lock();
            ended.handle.0.gone.store(true, Ordering::Release);
            ended.handle.0.basis.store(Arc::new(LeaseBasis::default()));
            table.remove(source.id);
            // A raft snapshot of the source that came too late may be looked at right now.
            table.release(source.id);
            self.handle.0.region.store(Arc::new(whole.clone()));
            self.handle.0.set_absorbed(absorbed);
            table.put(whole.clone(), self.handle.clone());
        }
        self.publish_applied();
        tracing::info!(target = whole.id, source = source.id, epoch = %whole.region_epoch(), "regions merged");
        metrics::counter!("braid_raft_merges_total").increment(1);
        self.machine.on_region(&whole);
        self.machine.on_merged(source, &whole);
        ended.machine.on_destroyed();
        core.note(source.id, Note::Buried { region: source.id, peer: own.id, buried: true, data: None });
        core.refresh_neighbours();
    }
}
