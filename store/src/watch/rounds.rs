//! Frontiers: how far what is followed has been told (rules F1, F2).
//!
//! A round says one number for the whole store and a lower one for each region that lags. It samples what this process has
//! heard, then looks at the regions: each one's pipeline, then its lease; and it queues the frontier behind the events it
//! covers: those were queued before the pipeline heard of them. A round is made after events, when a proxy asks, and at every
//! tick. Events are not sent before the round that follows them, so that a proxy gets them with the frontier that releases
//! them.
//!
//! Only *restless* regions are looked at. A look that finds nothing in flight and a lease that stands makes a region calm,
//! and it stays so until it is stirred ([`RegionPeer::stir`]) or support from a store around ends:
//!
//! - Before a region asks for a number, takes a lock, begins a barrier or gives up its lease, it stirs. A round that samples
//!   what was heard and then does not find the region among the stirred ones was before that: every number that the region
//!   asks for later is larger.
//! - A calm region's lease rests on support that was held when it was looked at. As long as none of it has had a gap, the
//!   lease stands; when it has, every region is restless.
//!
//! A region that holds a frontier back because of a lock is looked into if a proxy has asked for more: its transaction's
//! primary says whether it may be passed (rule M7).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use braid_host::SupportHeld;
use braid_proto::id::{RegionId, Term};
use braid_proto::pb::{FollowFrontier, RegionFrontier, StoreFrontier};
use braid_store_core::pipeline::not_found;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::Publisher;
use super::feed::{Feed, Follows};
use crate::read;
use crate::region::RegionPeer;

/// Between two frontiers that nothing else asks for.
const TICK: Duration = Duration::from_millis(100);
/// After a round, pause for so many times as long as it took.
const REST: u32 = 8;
/// Rounds shorter than this need no rest.
const SHORT: Duration = Duration::from_micros(50);
/// Rounds over no more regions and follows that read their past are made on the thread that has applied something; others
/// wait for their turn.
const PROMPT_WEIGHT_MAX: usize = 64;

/// What rounds remember. Every followed region is restless, calm, or among those that were stirred since the last round.
#[derive(Default)]
pub struct Rounds {
    /// Regions to be looked at.
    restless: FxHashMap<RegionId, Restless>,
    /// Regions that can promise whatever is heard, as long as `support` is held.
    calm: FxHashSet<RegionId>,
    /// What calm regions' leases rest on.
    support: Option<SupportHeld>,
    /// What the last round promised for calm regions.
    promised: i64,
    /// Counts rounds over all feeds.
    turn: u64,
    /// Regions whose locks are looked into.
    looked_into: FxHashSet<RegionId>,
    /// How many regions, and follows that read their past, the last round looked at.
    weight: usize,
    /// Newest revision of an event that this process had not heard of, and has asked the sequencer about.
    asked_for: i64,
}

/// A region that rounds look at.
struct Restless {
    /// The newest frontier that it could promise.
    promised: i64,
    /// The last round over all feeds that had begun before it became restless.
    since: u64,
}

/// What a round found out about a region.
struct Found {
    frontier: i64,
    /// It can promise whatever is heard until it is stirred.
    calm: bool,
    /// It is held back by locks, as its leader of this term.
    locked: Option<(Arc<RegionPeer>, Term)>,
    /// Its data cannot be read; it led in this term.
    damaged: Option<(Arc<RegionPeer>, Term)>,
}

impl Found {
    fn only(frontier: i64) -> Self {
        Self { frontier, calm: false, locked: None, damaged: None }
    }
}

impl Rounds {
    /// Takes note of the support that is held after what was heard is sampled.
    fn lean_on(&mut self, support: Option<SupportHeld>) {
        if support.is_none() || support != self.support {
            for id in std::mem::take(&mut self.calm) {
                self.restless.insert(id, Restless { promised: self.promised, since: self.turn });
            }
        }
        self.support = support;
    }

