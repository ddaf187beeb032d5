//! A store as admin answers show it.

use std::collections::BTreeMap;

use braid_proto::id::StoreId;
use braid_proto::pb::{DrainProgress, StoreState};
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::table::{Table, count, size, span};

/// What is known of a store.
#[derive(Clone, Debug, Serialize)]
pub struct StoreView {
    pub id: u64,
    pub name: String,
    /// "up", "disconnected", "down" or "removed".
    pub state: String,
    pub peer_addr: String,
    pub labels: BTreeMap<String, String>,
    pub version: String,
    pub seconds_since_heartbeat: u64,
    /// Its share of replicas and leaders relative to other stores.
    pub weight: f64,
    /// Regions and leaders as the store counts them.
    pub regions: u32,
    pub leaders: u32,
    pub used_bytes: u64,
    pub available_bytes: u64,
    pub capacity_bytes: u64,
    /// Replicas there as leaders of regions report them, and what they add up to.
    pub replicas: u32,
    pub replica_bytes: u64,
    pub ops_per_second: u64,
    pub written_per_second: u64,
    /// Peers on the way to and from here.
    pub receiving: u32,
    pub sending: u32,
    /// Set while it is being emptied.
    pub drain: Option<DrainView>,
}

/// How far a drain is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DrainView {
    pub seconds: u64,
    pub replicas_at_start: u32,
    pub replicas_left: u32,
    pub leaders_left: u32,
    /// Why nothing moves; empty if something does.
    pub waits_for: String,
}

impl From<StoreState> for StoreView {
    fn from(state: StoreState) -> Self {
        let store = state.store.unwrap_or_default();
        let stats = state.stats.unwrap_or_default();
        Self {
            id: store.id,
            name: state.name,
            state: state.state,
            peer_addr: store.peer_addr,
            labels: store.labels.into_iter().collect(),
            version: store.version,
            seconds_since_heartbeat: state.seconds_since_heartbeat,
            weight: state.weight,
            regions: stats.regions,
            leaders: stats.leaders,
            used_bytes: stats.used_bytes,
            available_bytes: stats.available_bytes,
            capacity_bytes: stats.capacity_bytes,
            replicas: state.replicas,
            replica_bytes: state.bytes,
            ops_per_second: state.ops_per_second,
            written_per_second: state.written_per_second,
            receiving: state.receiving,
            sending: state.sending,
            drain: state.drain.map(DrainView::from),
        }
    }
}

impl From<DrainProgress> for DrainView {
    fn from(drain: DrainProgress) -> Self {
        Self {
            seconds: drain.seconds,
            replicas_at_start: drain.replicas_at_start,
            replicas_left: drain.replicas_left,
            leaders_left: drain.leaders_left,
            waits_for: drain.waits_for,
        }
    }
}

impl DrainView {
    /// Nothing is left to be moved.
    pub fn is_done(&self) -> bool {
        self.replicas_left == 0 && self.leaders_left == 0
    }

    /// How much of it is done, 0 to 1.
    pub fn share(&self) -> f64 {
        let (left, all) = (self.replicas_left, self.replicas_at_start.max(self.replicas_left));
        if all == 0 { 1.0 } else { 1.0 - f64::from(left) / f64::from(all) }
    }

    /// How far it is, in a line.
    pub fn shown(&self) -> String {
        if self.is_done() {
            return "empty".to_owned();
        }
        let waits = if self.waits_for.is_empty() { String::new() } else { format!("; waits: {}", self.waits_for) };
        let leaders = count(self.leaders_left.into(), "leader");
        format!("{} of {} replicas left, {leaders}{waits}", self.replicas_left, self.replicas_at_start)
    }
}

impl StoreView {
    /// An empty table of stores.
    pub fn table() -> Table {
        Table::new(&[
            "STORE", "NAME", "STATE", "HEARD", "ADDRESS", "REGIONS", "LEADERS", "USED", "FREE", "WEIGHT", "LABELS",
            "VERSION",
        ])
    }

    /// Adds the store to [`StoreView::table`].
    pub fn row(&self, table: &mut Table) {
        table.row(vec![
            StoreId(self.id).to_string(),
            self.name.clone(),
            self.state(),
            self.heard(),
            self.peer_addr.clone(),
            self.regions.to_string(),
            self.leaders.to_string(),
            size(self.used_bytes),
            size(self.available_bytes),
            self.weight.to_string(),
            self.labels(),
            self.version.clone(),
        ]);
    }

