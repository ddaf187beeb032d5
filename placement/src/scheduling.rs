//! The schedulers at work: what the leader of a term holds to move regions, and how it is fed.
//!
//! ```text
//!  heartbeats, answers ──► Memory ──► RegionMap                        routes
//!                             └─────► Scheduling ──► Driver ──► Queue ──► carry ──► the region's leader
//!  replicated state ── sync ────────────┘ a tick a second        one an operator     │
//!       stores, weights, labels, drains, settings, pauses                            │
//!                                       ▲                                            │
//!                                       └───────── the region after the order ◄──────┘
//! ```
//!
//! 1. A leader begins with nothing under way. It begins nothing before every store that is up has said everything that
//!    it leads; a store that it has never heard counts as silent since the leader's own beginning.
//! 2. What an operator orders is carried out by a bounded number of calls, one an operator. An answer with the region as
//!    it is now is taken like a report, so that the next step need not wait for a heartbeat. What a store refuses for
//!    good ends the operator; after any other refusal, and silence, the operator orders it again in a moment.
//! 3. A store that is to get its first peer is marked in the replicated state before: its id is spent from then on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::pb::{LonelyPeer, Region, RegionReport};

use crate::leader::Memory;
use crate::presence::{DISCONNECTED, DOWN, Presence};
use crate::regions::Taken;
use crate::schedule::{
    Drain, Driver, Kind, Load, OperatorId, Order, Plan, RegionNews, Scattered, Settings, Step, StoreState, Tally,
};
use crate::state::{self, State};

pub mod balance;
mod carry;
pub mod health;
mod meters;
mod run;
pub mod stock;
pub mod words;

pub use run::run;

/// Between two looks of the schedulers.
const TICK: Duration = Duration::from_secs(1);
/// Lonely peers of one heartbeat that are judged.
const LONELY_MAX: usize = 1_000;

/// What a member's schedulers begin with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Settings where nobody has set another value.
    pub defaults: Settings,
    /// Schedulers that a new cluster begins without.
    pub paused: Vec<String>,
    /// Between two looks of the schedulers.
    pub tick: Duration,
}

impl Setup {
    /// The usual one, for so many replicas of each region.
    pub fn new(replicas: usize) -> Self {
        let mut defaults = Settings::default();
        defaults.config.replicas = replicas;
        Self { defaults, paused: vec![Kind::Merge.name().to_owned()], tick: TICK }
    }
}

/// Orders that wait to be given, at most one of each operator: no more than there may be operators.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Order>,
    /// Operators with an order that waits or is being given.
    busy: BTreeSet<OperatorId>,
}

impl Queue {
    fn push(&mut self, order: Order) {
        // The operator repeats what has no effect.
        if self.busy.insert(order.operator) {
            self.waiting.push_back(order);
        }
    }

    fn done(&mut self, operator: OperatorId) {
        self.busy.remove(&operator);
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Scheduling {
    driver: Driver,
    queue: Queue,
    settings: Settings,
    kept: state::Scheduling,
    /// Every store that is up has said everything.
    ready: bool,
    began: Instant,
    began_ms: u64,
    counted: Tally,
}

impl Scheduling {
    /// A leader that has heard nothing yet.
    ///
    /// # Panics
    /// If the defaults contradict each other.
    pub fn new(setup: &Setup, now: Instant) -> Self {
        let settings = setup.defaults.clone();
        let driver = Driver::new(settings.config.clone(), settings.location_labels.clone())
            .unwrap_or_else(|error| panic!("the default settings cannot be used: {error}"));
        let began_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let (queue, kept, counted) = (Queue::default(), state::Scheduling::default(), Tally::default());
        Self { driver, queue, settings, kept, ready: false, began: now, began_ms, counted }
    }

    /// Milliseconds since 1970 when this leader began, counted on by a clock that nobody sets.
    pub fn now_ms(&self) -> u64 {
        self.began_ms + self.began.elapsed().as_millis() as u64
    }

    /// Operators, schedulers, and what they see.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// What they go by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether enough has been heard to begin anything.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.ready {
            return Ok(());
        }
        let since = self.began.elapsed().as_secs();
        Err(format!(
            "this member leads placement for {since} s and has not heard everything yet; try again in a moment"
        ))
    }

    /// Begins what an operator wants.
    ///
    /// # Errors
    /// Why not.
    pub fn start(&mut self, plan: Plan) -> Result<OperatorId, String> {
        self.ready()?;
        let now_ms = self.now_ms();
        let (id, order) = self.driver.start(plan, now_ms)?;
        order.into_iter().for_each(|order| self.queue.push(order));
        Ok(id)
    }

    /// Ends a region's operator where it stands. Says whether there was one.
    pub fn cancel(&mut self, region: RegionId, why: &str) -> bool {
        let now_ms = self.now_ms();
        self.driver.cancel(region, why, now_ms)
    }

