//! Peers come and go: learners catch up, voters are replaced, with a leader's lease and everything acknowledged intact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use braid_proto::id::{StoreId, Term};
use braid_proto::pb::{Peer, Region};
use raft::eraftpb::{EntryType, MessageType};

use super::cluster::{Cluster, eventually, propose, region};
use super::net::is;
use crate::{ChangeRefused, Outcome, PeerChange, PeerHandle, SplitSpec};

/// Asks for a change of the region as the handle sees it now.
pub fn ask(handle: &PeerHandle, term: Term, change: PeerChange) -> Result<(), ChangeRefused> {
    let (tell, told) = mpsc::channel();
    let epoch = handle.region().region_epoch();
    handle.propose_change(term, epoch, change, Box::new(move |ended| _ = tell.send(ended)));
    told.recv().unwrap()
}

pub fn voters(promote: &[u64], demote: &[u64]) -> PeerChange {
    let stores = |hosts: &[u64]| hosts.iter().copied().map(StoreId).collect();
    PeerChange::Voters { promote: stores(promote), demote: stores(demote) }
}

impl Cluster {
    /// Has whoever leads make the change, as soon as it can be made.
    pub fn change(&self, id: u64, change: &PeerChange) {
        eventually(&format!("{change:?} of r{id}"), || {
            let (_, handle, term) = self.leader(id);
            match ask(&handle, term, change.clone()) {
                Ok(()) => Some(()),
                Err(ChangeRefused::Invalid(why)) => panic!("{change:?}: {why}"),
                Err(_) => None,
            }
        });
    }

    /// Waits until the region as `host` knows it satisfies something.
    pub fn await_region(&self, host: u64, id: u64, what: &str, condition: impl Fn(&Region) -> bool) {
        eventually(&format!("r{id} on {host}: {what}"), || {
            let handle = self.handle(host, id)?;
            condition(&handle.region()).then_some(())
        });
    }

    /// Hands leadership of region 1 to `to`.
    pub fn lead(&self, to: u64) -> (PeerHandle, Term) {
        eventually(&format!("{to} leads"), || {
            let (leader, handle, term) = self.leader(1);
            if leader == to {
                return Some((handle, term));
            }
            let target = handle.region().peer_on(StoreId(to))?.id;
            let (tell, told) = mpsc::channel();
            handle.transfer_leader(term, braid_proto::id::PeerId(target), Box::new(move |ended| _ = tell.send(ended)));
            _ = told.recv().unwrap();
            None
        })
    }
}

/// Three voters and a host without a peer.
fn four() -> Cluster {
    let cluster = Cluster::new(4);
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    cluster
}

#[test]
fn a_learner_catches_up_and_becomes_a_voter() {
    let cluster = four();
    for n in 0..20 {
        cluster.put(1, &format!("k{n}"), "v");
    }
    cluster.change(1, &PeerChange::AddLearner(Peer::learner(24, 4)));
    cluster.await_value(4, "k19", "v");
    cluster.put(1, "by log", "v");
    cluster.await_value(4, "by log", "v");
    let (_, leader, _) = cluster.leader(1);
    eventually("the learner is reported as complete", || {
        leader.report().filter(|report| report.catching_up.is_empty() && report.down_peers.is_empty())
    });
    cluster.change(1, &voters(&[4], &[]));
    cluster.await_region(4, 1, "it votes", |region| region.peers[3] == Peer::voter(24, 4));
    assert_eq!(cluster.handle(4, 1).unwrap().region().region_epoch().conf_ver, 3);
    assert_eq!(cluster.handle(4, 1).unwrap().peer(), Peer::voter(24, 4));
    // Four voters need three: with one of the old ones away the new one counts.
    let mut cluster = cluster;
    let away = if cluster.leader(1).0 == 3 { 2 } else { 3 };
    cluster.stop(away);
    cluster.put(1, "three of four", "v");
    cluster.await_value(4, "three of four", "v");
    // It leads like any other.
    let (handle, term) = cluster.lead(4);
    eventually("a lease", || handle.lease(term).then_some(()));
}
