//! What schedulers see of the cluster: stores and regions, with the indexes they need. Pure: heartbeats are fed in.
//!
//! 1. A report replaces what was known of its region, unless that was newer; the region's part of every index and sum
//!    is taken out and put in again. A report costs some tree operations however many regions there are.
//! 2. A region that a newer one covers is gone: merged.
//! 3. An operator sets a goal on its region. From then on the region counts in planned sums where it will be.
//!
//! Each store has two sums: what it holds, and what it will hold when all operators have ended well.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use braid_proto::id::{PeerId, RegionId, StoreId};
use bytes::Bytes;

mod index;
mod region;
mod store;
#[cfg(test)]
mod tests;

pub use index::{Index, around};
pub use region::{Goal, Load, REGION_BYTES_MIN, RegionNews, RegionView};
pub use store::{Drain, StoreState, StoreView, Sums};

use super::plan::Priority;
use super::preference::Preference;

/// Location labels that are told apart at most: one byte of the measure of crowding each.
const LOCATION_LABELS_MAX: usize = 7;
/// Smallest weight of a store: anything below would be a store that is drained by mistake.
pub const WEIGHT_MIN: f64 = 0.01;

/// What became of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is what is known now; these regions lie in its range and are gone.
    New {
        /// Merged into it.
        gone: Vec<RegionId>,
    },
    /// Something newer is known of the region or its range.
    Stale,
}

/// See the module's page.
#[derive(Debug)]
pub struct View {
    location_labels: Vec<String>,
    stores: BTreeMap<StoreId, StoreView>,
    regions: BTreeMap<RegionId, RegionView>,
    index: Index,
    preference: Preference,
    /// Regions that are to be somewhere else because an operator wants them scattered.
    pub wishes: BTreeMap<RegionId, Goal>,
    /// How often a region was looked at: that grows with what is to be done, not with the number of regions.
    #[cfg(test)]
    pub looked_at: std::sync::atomic::AtomicU64,
}