    /// Wants these regions scattered.
    ///
    /// # Errors
    /// Why they cannot be.
    pub fn scatter(&mut self, regions: &[RegionId]) -> Result<Scattered, String> {
        self.ready()?;
        let mut scattered = self.driver.scatter(regions)?;
        if scattered.moving > 0 && self.driver.is_paused(Kind::Scatter) {
            scattered.said += "; nothing begins before `braid admin scheduler resume scatter`";
        }
        Ok(scattered)
    }

    /// Why an order outside an operator must not be given to a region now.
    pub fn busy(&self, region: RegionId) -> Option<String> {
        let merged = |target| self.driver.operators().active().find(|other| other.plan.with == Some(target));
        let operator = self.driver.operators().on(region).or_else(|| merged(region))?;
        Some(format!(
            "{} is under way on {region} ({}); wait for its end or cancel it with `braid admin operator cancel`",
            operator.id, operator.plan.why
        ))
    }

    /// Takes what the replicated state says of stores and settings, and who is up.
    pub fn sync(&mut self, state: &State, presence: &Presence, defaults: &Settings) {
        self.sync_settings(state.scheduling(), defaults);
        let (now, now_ms) = (Instant::now(), self.now_ms());
        for record in state.stores() {
            let id = StoreId(record.store.id);
            let labels = record.labels();
            let known = self.driver.view().store(id);
            let same = known.is_some_and(|known| known.labels == labels && known.weight == record.weight);
            let view = self.driver.view_mut();
            if !same {
                view.put_store(id, labels, record.weight);
            }
            let silence = presence.silence(id, now);
            let since_ms = now_ms.saturating_sub(silence.as_millis() as u64);
            let store_state = match (&record.removed, silence) {
                (Some(_), _) => StoreState::Removed,
                // Who has only registered is given nothing yet.
                (None, silence) if silence <= DISCONNECTED && presence.has_beaten(id) => StoreState::Up,
                (None, silence) if silence <= DOWN => StoreState::Disconnected { since_ms },
                (None, _) => StoreState::Down { since_ms },
            };
            view.set_state(id, store_state);
            view.set_silence(id, silence.as_millis() as u64);
            view.put_drain(id, record.drain.as_ref().map(drain));
            if let Some(stats) = presence.stats(id) {
                view.set_space(id, stats.capacity_bytes, stats.used_bytes, stats.available_bytes);
            }
        }
        let heard = |id| presence.has_said_all(id) || presence.silence(id, now) > DISCONNECTED;
        let mut there = state.stores().filter(|record| record.removed.is_none());
        let ids_at_hand = self.driver.ids_wanted(0) == 0;
        self.ready |= state.regions_started() && ids_at_hand && there.all(|record| heard(StoreId(record.store.id)));
    }

    fn sync_settings(&mut self, kept: &state::Scheduling, defaults: &Settings) {
        if *kept == self.kept {
            return;
        }
        let mut settings = defaults.clone();
        match defaults.with(pairs(&kept.settings)) {
            Ok(all) => settings = all,
            // They were checked when they were set: by a version that knew other names.
            Err(error) => tracing::warn!(error, "the scheduling settings cannot be used; the defaults hold"),
        }
        for kind in Kind::ALL {
            match kept.paused.contains(kind.name()) {
                true => self.driver.pause(kind),
                false => self.driver.resume(kind),
            }
        }
        let configured = self.driver.configure(settings.config.clone());
        configured.unwrap_or_else(|error| panic!("settings that were checked cannot be used: {error}"));
        self.driver.view_mut().set_location_labels(settings.location_labels.clone());
        (self.settings, self.kept) = (settings, kept.clone());
    }

    /// Does what time brings.
    fn tick(&mut self) {
        if self.ready {
            let now_ms = self.now_ms();
            let orders = self.driver.tick(now_ms);
            orders.into_iter().for_each(|order| self.queue.push(order));
        }
    }

    /// The next order to be given, of an operator that is still under way.
    fn next_order(&mut self) -> Option<Order> {
        while let Some(order) = self.queue.waiting.pop_front() {
            if self.driver.operators().under_way(order.operator).is_some() {
                return Some(order);
            }
            self.queue.done(order.operator);
        }
        None
    }

    fn hear(&mut self, news: RegionNews) {
        let now_ms = self.now_ms();
        if let Some(order) = self.driver.report(news, now_ms) {
            self.queue.push(order);
        }
    }

    /// What is known of a region, changed.
    fn change(&mut self, id: RegionId, change: impl FnOnce(&mut RegionNews)) {
        let Some(known) = self.driver.view().region(id) else { return };
        let mut news = known.news.clone();
        change(&mut news);
        self.hear(news);
    }
}

