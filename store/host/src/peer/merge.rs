//! The steps of a merge as a leader is asked for them (see [`crate::merge`]). What they ask of other peers of this host,
//! the worker has looked at before (`absorb`).

use super::Peer;
use crate::change::{ChangeRefused, Changed};
use crate::mail::Reshape;
use crate::merge::{bumped, frozen, merged, thawed};
use crate::meta::{Admin, Bump, Freeze, Merge, Thaw};
use crate::support::Now;
use crate::{Done, Outcome};

impl Peer {
    pub(super) fn propose_reshape(&mut self, term: u64, reshape: &Reshape, done: Changed, now: Now) {
        let entry = match self.judge_reshape(term, reshape) {
            Ok(entry) => entry,
            Err(refused) => {
                tracing::info!(region = self.region_id(), ?reshape, %refused, "step of a merge refused");
                return done(Err(refused));
            }
        };
        let freezes = matches!(entry, Admin::Freeze(_));
        if freezes {
            // Before anything of it leaves: the lease ends with the freeze, as with a split.
            self.splitting = true;
            self.lease.cap = Some(self.lease.until().min(now));
            self.publish_lease();
        }
        let told: Done = Box::new(move |outcome| {
            done(match outcome {
                Outcome::Applied => Ok(()),
                Outcome::Dropped => {
                    Err(ChangeRefused::NotNow("another leader, or another change, was first".to_owned()))
                }
                Outcome::Unknown => Err(ChangeRefused::Unknown),
            });
        });
        let appended = self.append_admin(&entry, Some(told));
        if freezes && appended.is_ok() {
            self.freezing = self.raw.raft.raft_log.last_index();
        }
        if let Err(told) = appended {
            if freezes {
                self.splitting = false;
                self.lease.cap = None;
                self.publish_lease();
            }
            if let Some(told) = told {
                told(Outcome::Dropped);
            }
        }
    }

    /// The entry for a step, or why it is not proposed.
    fn judge_reshape(&self, term: u64, reshape: &Reshape) -> Result<Admin, ChangeRefused> {
        if !self.leads(term) {
            return Err(ChangeRefused::NotLeader);
        }
        let not_now = |why: String| ChangeRefused::NotNow(why);
        if !self.settled() {
            return Err(not_now("the first entry of the term is not applied yet".to_owned()));
        }
        let (region, state) = (self.handle.region(), self.handle.frozen());
        let epoch = region.region_epoch();
        let busy = self.splitting
            || self.transfer.is_some()
            || self.proposals.is_waiting()
            || self.raw.raft.has_pending_conf()
            || region.is_joint();
        let begins = matches!(reshape, Reshape::Freeze(_) | Reshape::Merge(_));
        if begins && busy {
            return Err(not_now("a split, a change of peers or a transfer is under way, or proposals wait".to_owned()));
        }
        match reshape {
            Reshape::Freeze(target) => {
                let (conf_ver, version) = (epoch.conf_ver, epoch.version);
                let entry = Freeze { conf_ver, version, target: Some(target.clone()) };
                frozen(&region, state, &entry).map_err(ChangeRefused::Invalid)?;
                Ok(Admin::Freeze(entry))
            }
            Reshape::Thaw(proof) => {
                let entry = Thaw { proof: Some(proof.clone()) };
                thawed(&region, state, &entry).map_err(not_now)?;
                Ok(Admin::Thaw(entry))
            }
            Reshape::Merge(source) => {
                let entry = Merge { epoch: Some(epoch), source: Some(source.clone()) };
                merged(&region, state, &entry).map_err(ChangeRefused::Invalid)?;
                Ok(Admin::Merge(entry))
            }
            Reshape::Bump(at) if *at != epoch => Err(ChangeRefused::Epoch),
            Reshape::Bump(at) => {
                let entry = Bump { epoch: Some(*at) };
                bumped(&region, state, &entry).map_err(not_now)?;
                Ok(Admin::Bump(entry))
            }
        }
    }
}
