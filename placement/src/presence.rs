//! Who is alive, as the placement leader has heard: stores and proxies. Memory of one term of leadership.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use braid_proto::id::{Incarnation, StoreId};
use braid_proto::pb::{ProxyMember, StoreHeartbeatRequest, StoreStats};

/// Silence after which a store counts as disconnected: several heartbeats.
pub const DISCONNECTED: Duration = Duration::from_secs(5);
/// Silence after which a store counts as down.
pub const DOWN: Duration = Duration::from_secs(60);
/// Silence after which a proxy is no member any more.
pub const PROXY_GONE: Duration = Duration::from_secs(10);
/// Proxies remembered at once; each restart of one may come with another id.
pub const PROXIES_MAX: usize = 10_000;

/// What a heartbeat of a store came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// What the store leads is known.
    Known,
    /// The store must say everything that it leads next time.
    WantFull,
    /// A later start of the store has been heard: this process must not go on.
    Replaced(Incarnation),
}

#[derive(Debug, Default)]
struct Heard {
    at: Option<Instant>,
    stats: Option<StoreStats>,
    incarnation: u64,
    said_all: bool,
    dropped_below: i64,
}

/// Stores and proxies by their last word.
#[derive(Debug)]
pub struct Presence {
    /// Since when this leader listens: nobody has been silent for longer.
    since: Instant,
    stores: HashMap<StoreId, Heard>,
    proxies: HashMap<u64, (ProxyMember, Instant)>,
}

impl Presence {
    /// A leader that begins to listen.
    pub fn new(now: Instant) -> Self {
        Self { since: now, stores: HashMap::new(), proxies: HashMap::new() }
    }

    /// A store has registered.
    pub fn store_joined(&mut self, id: StoreId, now: Instant) {
        self.stores.entry(id).or_default().at = Some(now);
    }

    /// A store's heartbeat.
    pub fn store_beat(&mut self, beat: &StoreHeartbeatRequest, now: Instant) -> Beat {
        let heard = self.stores.entry(StoreId(beat.store_id)).or_default();
        if beat.incarnation < heard.incarnation {
            return Beat::Replaced(Incarnation(heard.incarnation));
        }
        let same_life = beat.incarnation == heard.incarnation;
        let said_all = beat.full || (same_life && heard.said_all);
        *heard = Heard {
            at: Some(now),
            stats: beat.stats,
            incarnation: beat.incarnation,
            said_all,
            dropped_below: beat.dropped_below,
        };
        if said_all { Beat::Known } else { Beat::WantFull }
    }

    /// What a store last said of itself.
    pub fn stats(&self, store: StoreId) -> Option<StoreStats> {
        self.stores.get(&store).and_then(|heard| heard.stats)
    }

    /// Whether `store` has said that no history below `revision` is on its disk.
    pub fn has_dropped(&self, store: StoreId, revision: i64) -> bool {
        self.stores.get(&store).is_some_and(|heard| heard.dropped_below >= revision)
    }

    /// Whether a store has said everything that it leads.
    pub fn has_said_all(&self, store: StoreId) -> bool {
        self.stores.get(&store).is_some_and(|heard| heard.said_all)
    }

    /// Whether a store has sent a heartbeat in this leader's time.
    pub fn has_beaten(&self, store: StoreId) -> bool {
        self.stores.get(&store).is_some_and(|heard| heard.incarnation != 0)
    }

    /// When a store was heard last in this leader's time.
    pub fn heard_at(&self, store: StoreId) -> Option<Instant> {
        self.stores.get(&store).and_then(|heard| heard.at)
    }

    /// For how long a store has been silent, as far as this leader can tell.
    pub fn silence(&self, store: StoreId, now: Instant) -> Duration {
        let heard = self.stores.get(&store).and_then(|heard| heard.at);
        now.saturating_duration_since(heard.unwrap_or(self.since))
    }

