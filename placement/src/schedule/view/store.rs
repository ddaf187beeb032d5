//! A store as schedulers see it.

use std::collections::{BTreeMap, BTreeSet};

use braid_proto::id::{RegionId, StoreId};

/// Silence after which a store is not chosen for anything new: two heartbeats, and half a one for delays.
const FRESH_MS: u64 = 2_500;

/// Whether a store is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// It was heard lately.
    #[default]
    Up,
    /// It missed some heartbeats. Nothing is moved for that, and nothing is moved to it.
    Disconnected {
        /// When it was heard last.
        since_ms: u64,
    },
    /// It has been silent for long; when for longer than `store_down_ms_max`, its replicas are rebuilt elsewhere.
    Down {
        /// When it was heard last.
        since_ms: u64,
    },
    /// It will not come back: removed by an operator, or its folder is lost. Its replicas are rebuilt at once.
    Removed,
}

/// A store that is to be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Since when.
    pub since_ms: u64,
    /// Replicas that it held then.
    pub replicas: usize,
    /// Leaders that it had then.
    pub leaders: usize,
}

/// What regions add up to on a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Replicas, learners too.
    pub replicas: u64,
    /// Leaders.
    pub leaders: u64,
    /// Bytes of all replicas; a region counts at least `REGION_BYTES_MIN`.
    pub bytes: u64,
    /// Operations per second of the regions that are led here.
    pub ops: u64,
    /// Bytes written per second to all replicas.
    pub written: u64,
}

/// See the module's page. What it holds is counted from the regions.
#[derive(Clone, Debug)]
pub struct StoreView {
    /// Which store.
    pub id: StoreId,
    /// Its labels, from which its location is read.
    pub labels: BTreeMap<String, String>,
    /// Its share of replicas and leaders relative to other stores; above 0.
    pub weight: f64,
    /// Size of its disk; 0: not heard yet.
    pub capacity_bytes: u64,
    /// What it uses of that.
    pub used_bytes: u64,
    /// What is free.
    pub available_bytes: u64,
    /// Whether it is there.
    pub state: StoreState,
    /// For how long nothing has been heard of it.
    pub silent_ms: u64,
    /// Set while it is to be emptied.
    pub draining: Option<Drain>,
    /// Regions with a peer here.
    pub replicas: BTreeSet<RegionId>,
    /// Regions led from here.
    pub leaders: BTreeSet<RegionId>,
    /// What it holds now.
    pub held: Sums,
    /// What it will hold when all operators have ended well. Balance goes by this, so that it does not move twice.
    pub planned: Sums,
    /// Operators that bring a peer here and are not through with that.
    pub receiving: usize,
    /// Operators that copy a peer from here.
    pub sending: usize,
    /// Until when the bytes that were moved here lately take at the allowed rate.
    pub paced_until_ms: u64,
    /// One value for each location label: equal for two stores that agree in this label and all before it.
    pub(super) location: Vec<u64>,
}

impl StoreView {
    pub(super) fn new(id: StoreId) -> Self {
        Self {
            id,
            labels: BTreeMap::new(),
            weight: 1.0,
            capacity_bytes: 0,
            used_bytes: 0,
            available_bytes: 0,
            state: StoreState::Up,
            silent_ms: 0,
            draining: None,
            replicas: BTreeSet::new(),
            leaders: BTreeSet::new(),
            held: Sums::default(),
            planned: Sums::default(),
            receiving: 0,
            sending: 0,
            paced_until_ms: 0,
            location: Vec::new(),
        }
    }

    /// Whether it is heard.
    pub fn is_up(&self) -> bool {
        self.state == StoreState::Up
    }

    /// Whether it is heard, or was not long ago.
    pub fn may_come_back(&self) -> bool {
        matches!(self.state, StoreState::Up | StoreState::Disconnected { .. })
    }

    /// Whether it may be given leaders and replicas, apart from limits and space.
    pub fn is_in_service(&self) -> bool {
        self.is_up() && self.draining.is_none()
    }

    /// Whether its last heartbeats have come. Long before a store counts as disconnected it is not chosen for anything
    /// new: what is begun with a store that has just died takes its whole patience to fail.
    pub fn is_fresh(&self) -> bool {
        self.is_up() && self.silent_ms <= FRESH_MS
    }

    /// Whether its replicas are to be rebuilt elsewhere.
    pub fn is_lost(&self, now_ms: u64, store_down_ms_max: u64) -> bool {
        match self.state {
            StoreState::Up => false,
            // Whoever is to be emptied anyway is not waited for.
            StoreState::Down { .. } if self.draining.is_some() => true,
            StoreState::Disconnected { since_ms } | StoreState::Down { since_ms } => {
                now_ms.saturating_sub(since_ms) > store_down_ms_max
            }
            StoreState::Removed => true,
        }
    }

    /// Planned bytes for each unit of weight.
    pub fn fill(&self) -> f64 {
        self.planned.bytes as f64 / self.weight
    }

    /// Planned leaders for each unit of weight.
    pub fn led(&self) -> f64 {
        self.planned.leaders as f64 / self.weight
    }

    /// Whether so many more bytes leave the reserve free, with what is under way already. A store that has not said how
    /// large it is takes them.
    pub fn has_space(&self, bytes: u64, reserve: f64) -> bool {
        let coming = self.planned.bytes.saturating_sub(self.held.bytes);
        let after = self.available_bytes as f64 - coming as f64 - bytes as f64;
        self.capacity_bytes == 0 || after >= self.capacity_bytes as f64 * reserve
    }
}