    /// Takes in the regions that were stirred.
    fn stirred(&mut self, ids: &[RegionId]) {
        for id in ids {
            let promised = if self.calm.remove(id) { self.promised } else { 0 };
            let restless = self.restless.entry(*id).or_insert(Restless { promised, since: self.turn });
            restless.since = self.turn;
        }
    }
}

/// Makes rounds until `stop` says so.
pub async fn run(publisher: Arc<Publisher>, mut stop: watch::Receiver<bool>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ticked = tokio::select! {
            () = publisher.kicked.notified() => false,
            _ = ticks.tick() => true,
            _ = stop.changed() => return,
        };
        let begun = Instant::now();
        publisher.round(&mut publisher.rounds.lock(), ticked);
        let took = begun.elapsed();
        if took > SHORT {
            tokio::select! {
                () = sleep(took * REST) => {}
                _ = stop.changed() => return,
            }
        }
    }
}

impl Publisher {
    /// Everything that an entry of a region did is queued, and its pipeline knows; or more has been heard of. Says how far
    /// that is, at once if that costs little: what was queued leaves together with the frontier that covers it.
    pub fn applied(self: &Arc<Self>) {
        match self.rounds.try_lock() {
            Some(mut rounds) if rounds.weight <= PROMPT_WEIGHT_MAX => self.round(&mut rounds, false),
            _ => self.kick(),
        }
    }