    /// What operators call the state of a store.
    pub fn state(&self, store: StoreId, now: Instant) -> &'static str {
        match self.silence(store, now) {
            silence if silence <= DISCONNECTED => "up",
            silence if silence <= DOWN => "disconnected",
            _ => "down",
        }
    }

    /// Whether a store may be given something to do.
    pub fn is_up(&self, store: StoreId, now: Instant) -> bool {
        self.silence(store, now) <= DISCONNECTED
    }

    /// A proxy's heartbeat.
    pub fn proxy_beat(&mut self, member: ProxyMember, now: Instant) {
        self.proxies.retain(|_, (_, heard)| now.saturating_duration_since(*heard) < PROXY_GONE);
        if self.proxies.len() < PROXIES_MAX || self.proxies.contains_key(&member.member_id) {
            self.proxies.insert(member.member_id, (member, now));
        }
    }

    /// Every live proxy, by id.
    pub fn proxies(&self, now: Instant) -> Vec<ProxyMember> {
        let live = self.proxies.values().filter(|(_, heard)| now.saturating_duration_since(*heard) < PROXY_GONE);
        let mut members: Vec<ProxyMember> = live.map(|(member, _)| member.clone()).collect();
        members.sort_unstable_by_key(|member| member.member_id);
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = StoreId(1);
    const INSTANT: Duration = Duration::from_millis(1);

    fn beat(incarnation: u64, full: bool) -> StoreHeartbeatRequest {
        StoreHeartbeatRequest { store_id: STORE.0, incarnation, full, ..Default::default() }
    }

    #[test]
    fn a_store_that_is_new_or_restarted_must_say_everything() {
        let now = Instant::now();
        let mut presence = Presence::new(now);
        presence.store_joined(STORE, now);
        assert_eq!(presence.store_beat(&beat(1, false), now), Beat::WantFull);
        assert_eq!(presence.store_beat(&beat(1, false), now), Beat::WantFull);
        assert_eq!(presence.store_beat(&beat(1, true), now), Beat::Known);
        assert_eq!(presence.store_beat(&beat(1, false), now), Beat::Known);
        assert_eq!(presence.store_beat(&beat(2, false), now), Beat::WantFull);
        assert_eq!(presence.store_beat(&beat(2, true), now), Beat::Known);
        assert_eq!(presence.store_beat(&beat(1, true), now), Beat::Replaced(Incarnation(2)));
    }

    #[test]
    fn silence_makes_a_store_disconnected_and_then_down() {
        let now = Instant::now();
        let mut presence = Presence::new(now);
        presence.store_beat(&beat(1, true), now + INSTANT);
        let silent_for = |silence| presence.state(STORE, now + INSTANT + silence);
        assert_eq!(silent_for(DISCONNECTED), "up");
        assert_eq!(silent_for(DISCONNECTED + INSTANT), "disconnected");
        assert_eq!(silent_for(DOWN), "disconnected");
        assert_eq!(silent_for(DOWN + INSTANT), "down");
        assert!(presence.is_up(STORE, now));
        assert!(!presence.is_up(STORE, now + DOWN));
    }

    #[test]
    fn a_store_that_this_leader_never_heard_counts_from_the_leaders_beginning() {
        let now = Instant::now();
        let presence = Presence::new(now);
        assert_eq!(presence.state(StoreId(2), now), "up");
        assert_eq!(presence.state(StoreId(2), now + DOWN), "disconnected");
        assert_eq!(presence.silence(StoreId(2), now + DOWN), DOWN);
    }

    #[test]
    fn silent_proxies_are_no_members_and_their_number_is_bounded() {
        let now = Instant::now();
        let mut presence = Presence::new(now);
        for member_id in (1..=PROXIES_MAX as u64 + 5).rev() {
            presence.proxy_beat(ProxyMember { member_id, ..Default::default() }, now);
        }
        let members = presence.proxies(now);
        assert_eq!(members.len(), PROXIES_MAX);
        assert!(members.is_sorted_by_key(|member| member.member_id));
        assert_eq!(presence.proxies(now + PROXY_GONE).len(), 0);
    }
}
