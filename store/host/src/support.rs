//! Store-to-store support: the lease of every region between two hosts rides on one message pair (rule O8).
//!
//! ```text
//!   holder                                             granter
//!   tick(now): request seq 7, sent_at = now  ───────►  on_frame: promise to (holder, its incarnation)
//!                                                                lasts until now + period, then the reply exists
//!   on_frame: until = sent_at + period - margin  ◄───  grant of seq 7
//! ```
//!
//! 1. A granter casts no vote against a leader on the holder while [`SupportTable::promised`] says so.
//! 2. The holder counts from the moment it *sent* the request, the granter from the moment it *received* it, and the
//!    holder takes the margin off: whatever the messages' delays, the holder lets go first.
//! 3. Support may lapse and come back. In the gap the granter was free to vote, so support alone proves nothing about
//!    a region: [`Held::since`] names the start of the present gapless stretch, and a leader's lease stands on a peer
//!    only if that peer's host confirmed the leader, in its term, by answering a message sent at or after `since`
//!    ([`Held::covers`]). Without this a leader that slept through an election would trust support renewed after it.
//! 4. A restart ends everything: frames carry incarnations, a newer one voids the promises made to the older one and
//!    the support held from it.
//!
//! What the host must add: promises live in memory only, so a host casts no vote for one whole period after its start;
//! and it calls [`Now::monotonic`] for `on_frame` after the frame has arrived.
//!
//! Pure but for that one clock: no threads, no sockets; time comes in as `now`. Bounded by the number of hosts ever
//! heard of, and for each by one outstanding request per interval of a period.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use braid_proto::pb;
use parking_lot::{Mutex, RwLock};

use crate::config;

/// A moment on this machine's monotonic clock, in nanoseconds. Means nothing to other machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub u64);

impl Now {
    /// The present moment. Goes on while the machine is suspended, so that a lease does not sleep through its end.
    #[cfg(target_os = "linux")]
    pub fn monotonic() -> Now {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Now(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// The present moment.
    #[cfg(not(target_os = "linux"))]
    pub fn monotonic() -> Now {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        Now(START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64 + 1)
    }

    /// The moment `duration` later.
    pub fn plus(self, duration: Duration) -> Now {
        Now(self.0.saturating_add(duration.as_nanos() as u64))
    }

    /// The moment `duration` earlier, but not before the clock's start.
    pub fn minus(self, duration: Duration) -> Now {
        Now(self.0.saturating_sub(duration.as_nanos() as u64))
    }

    /// Time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Now) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// How long support lasts and how often it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct SupportConfig {
    /// Length of a promise, from the moment the request was received.
    pub period: Duration,
    /// What the holder takes off it, for clocks that run at different rates.
    pub margin: Duration,
    /// Time between two requests to one host. Bounds the requests outstanding: `period / interval + 1`.
    pub interval: Duration,
}

impl Default for SupportConfig {
    fn default() -> Self {
        SupportConfig { period: config::SUPPORT, margin: config::SUPPORT_MARGIN, interval: config::SUPPORT_INTERVAL }
    }
}

/// One gapless stretch of support held from a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Incarnation of the host that supports us.
    pub incarnation: u64,
    /// Support is held without a gap from here (inclusive) ...
    pub since: Now,
    /// ... to here (exclusive). `Now(0)`: not held.
    pub until: Now,
}

impl Held {
    /// Whether support is held at `now` and was without a gap since `confirmed`: the moment at which a leader sent a
    /// message that its peer on that host then answered in the leader's term.
    pub fn covers(&self, confirmed: Now, now: Now) -> bool {
        self.since <= confirmed && now < self.until
    }
}

/// How two hosts stand to each other at one moment: what the peers of a host that sleep rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The other host.
    pub host: u64,
    /// Its incarnation and the start of the gapless stretch, if its support is held.
    pub held: Option<(u64, Now)>,
    /// Which incarnation of it is promised support.
    pub promised: Option<u64>,
}