    /// Says what is new to every feed that waits for it, or, if `all`, to every feed.
    fn round(self: &Arc<Self>, rounds: &mut Rounds, all: bool) {
        let wants = |feed: &&Arc<Feed>| all || feed.owed() > 0 || feed.wants_more();
        let feeds: Vec<Arc<Feed>> = self.feeds.lock().values().filter(wants).map(Arc::clone).collect();
        if feeds.is_empty() {
            return;
        }
        let heard = self.numbers.heard().1;
        let compacted = self.numbers.compacted();
        rounds.lean_on(self.host.get().and_then(Weak::upgrade).and_then(|host| host.support_held()));
        rounds.turn += u64::from(all);
        let mut found: FxHashMap<RegionId, Found> = FxHashMap::default();
        let mut look_into = Vec::new();
        let (mut unheard, mut catching) = (0, 0);
        for feed in feeds {
            let (nudged, owed) = (feed.nudged.load(Ordering::SeqCst), feed.owed());
            unheard = owed.max(unheard);
            let mut follows = feed.follows.lock();
            if follows.regions.is_empty() {
                feed.flush();
                continue;
            }
            // With the feed's follows locked: each of them stirred its region when it was added.
            self.take_stirred(rounds, &mut found);
            let mut lower = Vec::new();
            for (id, region) in restless(&follows, &rounds.restless) {
                let last = rounds.restless.get(&id).map_or(0, |restless| restless.promised);
                let can_rest = rounds.support.is_some();
                let found = found.entry(id).or_insert_with(|| look(last, can_rest, region, heard));
                if found.frontier < heard {
                    lower.push(RegionFrontier { region_id: id.0, revision: found.frontier });
                }
                if found.frontier < nudged.max(owed).min(heard)
                    && let Some((region, term)) = found.locked.take()
                    && rounds.looked_into.insert(id)
                {
                    look_into.push((region, term, nudged.max(owed)));
                }
            }
            let mut catching_up = Vec::new();
            catching += follows.catching_up.len();
            follows.catching_up.retain(|id, follow| {
                let progress = follow.progress.load(Ordering::SeqCst);
                if progress < heard {
                    catching_up.push(FollowFrontier { id: *id, revision: progress });
                }
                progress < i64::MAX
            });
            catching_up.sort_unstable_by_key(|follow| follow.id);
            lower.sort_unstable_by_key(|region| region.region_id);
            let late = catching_up.iter().map(|follow| follow.revision);
            let reached = lower.iter().map(|region| region.revision).chain(late).fold(heard, i64::min);
            if reached >= nudged {
                // Somebody may have asked for more meanwhile.
                _ = feed.nudged.compare_exchange(nudged, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
            let frontier = StoreFrontier { revision: heard, compacted, lower, catching_up };
            if follows.said.as_ref() != Some(&frontier) {
                feed.push_frontier(frontier.clone());
                follows.said = Some(frontier);
            }
            feed.covered(reached);
            feed.flush();
        }
        rounds.weight = found.len() + catching;
        rounds.promised = rounds.promised.max(heard);
        let mut damaged = Vec::new();
        for (id, found) in found {
            damaged.extend(found.damaged);
            if found.calm {
                rounds.restless.remove(&id);
                rounds.calm.insert(id);
            } else if let Some(restless) = rounds.restless.get_mut(&id) {
                restless.promised = restless.promised.max(found.frontier);
                restless.since = rounds.turn;
            }
        }
        if all {
            // Nobody follows what a whole round did not come to. Whoever does later stirs it.
            let turn = rounds.turn;
            rounds.restless.retain(|_, restless| restless.since + 1 >= turn);
        }
        // Without the locks of feeds, which ending a follow takes.
        for (region, term) in damaged {
            region.live().leave(term, &not_found());
        }
        for (region, term, wanted) in look_into {
            self.look_into(region, term, wanted);
        }
        if unheard > heard && (all || rounds.asked_for < unheard) {
            // A part of a transaction over several regions, numbered by another store: this one has not heard of it.
            rounds.asked_for = unheard;
            self.hear();
        }
    }

    /// Moves the regions that were stirred to the restless ones. Those that this round has looked at already stay there.
    fn take_stirred(&self, rounds: &mut Rounds, found: &mut FxHashMap<RegionId, Found>) {
        let ids = {
            let mut stirred = self.stirred.lock();
            for id in &*stirred {
                if let Some(region) = self.region(id.0) {
                    region.looked_at();
                }
            }
            std::mem::take(&mut *stirred)
        };
        rounds.stirred(&ids);
        for id in ids {
            if let Some(found) = found.get_mut(&id) {
                found.calm = false;
            }
        }
    }

    /// Finds out about the locks that hold a region's frontier back.
    fn look_into(self: &Arc<Self>, region: Arc<RegionPeer>, term: Term, wanted: i64) {
        let publisher = Arc::clone(self);
        let runtime = region.shared().runtime.clone();
        runtime.spawn(async move {
            let span = region.handle().region().range();
            // Lost leadership ends the region's follows by itself.
            _ = read::out_of_the_way(&region, &span, (wanted, term), false).await;
            publisher.rounds.lock().looked_into.remove(&region.id());
            publisher.kick();
        });
    }
}

/// The followed regions that are to be looked at.
fn restless<'a>(
    follows: &'a Follows,
    restless: &FxHashMap<RegionId, Restless>,
) -> Vec<(RegionId, &'a Weak<RegionPeer>)> {
    match restless.len() < follows.regions.len() {
        true => restless.keys().filter_map(|id| Some((*id, &follows.regions.get(id)?.0))).collect(),
        false => {
            let followed = follows.regions.iter().filter(|(id, _)| restless.contains_key(id));
            followed.map(|(id, (region, _))| (*id, region)).collect()
        }
    }
}

/// How far a region is, with its lease checked last. `last`: what it has promised already.
fn look(last: i64, can_rest: bool, region: &Weak<RegionPeer>, heard: i64) -> Found {
    let Some(region) = region.upgrade() else { return Found::only(last) };
    let Some((term, frontier, has_locks)) = region.leads_up_to(heard) else {
        return Found::only(last);
    };
    let calm = can_rest && region.is_calm();
    if region.is_damaged() {
        return Found { damaged: Some((region, term)), ..Found::only(last) };
    }
    if !region.handle().lease(term) {
        return Found::only(last);
    }
    let calm = calm && region.handle().lease_stands(term);
    Found { calm, locked: has_locks.then_some((region, term)), ..Found::only(frontier.max(last)) }
}

impl Feed {
    /// Whether its proxy has asked for a frontier that is not said yet.
    fn wants_more(&self) -> bool {
        self.nudged.load(Ordering::SeqCst) > 0
    }
}
