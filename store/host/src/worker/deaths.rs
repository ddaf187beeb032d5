//! How peers leave a worker: given up here, buried by the apply thread, then their log cleaned here and their data deleted
//! by a helper (see `destroy`).

use braid_proto::pb::Region;

use super::{ApplyTask, HelperTask, Letter, LogOp, Worker, fatal};
use crate::log::LogWrite;

impl Worker {
    /// Whether `letter` shows that the peer here was removed: it says so, or is for a later peer of the region. True: the
    /// letter has done its duty.
    pub(super) fn is_removed(&mut self, letter: &Letter) -> bool {
        let Some(peer) = self.peers.get(&letter.region) else { return false };
        let own = peer.peer_id();
        if (letter.gone && letter.to.id == own) || letter.to.id > own {
            return self.condemn(letter.region, own, letter.conf_ver());
        }
        false
    }

    /// Gives up the peer if its configuration is older than `conf_ver`.
    pub(super) fn condemn(&mut self, region: u64, peer: u64, conf_ver: u64) -> bool {
        let Some(live) = self.peers.get_mut(&region).filter(|live| live.peer_id() == peer) else { return false };
        if self.core.is_kept(&live.handle) {
            return false;
        }
        let condemned = live.condemn(conf_ver);
        if condemned {
            let own = live.handle.0.peer;
            self.core.apply_later(ApplyTask::Bury { region, own });
        }
        condemned
    }

    pub(super) fn condemn_by_placement(&mut self, region: u64, peer: u64, conf_ver: u64) {
        let Some(live) = self.peers.get_mut(&region).filter(|live| live.peer_id() == peer) else { return };
        if self.core.is_kept(&live.handle) {
            return;
        }
        if live.condemn_by_placement(conf_ver) {
            let own = live.handle.0.peer;
            self.core.apply_later(ApplyTask::Bury { region, own });
        }
    }

    /// The tombstone is durable, or the peer stays after all.
    pub(super) fn on_buried(&mut self, region: u64, peer: u64, buried: bool, data: Option<Box<Region>>) {
        let Some(live) = self.peers.get_mut(&region).filter(|live| live.peer_id() == peer) else { return };
        if !buried {
            return live.pardon();
        }
        let own = live.handle.0.peer;
        live.abandon();
        self.peers.remove(&region);
        self.dirty.remove(&region);
        self.awake.remove(&region);
        self.compactions.retain(|(id, _)| *id != region);
        self.core.blanks.lock().remove(&region);
        let mut write = LogWrite::default();
        write.push(region, LogOp::Clean);
        if let Err(error) = self.core.log.write(write, true) {
            fatal(format_args!("the raft log cannot be written: {error}"));
        }
        // CRASH: the log is gone, the data is not. Safe: the tombstone says that it has to go.
        if let Some(data) = data {
            self.dying.insert(region);
            self.core.help(HelperTask::Clear { region: data, own });
        }
    }
}