/// The support held from one host, readable from any thread without a lock.
#[derive(Debug, Default)]
pub struct SupportCell {
    /// Odd while the three words below are being changed. Written under the host's lock only.
    version: AtomicU64,
    incarnation: AtomicU64,
    since: AtomicU64,
    until: AtomicU64,
}

impl SupportCell {
    /// The three words as they stood together at one moment.
    pub fn held(&self) -> Held {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let held = Held {
                incarnation: self.incarnation.load(Ordering::Relaxed),
                since: Now(self.since.load(Ordering::Relaxed)),
                until: Now(self.until.load(Ordering::Relaxed)),
            };
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return held;
            }
            std::hint::spin_loop();
        }
    }

    /// Callers hold the lock of the host's [`Pair`], so there is one writer at a time.
    fn publish(&self, held: Held) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.incarnation.store(held.incarnation, Ordering::Relaxed);
        self.since.store(held.since.0, Ordering::Relaxed);
        self.until.store(held.until.0, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }
}

/// Support of one host, in both directions, with every other host.
#[derive(Debug)]
pub struct SupportTable {
    host_id: u64,
    incarnation: u64,
    config: SupportConfig,
    hosts: RwLock<HashMap<u64, Arc<Host>>>,
}

impl SupportTable {
    /// The table of host `host_id` in this start of its process.
    ///
    /// # Panics
    /// If the margin eats the whole period, or the interval is zero.
    pub fn new(host_id: u64, incarnation: u64, config: SupportConfig) -> Self {
        assert!(config.margin < config.period, "margin {:?} >= period {:?}", config.margin, config.period);
        assert!(!config.interval.is_zero(), "support interval is zero");
        SupportTable { host_id, incarnation, config, hosts: RwLock::default() }
    }

    /// The support held from `host`; the same cell for the life of the table.
    pub fn cell(&self, host: u64) -> Arc<SupportCell> {
        self.host(host).cell.clone()
    }

    /// The newest incarnation that `host` has spoken with; 0: it has not spoken.
    pub fn heard_incarnation(&self, host: u64) -> u64 {
        self.known(host).map_or(0, |host| host.pair.lock().incarnation)
    }

    /// How this host stands to every host it ever heard of or asked, in order of ids.
    pub fn standings(&self, now: Now) -> Vec<Standing> {
        let mut hosts: Vec<(u64, Arc<Host>)> = self.hosts.read().iter().map(|(id, host)| (*id, host.clone())).collect();
        hosts.sort_unstable_by_key(|(id, _)| *id);
        let standing = |(id, host): (u64, Arc<Host>)| {
            let pair = host.pair.lock();
            let held = host.cell.held();
            Standing {
                host: id,
                held: (now < held.until).then_some((held.incarnation, held.since)),
                promised: (now < pair.promised).then_some(pair.incarnation),
            }
        };
        hosts.into_iter().map(standing).collect()
    }

    /// Whether support is held from `host` at `now`.
    pub fn holds(&self, host: u64, now: Now) -> bool {
        self.known(host).is_some_and(|host| now < host.cell.held().until)
    }

    /// When any other host was heard last; `Now(0)`: never. In between this host cannot tell a silent network from a
    /// door of its own that is stuck.
    pub fn heard(&self) -> Now {
        self.hosts.read().values().map(|host| host.pair.lock().heard).max().unwrap_or_default()
    }

    /// The requests that are due, at most one for each of `peers` (this host itself is skipped). Sending happens right
    /// after: `now` becomes the moment from which an answer counts.
    pub fn tick(&self, peers: impl Iterator<Item = u64>, now: Now) -> Vec<(u64, pb::Support)> {
        let others = peers.filter(|&peer| peer != self.host_id);
        others.filter_map(|peer| Some((peer, self.host(peer).pair.lock().request(&self.config, now)?))).collect()
    }