    /// Everything about the store.
    pub fn sheet(&self) -> Table {
        let mut sheet = Table::sheet();
        sheet.say("store", StoreId(self.id));
        sheet.say("name", &self.name);
        sheet.say("state", &self.state);
        sheet.say("last heard", self.heard());
        sheet.say("address", &self.peer_addr);
        sheet.say("version", &self.version);
        sheet.say_lines("labels", self.labels.iter().map(label), "none");
        sheet.say("weight", self.weight);
        sheet.say("disk used", size(self.used_bytes));
        sheet.say("disk free", format_args!("{} of {}", size(self.available_bytes), size(self.capacity_bytes)));
        let leaders = count(self.leaders.into(), "leader");
        sheet.say("regions", format_args!("{}, {leaders}, as the store says", self.regions));
        let replicas = count(self.replicas.into(), "replica");
        sheet.say("replicas", format_args!("{replicas}, {}, as leaders say", size(self.replica_bytes)));
        sheet.say("reads and writes", format_args!("{} per second", self.ops_per_second));
        sheet.say("written", format_args!("{} per second", size(self.written_per_second)));
        sheet.say("peers on the way", format_args!("{} here, {} from here", self.receiving, self.sending));
        match &self.drain {
            None => sheet.say("drain", "none"),
            Some(drain) => sheet.say("drain", format_args!("{} since {}", drain.shown(), span(drain.seconds))),
        }
        sheet
    }

    /// `s3 (name)`.
    pub fn title(&self) -> String {
        format!("{} ({})", StoreId(self.id), self.name)
    }

    fn state(&self) -> String {
        match &self.drain {
            None => self.state.clone(),
            Some(drain) if drain.is_done() => format!("{}, drained", self.state),
            Some(drain) => format!("{}, draining: {} left", self.state, drain.replicas_left),
        }
    }

    fn heard(&self) -> String {
        format!("{} ago", span(self.seconds_since_heartbeat))
    }

    fn labels(&self) -> String {
        self.labels.iter().map(label).collect::<Vec<_>>().join(",")
    }
}

fn label((name, value): (&String, &String)) -> String {
    format!("{name}={value}")
}

/// One store, as `store show` has it.
#[derive(Serialize)]
pub struct StoreShow {
    pub store: StoreView,
}

impl Answer for StoreShow {
    fn text(&self) -> String {
        self.store.sheet().to_string()
    }
}

#[cfg(test)]
pub mod tests {
    use braid_proto::pb::{Store, StoreStats};

    use super::*;

    /// A store of that id with five replicas.
    pub fn store(id: u64, state: &str, drain: Option<DrainProgress>) -> StoreView {
        let labels = [("zone".to_owned(), "a".to_owned()), ("rack".to_owned(), "7".to_owned())];
        StoreView::from(StoreState {
            store: Some(Store {
                id,
                peer_addr: "10.0.0.1:2380".to_owned(),
                labels: labels.into(),
                ..Default::default()
            }),
            stats: Some(StoreStats { capacity_bytes: 1 << 30, regions: 5, leaders: 2, ..Default::default() }),
            state: state.to_owned(),
            weight: 1.5,
            replicas: 5,
            name: format!("store-{id}"),
            drain,
            ..Default::default()
        })
    }

    #[test]
    fn a_store_shows_its_drain() {
        let drain = DrainProgress { replicas_at_start: 8, replicas_left: 2, leaders_left: 1, ..Default::default() };
        let waiting = DrainProgress { waits_for: "the drain scheduler is paused".to_owned(), ..drain.clone() };
        let draining = store(4, "up", Some(drain));
        assert_eq!(draining.state(), "up, draining: 2 left");
        let view = draining.drain.clone().unwrap();
        assert_eq!((view.share(), view.shown().as_str()), (0.75, "2 of 8 replicas left, 1 leader"));
        let waiting = DrainView::from(waiting).shown();
        assert_eq!(waiting, "2 of 8 replicas left, 1 leader; waits: the drain scheduler is paused");
        let empty = DrainProgress { replicas_at_start: 8, ..Default::default() };
        assert_eq!(store(4, "up", Some(empty)).state(), "up, drained");
        let sheet = StoreShow { store: draining }.text();
        assert!(sheet.contains("labels            rack=7\n                  zone=a\n"), "{sheet}");
    }

    #[test]
    fn programs_get_numbers_and_null() {
        let json = serde_json::to_value(StoreShow { store: store(3, "down", None) }).unwrap();
        assert_eq!(json["store"]["weight"], 1.5);
        assert_eq!(json["store"]["labels"]["zone"], "a");
        assert!(json["store"]["drain"].is_null());
        assert_eq!(json["store"]["replicas"], 5);
    }
}