impl View {
    /// Nothing yet. `location_labels` from the widest place to the narrowest, for instance zone, rack, host.
    ///
    /// # Panics
    /// With more than seven labels.
    pub fn new(location_labels: Vec<String>) -> Self {
        assert!(location_labels.len() <= LOCATION_LABELS_MAX, "{location_labels:?}: at most {LOCATION_LABELS_MAX}");
        Self {
            location_labels,
            stores: BTreeMap::new(),
            regions: BTreeMap::new(),
            index: Index::default(),
            preference: Preference::default(),
            wishes: BTreeMap::new(),
            #[cfg(test)]
            looked_at: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// The labels that say where a store is, widest first.
    pub fn location_labels(&self) -> &[String] {
        &self.location_labels
    }

    /// One store.
    pub fn store(&self, id: StoreId) -> Option<&StoreView> {
        self.stores.get(&id)
    }

    /// All stores, by id.
    pub fn stores(&self) -> impl Iterator<Item = &StoreView> + Clone {
        self.stores.values()
    }

    /// Stores that may be given something.
    pub fn in_service(&self) -> impl Iterator<Item = &StoreView> + Clone {
        self.stores().filter(|store| store.is_in_service())
    }

    /// One region.
    pub fn region(&self, id: RegionId) -> Option<&RegionView> {
        #[cfg(test)]
        self.looked_at.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.regions.get(&id)
    }

    /// All regions, by id. Not for schedulers.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &RegionView> {
        self.regions.values()
    }

    /// The orders of regions.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Which stores a region prefers.
    pub fn preference(&self) -> &Preference {
        &self.preference
    }

    /// The region that begins where `region` ends.
    pub fn next(&self, region: &RegionView) -> Option<&RegionView> {
        let end = &region.news.region.end;
        let next = self.index.by_start.get(end).filter(|_| !end.is_empty())?;
        self.regions.get(next)
    }

    /// The region that ends where `region` begins.
    pub fn previous(&self, region: &RegionView) -> Option<&RegionView> {
        let start = &region.news.region.start;
        let (_, previous) = self.index.by_start.range::<Bytes, _>(..start).next_back()?;
        self.regions.get(previous).filter(|previous| previous.news.region.end == *start)
    }

    /// A store is known, with its labels and weight; also when they change.
    pub fn put_store(&mut self, id: StoreId, labels: BTreeMap<String, String>, weight: f64) {
        let weight = if weight.is_finite() { weight.max(WEIGHT_MIN) } else { 1.0 };
        let location = self.locate(&labels);
        let before = self.stores.get(&id);
        let moved = before.is_none_or(|store| store.location != location);
        let store = self.stores.entry(id).or_insert_with(|| StoreView::new(id));
        (store.labels, store.weight) = (labels, weight);
        if moved {
            // Rare: a store joins, or an operator labels one.
            self.change_regions_on(id, |view| {
                if let Some(store) = view.stores.get_mut(&id) {
                    store.location = location;
                }
            });
        }
        self.prefer();
    }

    /// What a store says of its disk.
    pub fn set_space(&mut self, id: StoreId, capacity_bytes: u64, used_bytes: u64, available_bytes: u64) {
        if let Some(store) = self.stores.get_mut(&id) {
            (store.capacity_bytes, store.used_bytes, store.available_bytes) =
                (capacity_bytes, used_bytes, available_bytes);
        }
    }

    /// Whether a store is heard.
    pub fn set_state(&mut self, id: StoreId, state: StoreState) {
        let Some(store) = self.stores.get_mut(&id) else { return };
        let gone = (store.state == StoreState::Removed) != (state == StoreState::Removed);
        store.state = state;
        if gone {
            self.prefer();
        }
    }

    /// For how long a store has not been heard.
    pub fn set_silence(&mut self, id: StoreId, silent_ms: u64) {
        if let Some(store) = self.stores.get_mut(&id) {
            store.silent_ms = silent_ms;
        }
    }

    /// Begins or ends the emptying of a store.
    pub fn set_draining(&mut self, id: StoreId, draining: bool, now_ms: u64) {
        let Some(store) = self.stores.get_mut(&id) else { return };
        if store.draining.is_some() == draining {
            return;
        }
        let (replicas, leaders) = (store.replicas.len(), store.leaders.len());
        store.draining = draining.then_some(Drain { since_ms: now_ms, replicas, leaders });
        self.prefer();
    }

    /// A store is being emptied since before this view began, or is not any more.
    pub fn put_drain(&mut self, id: StoreId, drain: Option<Drain>) {
        let Some(store) = self.stores.get_mut(&id).filter(|store| store.draining != drain) else { return };
        store.draining = drain;
        self.prefer();
    }

    /// Other labels say where stores are. Looks at all regions: rare.
    ///
    /// # Panics
    /// With more than seven labels.
    pub fn set_location_labels(&mut self, location_labels: Vec<String>) {
        assert!(location_labels.len() <= LOCATION_LABELS_MAX, "{location_labels:?}: at most {LOCATION_LABELS_MAX}");
        if location_labels == self.location_labels {
            return;
        }
        self.location_labels = location_labels;
        let located: Vec<(StoreId, Vec<u64>)> =
            self.stores.values().map(|store| (store.id, self.locate(&store.labels))).collect();
        let ids: Vec<RegionId> = self.regions.keys().copied().collect();
        let regions: Vec<RegionView> = ids.into_iter().filter_map(|id| self.unlink(id)).collect();
        for (id, location) in located {
            if let Some(store) = self.stores.get_mut(&id) {
                store.location = location;
            }
        }
        for mut region in regions {
            region.crowding = self.crowding(&region.voter_stores());
            self.link(region);
        }
    }

    /// Takes a leader's report.
    pub fn take(&mut self, news: RegionNews, now_ms: u64) -> Taken {
        let (id, range, version) = (news.region.region_id(), news.region.range(), news.region.region_epoch().version);
        let known = self.regions.get(&id);
        if range.is_empty() || known.is_some_and(|known| is_older(&news, known)) {
            return Taken::Stale;
        }
        let from = range.start.clone()..;
        let inside = self.index.by_start.range(from).take_while(|(start, _)| range.contains(start));
        let inside: Vec<RegionId> = inside.map(|(_, inside)| *inside).filter(|inside| *inside != id).collect();
        let version_of = |id: RegionId| self.regions[&id].news.region.region_epoch().version;
        let before = self.index.by_start.range::<Bytes, _>(..&range.start).next_back().map(|(_, before)| *before);
        let before =
            before.filter(|id| self.regions[id].news.region.range().overlaps(&range)).filter(|before| *before != id);
        if inside.iter().copied().chain(before).any(|other| version_of(other) >= version) {
            return Taken::Stale;
        }
        let gone: Vec<RegionId> = inside
            .into_iter()
            .filter(|other| {
                self.regions[other].news.region.range().is_empty()
                    || range.contains_range(&self.regions[other].news.region.range())
            })
            .collect();
        for other in &gone {
            self.forget(*other);
        }
        let old = self.unlink(id);
        let mut region = renewed(old, news, now_ms);
        region.crowding = self.crowding(&region.voter_stores());
        self.link(region);
        Taken::New { gone }
    }

    /// A region is no more.
    pub fn forget(&mut self, id: RegionId) {
        self.unlink(id);
        self.wishes.remove(&id);
    }

    /// Nobody is known to lead a region any more.
    pub fn lose_leader(&mut self, id: RegionId) {
        self.change_region(id, |region| region.news.leader = PeerId::INVALID);
    }

    /// What is under way on a region.
    pub fn set_goal(&mut self, id: RegionId, goal: Option<Goal>) {
        self.change_region(id, |region| region.goal = goal);
    }

    /// An operator on a region ended well.
    pub fn ended_well(&mut self, id: RegionId) {
        if let Some(region) = self.regions.get_mut(&id) {
            (region.failures, region.rests_from) = (0, None);
        }
    }

    /// An operator of this priority on a region failed: the region rests for a while, longer each time.
    pub fn failed(&mut self, id: RegionId, priority: Priority, rest_ms: u64, now_ms: u64) {
        let Some(region) = self.regions.get_mut(&id) else { return };
        if now_ms >= region.rest_until_ms {
            region.rests_from = None;
        }
        region.rests_from = region.rests_from.max(Some(priority));
        region.rest_until_ms = now_ms + (rest_ms << region.failures.min(6));
        region.failures += 1;
    }

    /// What operators use of each store's limits.
    pub(super) fn set_copies(&mut self, copies: &BTreeMap<StoreId, (usize, usize)>) {
        for store in self.stores.values_mut() {
            (store.receiving, store.sending) = copies.get(&store.id).copied().unwrap_or_default();
        }
    }

    /// Bytes begin to move to a store that takes so many per second.
    pub(super) fn pace(&mut self, id: StoreId, bytes: u64, bytes_per_second: u64, now_ms: u64) {
        if let Some(store) = self.stores.get_mut(&id)
            && let Some(takes) = (bytes.saturating_mul(1_000)).checked_div(bytes_per_second)
        {
            store.paced_until_ms = store.paced_until_ms.max(now_ms) + takes;
        }
    }

    /// How close stores are: one byte for each location label, the widest first, with the number of pairs of them that
    /// share this place. Less is better. Stores without a label count as sharing it, as nothing else is known.
    pub fn crowding(&self, stores: &[StoreId]) -> u64 {
        let locations: Vec<&[u64]> =
            stores.iter().map(|id| self.stores.get(id).map_or(&[][..], |store| &store.location[..])).collect();
        let mut sum = 0;
        for (position, one) in locations.iter().enumerate() {
            for other in &locations[..position] {
                sum += self.pair(one, other);
            }
        }
        sum
    }

    /// What one store more adds to the crowding.
    pub fn crowding_added(&self, stores: &[StoreId], added: StoreId) -> u64 {
        let location = |id: &StoreId| self.stores.get(id).map_or(&[][..], |store| &store.location[..]);
        let added = location(&added);
        stores.iter().map(|other| self.pair(location(other), added)).sum()
    }

    fn pair(&self, one: &[u64], other: &[u64]) -> u64 {
        let shares = |level: &usize| one.get(*level).is_some_and(|place| other.get(*level) == Some(place));
        (0..self.location_labels.len()).filter(shares).map(|level| 1 << (8 * (LOCATION_LABELS_MAX - level))).sum()
    }

    fn locate(&self, labels: &BTreeMap<String, String>) -> Vec<u64> {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let mut path: Vec<&str> = Vec::new();
        let places = self.location_labels.iter().map(|label| {
            path.push(labels.get(label).map_or("", String::as_str));
            hasher.hash_one(&path)
        });
        places.collect()
    }

    fn prefer(&mut self) {
        let lasting = self.stores.values().filter(|s| s.draining.is_none() && s.state != StoreState::Removed);
        self.preference.set(lasting.map(|store| (store.id, store.weight)));
    }

    fn change_region(&mut self, id: RegionId, change: impl FnOnce(&mut RegionView)) {
        if let Some(mut region) = self.unlink(id) {
            change(&mut region);
            self.link(region);
        }
    }

    fn change_regions_on(&mut self, store: StoreId, change: impl FnOnce(&mut Self)) {
        let here = |region: &&RegionView| {
            region.stores().chain(region.goal.iter().flat_map(|goal| goal.stores.iter().copied())).any(|id| id == store)
        };
        let ids: Vec<RegionId> = self.regions.values().filter(here).map(RegionView::id).collect();
        // Sums of a store that was unknown do not have these regions, so they are not taken out of it either.
        let regions: Vec<RegionView> = ids.into_iter().filter_map(|id| self.unlink(id)).collect();
        if let Some(store) = self.stores.get_mut(&store) {
            (store.held, store.planned) = (Sums::default(), Sums::default());
        }
        change(self);
        for mut region in regions {
            region.crowding = self.crowding(&region.voter_stores());
            self.link(region);
        }
    }

    fn link(&mut self, region: RegionView) {
        self.index.add(&region);
        self.count(&region, |sum, amount| *sum += amount);
        let (id, leader) = (region.id(), region.leader_store());
        for store in region.stores() {
            if let Some(store) = self.stores.get_mut(&store) {
                store.replicas.insert(id);
            }
        }
        if let Some(store) = self.stores.get_mut(&leader) {
            store.leaders.insert(id);
        }
        self.regions.insert(id, region);
    }

    fn unlink(&mut self, id: RegionId) -> Option<RegionView> {
        let region = self.regions.remove(&id)?;
        self.index.remove(&region);
        self.count(&region, |sum, amount| *sum = sum.saturating_sub(amount));
        for store in region.stores() {
            if let Some(store) = self.stores.get_mut(&store) {
                store.replicas.remove(&id);
                store.leaders.remove(&id);
            }
        }
        Some(region)
    }

    fn count(&mut self, region: &RegionView, add: impl Fn(&mut u64, u64)) {
        let mut count_on = |id: StoreId, planned: bool, leads: bool| {
            let Some(store) = self.stores.get_mut(&id) else { return };
            let sums = if planned { &mut store.planned } else { &mut store.held };
            add(&mut sums.replicas, 1);
            add(&mut sums.bytes, region.weight_bytes());
            add(&mut sums.written, region.news.load.written);
            if leads {
                add(&mut sums.leaders, 1);
                add(&mut sums.ops, region.news.load.ops);
            }
        };
        let leader = region.leader_store();
        region.stores().for_each(|store| count_on(store, false, store == leader));
        let (stores, leader) = region.planned();
        stores.into_iter().for_each(|store| count_on(store, true, store == leader));
    }
}

fn is_older(news: &RegionNews, known: &RegionView) -> bool {
    let (new, old) = (news.region.region_epoch(), known.news.region.region_epoch());
    (new.version, new.conf_ver) < (old.version, old.conf_ver)
}

/// What is known of a region with a new report; what the report does not say is kept.
fn renewed(old: Option<RegionView>, news: RegionNews, now_ms: u64) -> RegionView {
    let since = |peer: &PeerId| {
        let known = old.as_ref().and_then(|old| old.down_since.iter().find(|(id, _)| id == peer));
        (*peer, known.map_or(now_ms, |(_, since)| *since))
    };
    let down_since = news.down.iter().map(since).collect();
    let same_range = old.as_ref().filter(|old| old.news.region.range() == news.region.range());
    let range_since_ms = same_range.map_or(now_ms, |old| old.range_since_ms);
    match old {
        Some(old) => RegionView { news, down_since, range_since_ms, ..old },
        None => RegionView {
            news,
            down_since,
            range_since_ms,
            goal: None,
            rest_until_ms: 0,
            rests_from: None,
            failures: 0,
            crowding: 0,
        },
    }
}
