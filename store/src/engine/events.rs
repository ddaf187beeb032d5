//! Past events of a region as a watch shows them: in order of revision and place, with values, page by page.
//!
//! Where the changes come from, cheapest first:
//!
//! | Source | Complete above | Costs by |
//! |---|---|---|
//! | the newest changes in memory (`recent`) | its own mark | changes since, a few thousand at most |
//! | the events on disk | the events mark: the split that made the region | changes since, in the region |
//! | live records and history of the range | the compaction boundary | keys of the range, and their versions |
//!
//! The last one is needed by a watch that was under way before a split and continues in the child later than the child's
//! memory reaches: what happened in its range before is on disk under the parent's id, which may live elsewhere by now.

use std::collections::BinaryHeap;
use std::ops::ControlFlow;

use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use braid_proto::key::{KeyRange, strip_user};
use braid_store_core::record::Record;
use braid_store_core::view::Damaged;
use bytes::Bytes;

use super::changes::{Change, ChangeKind};
use super::key::{self, EVENTS, HISTORY};
use super::region::RegionData;
use super::scan::{Reader, decode_live, superseded_by};
use super::snapshot::Snapshot;
use super::unreadable;

/// Changes of one page, at most.
const PAGE_CHANGES: usize = 4_096;
/// Bytes of keys and values after which a page ends.
const PAGE_BYTES: usize = 1 << 20;

/// A place in a region's past: revision and sub. Everything up to it, inclusive, is known.
pub type Cursor = (i64, u32);

/// One event with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct PastEvent {
    /// Revision of its transaction.
    pub revision: i64,
    /// Its place in it.
    pub sub: u32,
    /// The event.
    pub event: Event,
}

/// What a look into the past found.
#[derive(Debug, PartialEq)]
pub enum Page {
    /// The next events.
    Events {
        /// In order.
        events: Vec<PastEvent>,
        /// Where the next page goes on; `None`: these are all.
        next: Option<Cursor>,
    },
    /// History begins at this revision, and some of what was asked for may be gone.
    Compacted(i64),
}

/// A change with a key of its own. Ordered by place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owned {
    place: Cursor,
    key: Bytes,
    kind: u8,
}

impl RegionData {
    /// This moment, and a revision which no change that is applied later can be at or below.
    ///
    /// # Errors
    /// The data could not be opened.
    pub fn moment(&self) -> Result<(Snapshot, i64), Damaged> {
        self.sound()?;
        let inner = self.inner.read();
        let frontier = inner.frontier();
        Ok((self.snapshot_of(&inner.published), frontier))
    }

    /// What `key` was before the change at `revision`, which is applied; `None` if it was absent or that is compacted.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn before(&self, key: &[u8], revision: i64) -> Result<Option<Record>, Damaged> {
        before(Reader::now(&self.db), key, revision, self.boundary())
    }

    /// Takes over the newest changes that the parent of a split has in memory: those of this region's range are among
    /// them. Called before anything is applied here. Changes nothing where the split happened in an earlier life of the
    /// process.
    pub fn inherit(&self, parent: &RegionData) {
        if !self.newborn {
            return;
        }
        self.inherit_written(parent);
        let theirs = std::sync::Arc::clone(&parent.inner.read().published);
        let mut inner = self.inner.write();
        std::sync::Arc::make_mut(&mut inner.published).recent = theirs.recent.clone();
    }
}

