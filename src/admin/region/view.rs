//! A region as admin answers show it.

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::key::{TAG_LEASE, TAG_USER};
use braid_proto::pb::{Region, RegionState};
use serde::Serialize;

use crate::admin::operator::view::OperatorView;
use crate::admin::table::{Table, size};
use crate::key_text::escape;

/// What a region is: its epoch, keys and peers.
#[derive(Debug, Serialize)]
pub struct RegionShape {
    id: u64,
    conf_ver: u64,
    version: u64,
    start: Bound,
    end: Bound,
    peers: Vec<PeerView>,
}

/// A region with what its leader reports of it.
#[derive(Debug, Serialize)]
pub struct RegionView {
    #[serde(flatten)]
    shape: RegionShape,
    /// Store of its leader, if known.
    leader_store: Option<u64>,
    term: u64,
    approximate_bytes: u64,
    approximate_keys: u64,
    ops_per_second: u64,
    written_per_second: u64,
    /// What is under way on it.
    operator: Option<OperatorView>,
}

#[derive(Debug, Serialize)]
struct PeerView {
    id: u64,
    store: u64,
    learner: bool,
    /// It has not answered for some seconds.
    down: bool,
    /// It answers, but lacks much of the log.
    catching_up: bool,
}

/// One end of a region.
#[derive(Debug, Serialize)]
struct Bound {
    /// The etcd key, `\xNN` for other bytes than printable ASCII; absent where the bound is no etcd key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The internal key in hexadecimal; empty: unbounded.
    internal_hex: String,
    #[serde(skip)]
    shown: String,
}

impl Bound {
    fn new(internal: &[u8], unbounded: &str) -> Self {
        let (key, shown) = match internal {
            [] => (None, unbounded.to_owned()),
            [TAG_USER, key @ ..] => (Some(escape(key)), format!("\"{}\"", escape(key))),
            [TAG_LEASE, lease @ ..] => (None, format!("lease {}", hex(lease))),
            other => (None, format!("internal {}", hex(other))),
        };
        Self { key, internal_hex: hex(internal), shown }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<&Region> for RegionShape {
    fn from(region: &Region) -> Self {
        let epoch = region.region_epoch();
        let peers = region.peers.iter();
        Self {
            id: region.id,
            conf_ver: epoch.conf_ver,
            version: epoch.version,
            start: Bound::new(&region.start, "(first)"),
            end: Bound::new(&region.end, "(last)"),
            peers: peers
                .map(|peer| PeerView {
                    id: peer.id,
                    store: peer.store_id,
                    learner: peer.learner,
                    down: false,
                    catching_up: false,
                })
                .collect(),
        }
    }
}

impl From<&RegionState> for RegionView {
    fn from(state: &RegionState) -> Self {
        let report = state.report.clone().unwrap_or_default();
        let mut shape = RegionShape::from(&report.region.unwrap_or_default());
        for peer in &mut shape.peers {
            peer.down = report.down_peers.contains(&peer.id);
            peer.catching_up = report.catching_up.contains(&peer.id);
        }
        Self {
            shape,
            leader_store: (state.leader_store != 0).then_some(state.leader_store),
            term: report.term,
            approximate_bytes: report.approximate_bytes,
            approximate_keys: report.approximate_keys,
            ops_per_second: report.ops_per_second,
            written_per_second: report.written_per_second,
            operator: state.operator.clone().map(OperatorView::from),
        }
    }
}

impl RegionShape {
    /// An empty table of regions.
    pub fn table() -> Table {
        Table::new(&["REGION", "EPOCH", "START", "END", "PEERS"])
    }

    /// Adds the region to [`RegionShape::table`].
    pub fn row(&self, table: &mut Table) {
        table.row(self.cells());
    }

    fn cells(&self) -> Vec<String> {
        vec![
            RegionId(self.id).to_string(),
            format!("e{}.{}", self.conf_ver, self.version),
            self.start.shown.clone(),
            self.end.shown.clone(),
            self.peers.iter().map(PeerView::shown).collect::<Vec<_>>().join(" "),
        ]
    }
}

impl RegionView {
    /// An empty table of regions with reports.
    pub fn table() -> Table {
        Table::new(&[
            "REGION",
            "EPOCH",
            "START",
            "END",
            "PEERS",
            "LEADER",
            "TERM",
            "SIZE",
            "KEYS",
            "OPS/S",
            "UNDER WAY",
        ])
    }

    /// Adds the region to [`RegionView::table`].
    pub fn row(&self, table: &mut Table) {
        let mut cells = self.shape.cells();
        cells.extend([
            self.leader(),
            format!("t{}", self.term),
            size(self.approximate_bytes),
            self.approximate_keys.to_string(),
            self.ops_per_second.to_string(),
            self.operator.as_ref().map(OperatorView::step).unwrap_or_default(),
        ]);
        table.row(cells);
    }

    /// Everything about the region.
    pub fn sheet(&self) -> Table {
        let (mut sheet, shape) = (Table::sheet(), &self.shape);
        sheet.say("region", RegionId(shape.id));
        sheet.say("epoch", format_args!("e{}.{}", shape.conf_ver, shape.version));
        sheet.say("first key", &shape.start.shown);
        sheet.say("end", &shape.end.shown);
        sheet.say("leader", self.leader());
        sheet.say("term", format_args!("t{}", self.term));
        sheet.say_lines("peers", shape.peers.iter().map(PeerView::shown), "none");
        sheet.say("size", format_args!("about {}", size(self.approximate_bytes)));
        sheet.say("keys", format_args!("about {}", self.approximate_keys));
        sheet.say("reads and writes", format_args!("{} per second", self.ops_per_second));
        sheet.say("written", format_args!("{} per second", size(self.written_per_second)));
        match &self.operator {
            None => sheet.say("under way", "nothing"),
            Some(operator) => operator.on(&mut sheet),
        }
        sheet
    }

    fn leader(&self) -> String {
        self.leader_store.map_or("none".to_owned(), |store| StoreId(store).to_string())
    }
}

impl PeerView {
    fn shown(&self) -> String {
        let learner = if self.learner { ",learner" } else { "" };
        let down = if self.down { ",down" } else { "" };
        let behind = if self.catching_up { ",catching-up" } else { "" };
        format!("{}@{}{learner}{down}{behind}", PeerId(self.id), StoreId(self.store))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_show_etcd_keys_as_such() {
        let shown = |internal: &[u8]| Bound::new(internal, "(first)").shown;
        assert_eq!(shown(b""), "(first)");
        assert_eq!(shown(b"\x20pods/a\x00"), "\"pods/a\\x00\"");
        assert_eq!(shown(b"\x20"), "\"\"");
        assert_eq!(shown(b"\x10\x00\x01"), "lease 0001");
        assert_eq!(shown(b"\x21"), "internal 21");
    }
}
