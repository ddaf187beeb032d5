//! This proxy's heartbeat to placement, and what comes back: the other proxies, and who leads placement.
//!
//! What clients see as "the cluster's raft group" is placement's: its leader, term and index.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use braid_placement_client::{ClientError, PlacementClient};
use braid_proto::pb::{ProxyHeartbeatRequest, ProxyHeartbeatResponse, ProxyMember};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::ProxyConfig;

/// Between two heartbeats.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long one heartbeat looks for a placement leader.
const PATIENCE: Duration = Duration::from_secs(3);
/// Without an answer for so long, placement counts as leaderless.
const STALE: Duration = Duration::from_secs(5);

/// How long a new stream that wants a leader looks for one.
const LEADER_PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks at whether there is a leader: one election timeout of etcd.
const LEADER_LOOK: Duration = Duration::from_secs(1);
/// So many looks without one end a stream that wants one.
const LEADER_MISSES_MAX: u32 = 3;

/// What placement said last.
#[derive(Clone, Debug)]
pub struct Word {
    /// Every live proxy.
    pub members: Vec<ProxyMember>,
    /// Placement's leader; 0: none.
    pub leader_member: u64,
    /// Placement's raft term. Not 0: clients take 0 for a member that is not part of a cluster.
    pub raft_term: u64,
    /// Placement's applied index.
    pub raft_index: u64,
    heard: Option<Instant>,
}

/// The heartbeat and what it has heard.
pub struct Presence {
    placement: Arc<PlacementClient>,
    request: ProxyHeartbeatRequest,
    word: ArcSwap<Word>,
}

impl Presence {
    /// The presence of the proxy that `config` describes. Until placement answers it knows only itself.
    pub fn new(placement: Arc<PlacementClient>, config: &ProxyConfig) -> Self {
        let request = ProxyHeartbeatRequest {
            cluster_id: config.cluster_id.0,
            member_id: config.member_id,
            name: config.name.clone(),
            client_urls: config.client_urls.clone(),
            peer_urls: config.peer_urls.clone(),
        };
        let myself = ProxyMember {
            member_id: request.member_id,
            name: request.name.clone(),
            client_urls: request.client_urls.clone(),
            peer_urls: request.peer_urls.clone(),
        };
        let word = Word { members: vec![myself], leader_member: 0, raft_term: 1, raft_index: 0, heard: None };
        Self { placement, request, word: ArcSwap::from_pointee(word) }
    }

    /// What placement said last.
    pub fn word(&self) -> Arc<Word> {
        self.word.load_full()
    }

    /// Placement's raft term, for headers.
    pub fn raft_term(&self) -> u64 {
        self.word.load().raft_term
    }

    /// Asks placement now.
    ///
    /// # Errors
    /// Placement did not answer before the deadline.
    pub async fn ask(&self, deadline: Instant) -> Result<Arc<Word>, ClientError> {
        let answer = self.placement.proxy_heartbeat(self.request.clone(), deadline).await?;
        self.word.store(Arc::new(self.take_in(answer)));
        Ok(self.word())
    }

    /// Whether placement has a leader, asked now if there seems to be none.
    pub async fn has_leader(&self) -> bool {
        if self.word().leader() != 0 {
            return true;
        }
        self.ask(Instant::now() + LEADER_PATIENCE).await.is_ok_and(|word| word.leader() != 0)
    }

    /// Ends when placement has had no leader for some looks in a row: then streams of clients that want one end too.
    pub async fn leaderless(&self) {
        let mut looks = tokio::time::interval(LEADER_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut misses = 0;
        while misses < LEADER_MISSES_MAX {
            looks.tick().await;
            misses = if self.word().leader() != 0 { 0 } else { misses + 1 };
        }
    }

    /// Beats until `stop` says so.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if let Err(error) = self.ask(Instant::now() + PATIENCE).await {
                tracing::warn!(%error, "placement did not take the proxy's heartbeat");
            }
        }
    }

    fn take_in(&self, answer: ProxyHeartbeatResponse) -> Word {
        Word {
            members: answer.members,
            leader_member: answer.leader_member,
            raft_term: answer.raft_term.max(1),
            raft_index: answer.raft_index,
            heard: Some(Instant::now()),
        }
    }
}

impl Word {
    /// Placement's leader, if placement has been heard of lately; 0: none.
    pub fn leader(&self) -> u64 {
        let fresh = self.heard.is_some_and(|heard| heard.elapsed() < STALE);
        if fresh { self.leader_member } else { 0 }
    }
}
