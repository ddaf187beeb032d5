//! How the leader lets a member take part anew: its old peer is demoted and removed, a learner with a new id is added, and
//! becomes a voter when it has the log.
//!
//! Each step is one change of the group. The leader remembers nothing between requests: what is there, and what the member
//! itself says when it is asked back, tells what is next. So a request that comes late or twice does no harm, and one that was
//! sent by an earlier life of the member, or by somebody else under its name, is seen through.

use std::time::Duration;

use braid_host::{ChangeRefused, PeerChange, PeerHandle};
use braid_proto::id::{StoreId, Term};
use braid_proto::pb::{JoinRequest, JoinResponse, Peer, Region};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::leader::Shared;
use crate::membership::Says;

/// How long one request may go on; the member asks again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries of a change that something stands in the way of.
const PAUSE: Duration = Duration::from_millis(50);
/// Ids of peers that are added later begin here: those that the group begins with are below.
const PEER_IDS_FROM: u64 = 100;

/// What a member needs next.
#[derive(Debug, PartialEq)]
enum Step {
    /// A change of the group.
    Change(PeerChange),
    /// Nothing: its peer was just added, and is this one.
    Added(u64),
    /// Nothing: its peer votes.
    Joined(u64),
}

/// The next step for `member`, which says that its peer is `own` (0: it has none), in the group as it is. `added`: the peer
/// that was added for this request.
fn next(group: &Region, member: StoreId, own: u64, added: u64) -> Step {
    match group.peer_on(member) {
        // Each change of the group has another number, so no id comes twice, and later ones are higher.
        None => {
            let id = PEER_IDS_FROM + group.region_epoch().conf_ver;
            Step::Change(PeerChange::AddLearner(Peer::learner(id, member.0)))
        }
        Some(peer) if peer.id == own && !peer.learner => Step::Joined(own),
        Some(peer) if peer.id == own => Step::Change(PeerChange::Voters { promote: vec![member], demote: Vec::new() }),
        Some(peer) if peer.id == added => Step::Added(added),
        Some(peer) if peer.learner => Step::Change(PeerChange::Remove(member)),
        Some(_) => Step::Change(PeerChange::Voters { promote: Vec::new(), demote: vec![member] }),
    }
}

/// Why a request is not followed, by what the member says when it is asked back.
fn objection(request: &JoinRequest, says: &Says) -> Option<String> {
    match says {
        Err(why) => Some(format!("asked back at its address in --initial-cluster: {why}")),
        Ok(says) if says.peer_id != 0 && says.peer_id != request.peer_id => {
            Some(format!("the member takes part as peer {} and needs no other", says.peer_id))
        }
        Ok(_) => None,
    }
}

/// Brings a member a step further, or to its end. The leader of `term` calls it, one at a time.
pub async fn join(shared: &Shared, term: Term, request: JoinRequest) -> JoinResponse {
    let member = StoreId(request.member_id);
    let waits = |waits: String| JoinResponse { waits, ..Default::default() };
    let Some(handle) = shared.replica.handle() else { return waits("placement's group has not begun".to_owned()) };
    let _one_at_a_time = shared.joining.lock().await;
    if let Some(why) = objection(&request, &shared.ask(member.0).await) {
        return waits(why);
    }
    let deadline = Instant::now() + PATIENCE;
    let mut added = 0;
    loop {
        let group = handle.region();
        let change = match next(&group, member, request.peer_id, added) {
            Step::Added(peer_id) => return JoinResponse { peer_id, ..Default::default() },
            Step::Joined(peer_id) => return JoinResponse { peer_id, joined: true, ..Default::default() },
            Step::Change(change) => change,
        };
        match propose(handle, term, &group, change.clone()).await {
            Ok(()) => {
                tracing::info!(member = format!("{:016x}", member.0), ?change, "placement's group has changed");
                if let PeerChange::AddLearner(peer) = change {
                    added = peer.id;
                }
            }
            Err(ChangeRefused::NotLeader) => return waits("placement's leader has changed".to_owned()),
            Err(why) if Instant::now() >= deadline => return waits(why.to_string()),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn propose(handle: &PeerHandle, term: Term, group: &Region, change: PeerChange) -> Result<(), ChangeRefused> {
    let (tell, told) = oneshot::channel();
    handle.propose_change(term, group.region_epoch(), change, Box::new(move |ended| _ = tell.send(ended)));
    told.await.unwrap_or(Err(ChangeRefused::Unknown))
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::{MemberResponse, RegionEpoch};

    use super::*;

    const MEMBER: StoreId = StoreId(3);

    fn group(conf_ver: u64, last: Option<Peer>) -> Region {
        let mut peers = vec![Peer::voter(1, 1), Peer::voter(2, 2)];
        peers.extend(last);
        Region { id: 1, epoch: Some(RegionEpoch { conf_ver, version: 1 }), peers, ..Default::default() }
    }

    #[test]
    fn the_old_peer_goes_before_the_new_one_comes() {
        let demote = PeerChange::Voters { promote: Vec::new(), demote: vec![MEMBER] };
        assert_eq!(next(&group(1, Some(Peer::voter(3, 3))), MEMBER, 0, 0), Step::Change(demote));
        let removed = Step::Change(PeerChange::Remove(MEMBER));
        assert_eq!(next(&group(2, Some(Peer::learner(3, 3))), MEMBER, 0, 0), removed);
        let added = Step::Change(PeerChange::AddLearner(Peer::learner(103, 3)));
        assert_eq!(next(&group(3, None), MEMBER, 0, 0), added);
        assert_eq!(next(&group(4, Some(Peer::learner(103, 3))), MEMBER, 0, 103), Step::Added(103));
        let promote = PeerChange::Voters { promote: vec![MEMBER], demote: Vec::new() };
        assert_eq!(next(&group(4, Some(Peer::learner(103, 3))), MEMBER, 103, 0), Step::Change(promote));
        assert_eq!(next(&group(5, Some(Peer::voter(103, 3))), MEMBER, 103, 0), Step::Joined(103));
    }

    #[test]
    fn a_folder_that_is_lost_once_more_gets_a_higher_id() {
        let demote = PeerChange::Voters { promote: Vec::new(), demote: vec![MEMBER] };
        assert_eq!(next(&group(5, Some(Peer::voter(103, 3))), MEMBER, 0, 0), Step::Change(demote));
        let added = Step::Change(PeerChange::AddLearner(Peer::learner(107, 3)));
        assert_eq!(next(&group(7, None), MEMBER, 0, 0), added);
        // A learner that nobody has heard of, added by a leader that died.
        let removed = Step::Change(PeerChange::Remove(MEMBER));
        assert_eq!(next(&group(8, Some(Peer::learner(107, 3))), MEMBER, 0, 0), removed);
    }

    #[test]
    fn a_member_that_takes_part_is_not_replaced() {
        let says = |peer_id| Ok(MemberResponse { member_id: 3, peer_id, ..Default::default() });
        let request = |peer_id| JoinRequest { member_id: 3, peer_id, ..Default::default() };
        assert_eq!(objection(&request(0), &says(0)), None);
        assert_eq!(objection(&request(103), &says(0)), None);
        assert_eq!(objection(&request(103), &says(103)), None);
        assert!(objection(&request(0), &says(3)).is_some(), "a late request of an earlier life");
        assert!(objection(&request(103), &says(107)).is_some());
        assert!(objection(&request(0), &Err("no answer".to_owned())).is_some());
    }
}
