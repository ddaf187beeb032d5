//! Who is alive, as the placement leader has heard: stores and proxies. Memory only.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use braid_proto::id::StoreId;
use braid_proto::pb::{ProxyMember, StoreHeartbeatRequest, StoreStats};

/// Silence after which a store counts as disconnected: several heartbeats.
pub const DISCONNECTED: Duration = Duration::from_secs(5);
/// Silence after which a store counts as down.
pub const DOWN: Duration = Duration::from_secs(60);
/// Silence after which a proxy is no member any more.
pub const PROXY_GONE: Duration = Duration::from_secs(10);

/// The last heartbeat of a store.
#[derive(Clone, Debug)]
pub struct StorePresence {
    /// What it said.
    pub stats: StoreStats,
    /// When.
    pub heard: Instant,
    incarnation: u64,
}

/// Stores and proxies by their last heartbeat.
#[derive(Debug, Default)]
pub struct Presence {
    stores: HashMap<StoreId, StorePresence>,
    proxies: HashMap<u64, (ProxyMember, Instant)>,
}

impl Presence {
    /// A store's heartbeat. True: what it leads is not fully known yet, it must say everything next time.
    pub fn store(&mut self, beat: &StoreHeartbeatRequest, now: Instant) -> bool {
        let id = StoreId(beat.store_id);
        let known = self.stores.get(&id).is_some_and(|known| known.incarnation == beat.incarnation);
        if !known && !beat.full {
            return true;
        }
        let stats = beat.stats.unwrap_or_default();
        self.stores.insert(id, StorePresence { stats, heard: now, incarnation: beat.incarnation });
        false
    }

    /// A proxy's heartbeat.
    pub fn proxy(&mut self, member: ProxyMember, now: Instant) {
        self.proxies.insert(member.member_id, (member, now));
        self.proxies.retain(|_, (_, heard)| now.duration_since(*heard) < PROXY_GONE);
    }

    /// Every live proxy, by id.
    pub fn proxies(&self, now: Instant) -> Vec<ProxyMember> {
        let live = self.proxies.values().filter(|(_, heard)| now.duration_since(*heard) < PROXY_GONE);
        let mut members: Vec<ProxyMember> = live.map(|(member, _)| member.clone()).collect();
        members.sort_unstable_by_key(|member| member.member_id);
        members
    }

    /// The last heartbeat of `store`.
    pub fn of(&self, store: StoreId) -> Option<&StorePresence> {
        self.stores.get(&store)
    }

    /// What operators call the state of a store.
    pub fn state(&self, store: StoreId, now: Instant) -> &'static str {
        match self.of(store).map(|presence| now.duration_since(presence.heard)) {
            Some(silence) if silence < DISCONNECTED => "up",
            Some(silence) if silence < DOWN => "disconnected",
            _ => "down",
        }
    }

    /// Forgets everything: another term began.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(incarnation: u64, full: bool) -> StoreHeartbeatRequest {
        StoreHeartbeatRequest { store_id: 1, incarnation, full, ..Default::default() }
    }

    #[test]
    fn a_store_that_is_new_or_restarted_must_say_everything() {
        let (mut presence, now) = (Presence::default(), Instant::now());
        assert!(presence.store(&beat(1, false), now));
        assert!(!presence.store(&beat(1, true), now));
        assert!(!presence.store(&beat(1, false), now));
        assert!(presence.store(&beat(2, false), now));
    }

    #[test]
    fn silence_makes_a_store_disconnected_and_then_down() {
        let (mut presence, now) = (Presence::default(), Instant::now());
        presence.store(&beat(1, true), now);
        let id = StoreId(1);
        assert_eq!(presence.state(id, now), "up");
        assert_eq!(presence.state(id, now + DISCONNECTED), "disconnected");
        assert_eq!(presence.state(id, now + DOWN), "down");
        assert_eq!(presence.state(StoreId(2), now), "down");
    }

    #[test]
    fn silent_proxies_are_no_members() {
        let (mut presence, now) = (Presence::default(), Instant::now());
        presence.proxy(ProxyMember { member_id: 7, ..Default::default() }, now);
        assert_eq!(presence.proxies(now).len(), 1);
        assert_eq!(presence.proxies(now + PROXY_GONE).len(), 0);
    }
}
