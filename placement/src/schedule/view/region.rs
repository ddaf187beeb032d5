//! A region as schedulers see it: what its leader reported last, and what is under way on it.

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::pb::{Peer, Region};

use super::super::plan::Priority;
use super::View;
use super::store::StoreState;

/// What a region counts at least: also an empty one costs its store something, and empty ones shall be spread.
pub const REGION_BYTES_MIN: u64 = 1 << 20;

/// What a region has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Operations per second at the leader.
    pub ops: u64,
    /// Bytes written per second to each replica.
    pub written: u64,
}

/// A leader's report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegionNews {
    /// Range, peers, epoch.
    pub region: Region,
    /// The leader's peer; invalid: none is known.
    pub leader: PeerId,
    /// Approximate size.
    pub bytes: u64,
    /// Approximate number of keys.
    pub keys: u64,
    /// What it has to do.
    pub load: Load,
    /// Peers that do not answer.
    pub down: Vec<PeerId>,
    /// Peers that answer but have not caught up.
    pub catching_up: Vec<PeerId>,
    /// A change of peers has been begun and not been finished.
    pub joint: bool,
}

/// Where a region will be when its operator has ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Stores of its peers.
    pub stores: Vec<StoreId>,
    /// Who leads; `None`: whoever does now, if it stays.
    pub leader: Option<StoreId>,
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct RegionView {
    /// The last report.
    pub news: RegionNews,
    /// Since when peers do not answer.
    pub down_since: Vec<(PeerId, u64)>,
    /// Since when it has its range.
    pub range_since_ms: u64,
    /// What is under way; nothing else may be begun.
    pub goal: Option<Goal>,
    /// It is left alone until then.
    pub rest_until_ms: u64,
    /// The most urgent of the operators that have failed on it lately. What is more urgent need not wait.
    pub rests_from: Option<Priority>,
    /// Operators that have failed on it since the last that ended well.
    pub failures: u32,
    /// How close its peers are, see `View::crowding`.
    pub crowding: u64,
}

impl RegionView {
    /// Which region.
    pub fn id(&self) -> RegionId {
        self.news.region.region_id()
    }

    /// Its peers.
    pub fn peers(&self) -> &[Peer] {
        &self.news.region.peers
    }

    /// The latest id of its peers. A store remembers the last peer of a region that it gave up, and takes only later ones.
    pub fn newest_peer(&self) -> u64 {
        self.peers().iter().map(|peer| peer.id).max().unwrap_or(0)
    }

    /// Peers that vote.
    pub fn voters(&self) -> impl Iterator<Item = &Peer> + Clone {
        self.peers().iter().filter(|peer| !peer.learner)
    }

    /// Stores of peers that vote.
    pub fn voter_stores(&self) -> Vec<StoreId> {
        self.voters().map(|peer| StoreId(peer.store_id)).collect()
    }

    /// Stores of all peers.
    pub fn stores(&self) -> impl Iterator<Item = StoreId> + '_ {
        self.peers().iter().map(|peer| StoreId(peer.store_id))
    }

    /// The leader's store; invalid if unknown.
    pub fn leader_store(&self) -> StoreId {
        let leader = self.news.region.peer(self.news.leader);
        leader.map_or(StoreId::INVALID, |peer| StoreId(peer.store_id))
    }

    /// What it counts in sums of bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.news.bytes.max(REGION_BYTES_MIN)
    }

    /// Whether a peer answers and has caught up, on a store that is heard.
    pub fn is_well(&self, view: &View, peer: &Peer) -> bool {
        let id = PeerId(peer.id);
        let heard = view.store(StoreId(peer.store_id)).is_some_and(|store| store.state == StoreState::Up);
        heard && !self.news.down.contains(&id) && !self.news.catching_up.contains(&id)
    }

    /// Whether the peer on `store` votes and is well, so that it could lead.
    pub fn can_lead(&self, view: &View, store: StoreId) -> bool {
        self.news.region.peer_on(store).is_some_and(|peer| !peer.learner && self.is_well(view, peer))
    }

    /// Voters that are well.
    pub fn voters_well(&self, view: &View) -> usize {
        self.voters().filter(|peer| self.is_well(view, peer)).count()
    }

    /// Voters that make a decision.
    pub fn quorum(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    /// Whether it has a leader, and all its peers are well as far as the report says, learners too.
    pub fn all_well(&self) -> bool {
        let news = &self.news;
        news.leader.is_valid() && !news.joint && news.down.is_empty() && news.catching_up.is_empty()
    }

    /// Whether nothing is to be repaired as far as the report says: a leader, voters only, all of them well.
    pub fn is_calm(&self) -> bool {
        self.all_well() && self.peers().iter().all(|peer| !peer.learner)
    }

    /// Whether it is left alone also by a plan of this priority.
    pub fn rests(&self, priority: Priority, now_ms: u64) -> bool {
        now_ms < self.rest_until_ms && self.rests_from.is_some_and(|failed| failed >= priority)
    }

    /// Whether an operator may be begun that is not urgent.
    pub fn is_free(&self, now_ms: u64) -> bool {
        self.goal.is_none() && now_ms >= self.rest_until_ms && self.news.leader.is_valid() && !self.news.joint
    }

    /// Why an operator that is not urgent may not be begun on it now; `None`: it may, see [`RegionView::is_free`].
    pub fn held(&self, now_ms: u64) -> Option<String> {
        let id = self.id();
        if self.goal.is_some() {
            return Some(format!("an operator is under way on {id}"));
        }
        if now_ms < self.rest_until_ms {
            let (seconds, failures) = ((self.rest_until_ms - now_ms).div_ceil(1_000), self.failures);
            return Some(format!(
                "{id} rests for {seconds} s, because {failures} operators on it have failed: `braid admin operator list \
                 --ended` says how"
            ));
        }
        if !self.news.leader.is_valid() {
            return Some(format!("no leader of {id} is known"));
        }
        self.news.joint.then(|| format!("the voters of {id} are being changed"))
    }

    /// What has to be repaired before it may be moved for mere balance; `None`: nothing.
    pub fn ailment(&self, view: &View, replicas: usize) -> Option<String> {
        let (id, voters) = (self.id(), self.voters().count());
        let ill = self.peers().iter().find(|peer| !self.is_well(view, peer)).map(|peer| {
            let (what, store) = (if peer.learner { "learner" } else { "replica" }, StoreId(peer.store_id));
            let how = match self.news.catching_up.contains(&PeerId(peer.id)) {
                true => "has not caught up",
                false => "does not answer",
            };
            format!("the {what} of {id} on {store} {how}")
        });
        ill.or_else(|| {
            let learner = self.peers().iter().find(|peer| peer.learner)?;
            Some(format!("{id} has a learner left over on {}", StoreId(learner.store_id)))
        })
        .or_else(|| (voters != replicas).then(|| format!("{id} has {voters} of {replicas} replicas")))
    }

    /// Where it counts in planned sums, and who leads there.
    pub(super) fn planned(&self) -> (Vec<StoreId>, StoreId) {
        match &self.goal {
            None => (self.stores().collect(), self.leader_store()),
            Some(goal) => {
                let stays = Some(self.leader_store()).filter(|store| goal.stores.contains(store));
                (goal.stores.clone(), goal.leader.or(stays).unwrap_or(StoreId::INVALID))
            }
        }
    }
}