impl Snapshot {
    /// The next events in `range` behind `cursor`, up to revision `upto`.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn past(&self, range: &KeyRange, cursor: Cursor, upto: i64, prev_kv: bool) -> Result<Page, Damaged> {
        let (changes, all) = self.changes_behind(range, cursor, upto)?;
        let boundary = self.boundary();
        if known(cursor) < boundary - 1 {
            return Ok(Page::Compacted(boundary));
        }
        let mut events = Vec::with_capacity(changes.len());
        let mut bytes = 0;
        let last = changes.last().map(|change| change.place);
        let mut next = if all { None } else { last };
        for change in changes {
            let Some(event) = self.event(&change, prev_kv)? else {
                let boundary = self.boundary();
                if change.place.0 < boundary {
                    return Ok(Page::Compacted(boundary));
                }
                return Err(Damaged(format!("the record of {:?} at @{} is missing", change.key, change.place.0)));
            };
            let Some(event) = event else { continue };
            let (revision, sub) = change.place;
            bytes += prost::Message::encoded_len(&event);
            events.push(PastEvent { revision, sub, event });
            if bytes >= PAGE_BYTES && Some(change.place) != last {
                next = Some(change.place);
                break;
            }
        }
        // Values, too, may have gone while they were read (rule C2).
        let boundary = self.boundary();
        if known(cursor) < boundary - 1 { Ok(Page::Compacted(boundary)) } else { Ok(Page::Events { events, next }) }
    }

    /// The event of a change: outer `None` if its value is not there, inner if it is none of user data.
    fn event(&self, change: &Owned, prev_kv: bool) -> Result<Option<Option<Event>>, Damaged> {
        let Some(user) = strip_user(&change.key) else { return Ok(Some(None)) };
        let (revision, sub) = change.place;
        let reader = self.reader();
        let mut event = Event::default();
        if change.kind == ChangeKind::Deleted as u8 {
            event.r#type = EventType::Delete.into();
            event.kv = Some(KeyValue { key: user.clone(), mod_revision: revision, ..KeyValue::default() });
        } else {
            let Some(record) = version(reader, &change.key, revision, sub)? else { return Ok(None) };
            event.kv = Some(shown(user.clone(), record));
        }
        if prev_kv && change.kind != ChangeKind::Created as u8 {
            let found = before(reader, &change.key, revision, self.boundary())?;
            event.prev_kv = found.map(|record| shown(user, record));
        }
        Ok(Some(Some(event)))
    }

    /// The next changes, and whether these are all.
    fn changes_behind(&self, range: &KeyRange, cursor: Cursor, upto: i64) -> Result<(Vec<Owned>, bool), Damaged> {
        let published = self.published();
        let mut found = Lowest::default();
        if published.recent.complete_above() <= known(cursor) {
            _ = published.recent.visit_after(known(cursor), &mut |change| {
                let place = (change.revision, change.sub);
                if place > cursor && place.0 <= upto && range.contains(change.key) {
                    found.add(owned(change));
                }
                ControlFlow::Continue(())
            });
        } else if published.events_mark <= known(cursor) {
            return self.rows_behind(range, cursor, upto);
        } else {
            self.versions_behind(range, cursor, upto, &mut found)?;
        }
        Ok(found.finish())
    }

    fn rows_behind(&self, range: &KeyRange, cursor: Cursor, upto: i64) -> Result<(Vec<Owned>, bool), Damaged> {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        key::event_key(&mut start, self.region(), cursor.0.max(0), cursor.1);
        // Behind every event of the region: revisions never use their highest bit.
        key::event_key(&mut end, self.region(), -1, 0);
        let reader = self.reader();
        let mut options = reader.options();
        options.set_iterate_upper_bound(end);
        let mut rows = reader.db.raw_iterator_cf_opt(reader.family(EVENTS), options);
        rows.seek(start);
        let mut found = Vec::new();
        while let Some((row, value)) = rows.item() {
            let change = Change::decode(row, value)?;
            if change.revision > upto {
                return Ok((found, true));
            }
            if (change.revision, change.sub) > cursor && range.contains(change.key) {
                if found.len() >= PAGE_CHANGES {
                    return Ok((found, false));
                }
                found.push(owned(change));
            }
            rows.next();
        }
        rows.status().map_err(|error| unreadable(EVENTS, &error))?;
        Ok((found, true))
    }

    fn versions_behind(&self, range: &KeyRange, cursor: Cursor, upto: i64, found: &mut Lowest) -> Result<(), Damaged> {
        let range = range.intersect(self.range());
        let wanted = |place: Cursor| place > cursor && place.0 <= upto;
        // Of the row before, which is the next newer version if it is of the same key.
        let (mut newer_key, mut newer) = (Vec::new(), None);
        let walked = self.walk_all(&range, &mut |row| {
            if newer_key != row.key {
                newer_key.clear();
                newer_key.extend_from_slice(row.key);
                newer = None;
            }
            let deleted = row.superseded.0 > 0 && newer != Some(row.superseded);
            if deleted && wanted(row.superseded) {
                found.add(owned_at(row.superseded, ChangeKind::Deleted, row.key));
            }
            if wanted(row.made) {
                let head = braid_store_core::record::Head::decode(row.record)?.0;
                let kind = if head.version == 1 { ChangeKind::Created } else { ChangeKind::Updated };
                found.add(owned_at(row.made, kind, row.key));
            }
            newer = Some(row.made);
            Ok(ControlFlow::Continue(()))
        })?;
        debug_assert!(walked.is_continue(), "nobody stops it");
        Ok(())
    }
}

/// The changes with the lowest places among those added: a page at most.
#[derive(Default)]
struct Lowest {
    heap: BinaryHeap<Owned>,
    dropped: bool,
}

impl Lowest {
    fn add(&mut self, change: Owned) {
        if self.heap.len() >= PAGE_CHANGES {
            self.dropped = true;
            if self.heap.peek().is_some_and(|last| *last <= change) {
                return;
            }
            self.heap.pop();
        }
        self.heap.push(change);
    }

    fn finish(self) -> (Vec<Owned>, bool) {
        (self.heap.into_sorted_vec(), !self.dropped)
    }
}

/// The newest revision that lies before the cursor as a whole.
pub fn known(cursor: Cursor) -> i64 {
    if cursor.1 == u32::MAX { cursor.0 } else { cursor.0 - 1 }
}

fn owned(change: Change<'_>) -> Owned {
    owned_at((change.revision, change.sub), change.kind, change.key)
}

fn owned_at(place: Cursor, kind: ChangeKind, key: &[u8]) -> Owned {
    Owned { place, key: Bytes::copy_from_slice(key), kind: kind as u8 }
}

/// The record that the put at (`revision`, `sub`) made.
fn version(reader: Reader<'_>, key: &[u8], revision: i64, sub: u32) -> Result<Option<Record>, Damaged> {
    if let Some(value) = reader.live(key)? {
        let live = decode_live(key, &value)?;
        if live.head.mod_revision == revision {
            return Record::decode(live.record).map(Some);
        }
    }
    let mut row = Vec::new();
    key::history_key(&mut row, key, revision, sub);
    let found = reader.db.get_pinned_cf_opt(reader.family(HISTORY), &row, &reader.options());
    let Some(value) = found.map_err(|error| unreadable(HISTORY, &error))? else { return Ok(None) };
    let mut record = &value[..];
    superseded_by(&mut record)
        .ok_or_else(|| Damaged(format!("the version of {key:02x?} at @{revision} has no end")))?;
    Record::decode(record).map(Some)
}

/// What `key` was just before `revision`, as far as reads at that revision are still allowed.
fn before(reader: Reader<'_>, key: &[u8], revision: i64, boundary: i64) -> Result<Option<Record>, Damaged> {
    if revision - 1 < boundary {
        return Ok(None);
    }
    reader.version_at(key, revision - 1)
}

/// A record as clients see it.
pub fn shown(key: Bytes, record: Record) -> KeyValue {
    let Record { create_revision, mod_revision, version, lease, value } = record;
    KeyValue { key, create_revision, mod_revision, version, value, lease }
}