fn pairs(values: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

fn drain(drain: &state::Drain) -> Drain {
    Drain { since_ms: drain.since_ms, replicas: drain.replicas as usize, leaders: drain.leaders as usize }
}

fn news(report: &RegionReport) -> RegionNews {
    let region = report.region.clone().unwrap_or_default();
    RegionNews {
        leader: PeerId(report.leader_peer),
        bytes: report.approximate_bytes,
        keys: report.approximate_keys,
        load: Load { ops: report.ops_per_second, written: report.written_per_second },
        down: report.down_peers.iter().copied().map(PeerId).collect(),
        catching_up: report.catching_up.iter().copied().map(PeerId).collect(),
        joint: region.peers.iter().any(|peer| peer.changing),
        region,
    }
}

/// The region as somebody else than its leader's heartbeat tells it; about its peers nothing is known that was not.
fn renew(news: &mut RegionNews, region: Region) {
    let is_new = |id: PeerId| news.region.peer(id).is_none();
    // Until its leader says otherwise, who is new has nothing yet.
    let added: Vec<PeerId> = region.peers.iter().map(|peer| PeerId(peer.id)).filter(|id| is_new(*id)).collect();
    news.catching_up.extend(added);
    for peers in [&mut news.catching_up, &mut news.down] {
        peers.retain(|id| region.peer(*id).is_some());
    }
    if region.peer(news.leader).is_none() {
        news.leader = PeerId::INVALID;
    }
    news.joint = region.peers.iter().any(|peer| peer.changing);
    news.region = region;
}

impl Memory {
    /// A leader's report.
    pub fn take_report(&mut self, report: RegionReport) -> Taken {
        let news = news(&report);
        let before = self.before(&news.region);
        let taken = self.regions.take(report);
        if taken == Taken::New {
            self.compare(before, &news.region);
            self.scheduling.hear(news);
        }
        taken
    }

    /// What was known of a region whose peers have changed.
    fn before(&self, region: &Region) -> Option<Region> {
        let known = &self.regions.get(region.region_id())?.region;
        (known.region_epoch().conf_ver < region.region_epoch().conf_ver).then(|| known.clone())
    }

    fn compare(&mut self, before: Option<Region>, region: &Region) {
        if let Some(before) = before {
            self.removed.compare(&before, region, Instant::now());
        }
    }

    /// A store has said everything that it leads.
    pub fn take_all_led(&mut self, store: StoreId, reports: &[RegionReport]) {
        let led = reports.iter().filter_map(|report| report.region.as_ref().map(Region::region_id)).collect();
        for lost in self.regions.leads_only(store, &led) {
            let view = self.scheduling.driver.view_mut();
            if view.region(lost).is_some_and(|region| region.leader_store() == store) {
                view.lose_leader(lost);
            }
        }
    }

    /// A store's word about a region, other than its leader's report. Stale also if just that is known already.
    pub fn learn(&mut self, region: Region) -> Taken {
        let before = self.before(&region);
        let taken = self.regions.learn(region.clone());
        if taken == Taken::New {
            self.compare(before, &region);
            self.scheduling.change(region.region_id(), |news| renew(news, region));
        }
        taken
    }

    /// A store's word about who leads a region.
    pub fn learn_leader(&mut self, region: RegionId, leader: PeerId) {
        self.regions.learn_leader(region, leader);
        self.scheduling.change(region, |news| {
            if news.region.peer(leader).is_some() {
                news.leader = leader;
                // Who leads has everything, whatever its predecessor said of it last.
                news.catching_up.retain(|peer| *peer != leader);
                news.down.retain(|peer| *peer != leader);
            }
        });
    }

    /// A region was cut: the leader of the left half stays, and the right half elects the peer on the same store.
    pub fn learn_split(&mut self, left: Region, right: Region) {
        let store = self.regions.get(left.region_id()).map_or(StoreId::INVALID, |known| known.leader_store());
        let leader_peer = right.peer_on(store).map_or(0, |peer| peer.id);
        let whole = self.scheduling.driver.view().region(left.region_id()).map(|region| region.news.clone());
        self.regions.learn(left.clone());
        let report = RegionReport { region: Some(right.clone()), leader_peer, ..RegionReport::default() };
        let taken = self.regions.take(report);
        let Some(whole) = whole else { return };
        let halved = |region: Region| {
            let mut half = whole.clone();
            (half.bytes, half.keys) = (whole.bytes / 2, whole.keys / 2);
            half.load = Load { ops: whole.load.ops / 2, written: whole.load.written / 2 };
            renew(&mut half, region);
            half
        };
        self.scheduling.hear(halved(left));
        if taken == Taken::New {
            let right = RegionNews { leader: PeerId(leader_peer), catching_up: Vec::new(), ..halved(right) };
            self.scheduling.hear(right);
        }
    }

    /// Which of these peers belong to no region any more. A peer that an operator is bringing is nobody's business yet.
    pub fn gone(&self, lonely: Vec<LonelyPeer>) -> Vec<LonelyPeer> {
        let operators = self.scheduling.driver.operators();
        let comes = |peer: &LonelyPeer| {
            let steps = operators.on(RegionId(peer.region_id)).map(|operator| &operator.plan.steps[..]);
            let brings = |step: &Step| matches!(step, Step::AddLearner { peer: added, .. } if added.0 == peer.peer_id);
            steps.unwrap_or_default().iter().any(brings)
        };
        lonely.into_iter().take(LONELY_MAX).filter(|peer| self.regions.is_gone(peer) && !comes(peer)).collect()
    }
}