    /// Handles what a frame of `from` says about support and returns the grant to send back, if it asked for one.
    /// `now` was read after the frame arrived. Frames of an older incarnation than one already heard are ignored.
    pub fn on_frame(&self, from: u64, from_incarnation: u64, support: &pb::Support, now: Now) -> Option<pb::Support> {
        let host = self.host(from);
        let mut pair = host.pair.lock();
        if from_incarnation < pair.incarnation {
            return None;
        }
        pair.heard = pair.heard.max(now);
        if from_incarnation > pair.incarnation {
            pair.incarnation = from_incarnation;
            pair.promised = Now(0);
            host.cell.publish(Held { incarnation: from_incarnation, since: Now(0), until: Now(0) });
        }
        if support.grant_seq != 0
            && support.grant_incarnation == self.incarnation
            && let Some(sent_at) = pair.answered(support.grant_seq)
        {
            let granted = Duration::from_millis(support.grant_ms).min(self.config.period);
            host.cell.publish(extend(host.cell.held(), sent_at.plus(granted).minus(self.config.margin), now));
        }
        if support.request_seq == 0 {
            return None;
        }
        // Before the reply exists, and never shortened: a delayed frame may bring an older `now`.
        pair.promised = pair.promised.max(now.plus(self.config.period));
        Some(pb::Support {
            request_seq: 0,
            grant_seq: support.request_seq,
            grant_incarnation: from_incarnation,
            grant_ms: self.config.period.as_millis() as u64,
        })
    }

    /// Whether this host has promised to support `incarnation` of `host` and the promise still holds. While it does,
    /// no peer here votes against a leader on that host.
    pub fn promised(&self, host: u64, incarnation: u64, now: Now) -> bool {
        self.known(host).is_some_and(|host| {
            let pair = host.pair.lock();
            pair.incarnation == incarnation && now < pair.promised
        })
    }

    fn known(&self, host: u64) -> Option<Arc<Host>> {
        self.hosts.read().get(&host).cloned()
    }

    fn host(&self, host: u64) -> Arc<Host> {
        if let Some(known) = self.known(host) {
            return known;
        }
        self.hosts.write().entry(host).or_default().clone()
    }
}

#[derive(Debug, Default)]
struct Host {
    cell: Arc<SupportCell>,
    pair: Mutex<Pair>,
}

/// What is between this host and another one, but for the support held, which is in the cell.
#[derive(Debug, Default)]
struct Pair {
    /// Newest incarnation heard of. Only grows.
    incarnation: u64,
    /// End (exclusive) of the promise to that incarnation. Grows while the incarnation stays.
    promised: Now,
    /// When it was heard last.
    heard: Now,
    /// Newest request sent, 0: none.
    seq: u64,
    /// When it was sent.
    sent_at: Option<Now>,
    /// Requests without an answer that could still give something, oldest first.
    outstanding: VecDeque<(u64, Now)>,
}

impl Pair {
    fn request(&mut self, config: &SupportConfig, now: Now) -> Option<pb::Support> {
        if self.sent_at.is_some_and(|sent_at| now < sent_at.plus(config.interval)) {
            return None;
        }
        while self.outstanding.front().is_some_and(|(_, sent_at)| sent_at.plus(config.period) <= now) {
            self.outstanding.pop_front();
        }
        self.seq += 1;
        self.sent_at = Some(now);
        self.outstanding.push_back((self.seq, now));
        Some(pb::Support { request_seq: self.seq, ..Default::default() })
    }

    /// When request `seq` was sent, once: it and the older ones, which cannot give more, are forgotten.
    fn answered(&mut self, seq: u64) -> Option<Now> {
        let at = self.outstanding.iter().position(|&(outstanding, _)| outstanding == seq)?;
        self.outstanding.drain(..=at).next_back().map(|(_, sent_at)| sent_at)
    }
}

/// `held` after a grant up to `until` arrived at `now`. If the old end has not passed, the granter received the new
/// request before its old promise ended, so there was no gap; otherwise the stretch begins now, because the promise
/// began before the grant arrived.
fn extend(held: Held, until: Now, now: Now) -> Held {
    if until <= now {
        return held;
    }
    let since = if now < held.until { held.since } else { now };
    Held { since, until: until.max(held.until), ..held }
}

#[cfg(test)]
mod tests;
