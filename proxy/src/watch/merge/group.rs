//! One watched range: the pieces that tile it, the events that wait for its frontier, and those that hear them.
//!
//! - The pieces are disjoint, in key order, and cover the range (F3). Each has a frontier of its own; that of the group
//!   is the least, and never goes back.
//! - Events wait by revision until the frontier reaches them (H18), and are known by (revision, sub-revision, key), so
//!   what a piece says again after it was followed again is dropped (F4).
//! - What members that are behind have not taken yet lies in the backlog, for as long as it is small.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use braid_proto::etcd::mvccpb::Event;
use braid_proto::id::{RegionId, StoreId};
use braid_proto::key::{KeyRange, TAG_USER};
use braid_proto::pb::RegionEvent;
use rustc_hash::FxHashMap;

use super::stream::Stream;
use super::{Limits, Receiver, SubscriptionId};
use crate::watch::batch::{Batch, Moment};

/// Groups with more pieces keep a summary of where these are.
const SUMMARY_FROM: usize = 16;
/// What an event takes beside its keys and values.
const EVENT_BYTES: usize = 128;
/// Revisions, and about so many bytes, that are told together.
const BATCH_REVISIONS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;

/// One part of a group's range, in one region.
#[derive(Debug)]
pub struct Piece {
    /// Names the present attempt to follow it; on its store's stream too.
    pub id: u64,
    /// Its part of the range.
    pub range: KeyRange,
    /// Inclusive. All events up to here have been said. What a store's frontier adds is not yet in it.
    pub frontier: i64,
    /// How often in a row following it has failed.
    pub attempt: u32,
    /// Where it is followed.
    pub place: Place,
}

/// Where a piece is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A store is being looked for.
    Nowhere,
    /// It was ahead while too many events waited; it goes on when the others have come up.
    Paused,
    /// The store has been asked.
    Asked {
        /// Which.
        store: StoreId,
        /// For what it holds of this region.
        region: RegionId,
    },
    /// The store tells.
    Joined {
        /// Which.
        store: StoreId,
        /// What it holds of this region.
        region: RegionId,
        /// How many frontiers the store had said before: none of them counts (F2).
        since: u64,
    },
}

impl Place {
    /// Whether nobody tells, though somebody should.
    fn is_silent(self) -> bool {
        matches!(self, Place::Nowhere | Place::Asked { .. })
    }

    /// The store that was asked, or tells.
    pub fn store(self) -> Option<StoreId> {
        match self {
            Place::Nowhere | Place::Paused => None,
            Place::Asked { store, .. } | Place::Joined { store, .. } => Some(store),
        }
    }
}

impl Piece {
    /// Whether the last frontier of its store counts for it.
    pub fn is_settled(&self, streams: &FxHashMap<StoreId, Stream>) -> bool {
        match self.place {
            Place::Joined { store, since, .. } => streams.get(&store).is_some_and(|stream| stream.count > since),
            _ => false,
        }
    }

    /// Its frontier with what its store's says.
    pub fn reached(&self, streams: &FxHashMap<StoreId, Stream>) -> i64 {
        match self.place {
            Place::Joined { store, region, since } => match streams.get(&store) {
                Some(stream) if stream.count > since => self.frontier.max(stream.frontier_of(region, self.id)),
                _ => self.frontier,
            },
            _ => self.frontier,
        }
    }
}

/// An event that waits.
#[derive(Debug)]
struct Held {
    sub: u32,
    event: Event,
}

/// A subscription in a group.
pub struct Member {
    /// Its name.
    pub id: SubscriptionId,
    /// First revision that it has not taken and wants.
    pub next: i64,
    /// Its receiver had no room; `next` is in the backlog, if it is not above the group's frontier.
    pub behind: bool,
    /// Who hears.
    pub receiver: Arc<dyn Receiver>,
}

impl Member {
    /// Offers what it has not taken of a batch, which is some of it. False: there is no room for all.
    fn offer(&mut self, batch: &Batch) -> bool {
        let taken = self.receiver.take(self.id, batch, batch.position(self.next));
        let all = taken >= batch.len();
        self.next = if all { batch.last() + 1 } else { batch.revision(taken) };
        all
    }
}

/// Deliveries that members which are behind have still to take.
#[derive(Default)]
struct Backlog {
    deliveries: VecDeque<Delivery>,
    events: usize,
    bytes: usize,
}

/// A batch, and how much it holds.
struct Delivery {
    batch: Arc<Batch>,
    events: usize,
    bytes: usize,
}

/// Where the pieces of a group with many are, once every one is settled.
struct Summary {
    /// Region and index, sorted.
    regions: Vec<(RegionId, usize)>,
    /// Names of the follows, sorted.
    follows: Vec<u64>,
}

/// The watches on one range.
pub struct Group {
    /// What they watch.
    pub range: KeyRange,
    /// Whether events carry what was there before.
    pub prev_kv: bool,
    /// For one subscription that catches up. Others are shared.
    pub private: bool,
    /// A private group with no shared one to join becomes that when it has reached this revision.
    pub target: i64,
    /// Inclusive. Everything up to here has been delivered. Never goes back.
    pub frontier: i64,
    /// In order of their names.
    pub members: Vec<Member>,
    /// Revisions that somebody waits for.
    pub waits: Vec<(SubscriptionId, i64)>,
    /// Some pieces are paused.
    pub paused: bool,
    /// Too many events wait, but no piece is ahead: more must wait before that is looked at again.
    pub patience: usize,
    /// How much waits.
    pub waiting_events: usize,
    /// The same in bytes.
    pub waiting_bytes: usize,
    pieces: Vec<Piece>,
    /// How many of them nobody tells about.
    silent: usize,
    /// How many pieces each store was asked for or tells.
    stores: Vec<(StoreId, usize)>,
    summary: Option<Box<Summary>>,
    /// Index of a piece that held the frontier back when that was last reckoned. Only a hint where to look first.
    holder: usize,
    waiting: BTreeMap<i64, Vec<Held>>,
    backlog: Option<Box<Backlog>>,
}

impl Group {
    /// A group that wants events above `frontier`, with one piece that is nowhere.
    pub fn new(range: KeyRange, prev_kv: bool, frontier: i64, piece: u64) -> Self {
        let whole = Piece { id: piece, range: range.clone(), frontier, attempt: 0, place: Place::Nowhere };
        Self {
            range,
            prev_kv,
            private: false,
            target: i64::MAX,
            frontier,
            members: Vec::new(),
            waits: Vec::new(),
            paused: false,
            patience: 0,
            waiting_events: 0,
            waiting_bytes: 0,
            pieces: vec![whole],
            silent: 1,
            stores: Vec::new(),
            summary: None,
            holder: 0,
            waiting: BTreeMap::new(),
            backlog: None,
        }
    }

    /// The tiling.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The piece that begins at `start`, if its present name is `id`.
    pub fn find(&self, start: &[u8], id: u64) -> Option<usize> {
        let index = self.pieces.binary_search_by(|piece| piece.range.start[..].cmp(start)).ok()?;
        (self.pieces[index].id == id).then_some(index)
    }

    /// Changes a piece, its place included; its range stays.
    pub fn change(&mut self, index: usize, change: impl FnOnce(&mut Piece)) {
        let (before, was_silent) = (self.pieces[index].place.store(), self.pieces[index].place.is_silent());
        change(&mut self.pieces[index]);
        let (after, is_silent) = (self.pieces[index].place.store(), self.pieces[index].place.is_silent());
        self.silent = self.silent + usize::from(is_silent) - usize::from(was_silent);
        self.summary = None;
        if before != after {
            before.into_iter().for_each(|store| self.count_out(store));
            after.into_iter().for_each(|store| self.count_in(store));
        }
    }

    /// Puts `tiles`, which cover the same keys, in the place of a piece.
    pub fn retile(&mut self, index: usize, tiles: Vec<Piece>) {
        self.pieces[index].place.store().into_iter().for_each(|store| self.count_out(store));
        self.silent -= usize::from(self.pieces[index].place.is_silent());
        for tile in &tiles {
            self.silent += usize::from(tile.place.is_silent());
            tile.place.store().into_iter().for_each(|store| self.count_in(store));
        }
        self.summary = None;
        if let [_] = tiles[..] {
            self.pieces[index] = tiles.into_iter().next().expect("there is one");
        } else {
            self.pieces.splice(index..=index, tiles);
        }
    }

    /// Whether nobody tells about some piece.
    pub fn is_silent(&self) -> bool {
        self.silent > 0
    }

    /// The pieces that nobody tells about.
    pub fn silent(&self) -> impl Iterator<Item = &Piece> {
        let any = if self.silent > 0 { &self.pieces[..] } else { &[] };
        any.iter().filter(|piece| piece.place.is_silent())
    }

    /// The stores of its pieces.
    pub fn stores(&self) -> impl Iterator<Item = StoreId> {
        self.stores.iter().map(|(store, _)| *store)
    }

    fn count_in(&mut self, store: StoreId) {
        match self.stores.iter_mut().find(|(known, _)| *known == store) {
            Some((_, count)) => *count += 1,
            None => self.stores.push((store, 1)),
        }
    }

    fn count_out(&mut self, store: StoreId) {
        let Some(index) = self.stores.iter().position(|(known, _)| *known == store) else { return };
        self.stores[index].1 -= 1;
        if self.stores[index].1 == 0 {
            self.stores.swap_remove(index);
        }
    }

    /// The least frontier over the tiling, paused pieces left out if `running`; or, if that is not above the group's own
    /// frontier, the frontier of some piece that is not.
    ///
    /// It begins with the piece that held the group back before, and ends at the first that does: while many pieces join
    /// one after the other, most of these looks cost one piece each.
    pub fn reckon(&mut self, streams: &FxHashMap<StoreId, Stream>, running: bool) -> i64 {
        if self.summary.is_some() {
            return self.reckon_by_store(streams);
        }
        let (mut least, mut settled) = (i64::MAX, self.pieces.len() > SUMMARY_FROM);
        let from = self.holder.min(self.pieces.len());
        for index in (from..self.pieces.len()).chain(0..from) {
            let piece = &self.pieces[index];
            if running && piece.place == Place::Paused {
                settled = false;
                continue;
            }
            let reached = piece.reached(streams);
            if reached <= self.frontier {
                self.holder = index;
                return reached;
            }
            least = least.min(reached);
            settled &= piece.is_settled(streams);
        }
        if settled {
            self.summarise();
        }
        least
    }

    /// Every piece is settled, so what its store says holds for it. Costs by the number of stores and of regions that
    /// lag, not of pieces.
    fn reckon_by_store(&self, streams: &FxHashMap<StoreId, Stream>) -> i64 {
        let Some(summary) = &self.summary else { return self.frontier };
        let mut least = i64::MAX;
        for (store, _) in &self.stores {
            let Some(stream) = streams.get(store) else { return self.frontier };
            least = least.min(stream.frontier);
            for (region, revision) in stream.lower.iter().filter(|(_, revision)| **revision < stream.frontier) {
                let first = summary.regions.partition_point(|(known, _)| known < region);
                let here = summary.regions[first..].iter().take_while(|(known, _)| known == region);
                if here.into_iter().any(|(_, index)| self.pieces[*index].place.store() == Some(*store)) {
                    least = least.min(*revision);
                }
            }
            for (follow, revision) in &stream.late {
                if summary.follows.binary_search(follow).is_ok() {
                    least = least.min(*revision);
                }
            }
        }
        least
    }

    fn summarise(&mut self) {
        let region = |piece: &Piece| match piece.place {
            Place::Joined { region, .. } => Some(region),
            _ => None,
        };
        let pieces = self.pieces.iter().enumerate();
        let mut regions: Vec<_> = pieces.filter_map(|(index, piece)| Some((region(piece)?, index))).collect();
        regions.sort_unstable();
        let mut follows: Vec<u64> = self.pieces.iter().map(|piece| piece.id).collect();
        follows.sort_unstable();
        self.summary = Some(Box::new(Summary { regions, follows }));
    }

    /// Takes events of one revision that the piece at `index` was told. True: some of them wait now.
    pub fn hold(&mut self, index: usize, revision: i64, events: &[RegionEvent]) -> bool {
        if revision <= self.frontier {
            return false;
        }
        let range = &self.pieces[index].range;
        let mut news = false;
        for told in events {
            let Some(event) = &told.event else { continue };
            let key = event.kv.as_ref().map_or(&[][..], |kv| &kv.key[..]);
            if !contains_user(range, key) {
                continue;
            }
            let held = self.waiting.entry(revision).or_default();
            let name = |held: &Held| (held.sub, held.event.kv.as_ref().map(|kv| kv.key.clone()));
            let at = match held.last() {
                Some(last) if last.sub >= told.sub => {
                    let wanted = (told.sub, event.kv.as_ref().map(|kv| kv.key.clone()));
                    match held.binary_search_by(|held| name(held).cmp(&wanted)) {
                        Ok(_) => continue,
                        Err(at) => at,
                    }
                }
                _ => held.len(),
            };
            let mut event = event.clone();
            if !self.prev_kv {
                event.prev_kv = None;
            }
            self.waiting_events += 1;
            self.waiting_bytes += size(&event);
            held.insert(at, Held { sub: told.sub, event });
            news = true;
        }
        news
    }

    /// Highest revision that somebody waits for or that waits itself; `None`: nothing does.
    pub fn needed(&self) -> Option<i64> {
        let event = self.waiting.last_key_value().map(|(revision, _)| *revision);
        event.max(self.waits.iter().map(|(_, revision)| *revision).max())
    }

    /// Whether frontiers matter to it now.
    pub fn is_hot(&self) -> bool {
        self.private || self.paused || !self.waiting.is_empty() || !self.waits.is_empty()
    }

    /// Drops the later half of what waits, as far as it is of pieces that have come further than the earlier half.
    /// Returns the last revision of the earlier half, and these pieces: they have to be told again what comes after it.
    /// The earlier half stays, so that the frontier moves whatever comes.
    pub fn shed(&mut self, streams: &FxHashMap<StoreId, Stream>, limits: &Limits) -> (i64, Vec<usize>) {
        let events_max = self.waiting_events.min(limits.group_events) / 2;
        let bytes_max = self.waiting_bytes.min(limits.group_bytes) / 2;
        let (mut cut, mut events, mut bytes) = (None, 0, 0);
        for (revision, held) in &self.waiting {
            events += held.len();
            bytes += held.iter().map(|held| size(&held.event)).sum::<usize>();
            if cut.is_some() && (events > events_max || bytes > bytes_max) {
                break;
            }
            cut = Some(*revision);
        }
        let Some(cut) = cut else { return (self.frontier, Vec::new()) };
        let ahead: Vec<bool> = self.pieces.iter().map(|piece| piece.reached(streams) > cut).collect();
        let mut dropped = vec![false; ahead.len()];
        let pieces = &self.pieces;
        for held in self.waiting.range_mut(cut + 1..).map(|(_, held)| held) {
            held.retain(|held| {
                let key = held.event.kv.as_ref().map_or(&[][..], |kv| &kv.key[..]);
                let at = pieces.partition_point(|piece| starts_at_or_before(&piece.range.start, key)).saturating_sub(1);
                if ahead[at] {
                    dropped[at] = true;
                    self.waiting_events -= 1;
                    self.waiting_bytes -= size(&held.event);
                }
                !ahead[at]
            });
        }
        self.waiting.retain(|_, held| !held.is_empty());
        (cut, (0..dropped.len()).filter(|index| dropped[*index]).collect())
    }

    /// Drops what waits up to `revision` and goes on above it: those that wanted it are gone.
    pub fn skip_to(&mut self, revision: i64) {
        while let Some(first) = self.waiting.first_entry()
            && *first.key() <= revision
        {
            for held in first.remove() {
                self.waiting_events -= 1;
                self.waiting_bytes -= size(&held.event);
            }
        }
        self.frontier = self.frontier.max(revision);
    }

    /// Delivers what waits up to `revision`, which becomes the frontier. True: a member has fallen behind.
    pub fn deliver(&mut self, revision: i64) -> bool {
        let mut refused = false;
        while let Some(delivery) = self.next_delivery(revision) {
            self.waiting_events -= delivery.events;
            self.waiting_bytes -= delivery.bytes;
            refused |= self.tell(delivery);
        }
        self.frontier = self.frontier.max(revision);
        refused
    }

    /// Takes out the first revisions of what waits up to `revision`.
    fn next_delivery(&mut self, revision: i64) -> Option<Delivery> {
        let (mut moments, mut events, mut bytes) = (Vec::new(), 0, 0);
        while let Some(first) = self.waiting.first_entry()
            && *first.key() <= revision
            && moments.len() < BATCH_REVISIONS
            && bytes < BATCH_BYTES
        {
            let (revision, held) = first.remove_entry();
            let of_revision: Vec<Event> = held.into_iter().map(|held| held.event).collect();
            events += of_revision.len();
            bytes += of_revision.iter().map(size).sum::<usize>();
            moments.push(Moment { revision, events: of_revision });
        }
        (!moments.is_empty()).then(|| Delivery { batch: Arc::new(Batch::new(moments)), events, bytes })
    }

    fn tell(&mut self, delivery: Delivery) -> bool {
        let batch = &*delivery.batch;
        let (mut refused, mut owed) = (false, false);
        for member in &mut self.members {
            if !member.behind && member.next <= batch.last() && !member.offer(batch) {
                (member.behind, refused) = (true, true);
            }
            owed |= member.behind;
        }
        if owed {
            let backlog = self.backlog.get_or_insert_default();
            backlog.events += delivery.events;
            backlog.bytes += delivery.bytes;
            backlog.deliveries.push_back(delivery);
        }
        refused
    }

    /// Offers a member that is behind what it has missed. True: it is not behind any more.
    pub fn resume(&mut self, index: usize) -> bool {
        let member = &mut self.members[index];
        for delivery in self.backlog.iter().flat_map(|backlog| &backlog.deliveries) {
            if member.next <= delivery.batch.last() && !member.offer(&delivery.batch) {
                return false;
            }
        }
        member.behind = false;
        self.trim_backlog();
        true
    }

    /// Lets go what no member has still to take.
    pub fn trim_backlog(&mut self) {
        let Some(backlog) = &mut self.backlog else { return };
        let Some(next) = self.members.iter().filter(|member| member.behind).map(|member| member.next).min() else {
            self.backlog = None;
            return;
        };
        while backlog.deliveries.front().is_some_and(|delivery| delivery.batch.last() < next) {
            if let Some(delivery) = backlog.deliveries.pop_front() {
                backlog.events -= delivery.events;
                backlog.bytes -= delivery.bytes;
            }
        }
    }

    /// Whether the backlog has grown too large; then it must go, and with it the members that are behind.
    pub fn backlog_overflows(&self, limits: &Limits) -> bool {
        let backlog = self.backlog.as_ref();
        backlog.is_some_and(|backlog| backlog.events > limits.backlog_events || backlog.bytes > limits.backlog_bytes)
    }

    /// Takes out the members that are behind, and the backlog.
    pub fn take_behind(&mut self) -> Vec<Member> {
        self.backlog = None;
        self.members.extract_if(.., |member| member.behind).collect()
    }

    /// Where `id` is among the members, or belongs.
    pub fn member(&self, id: SubscriptionId) -> Result<usize, usize> {
        self.members.binary_search_by_key(&id, |member| member.id)
    }

    /// Up to where a member has taken everything.
    pub fn taken(&self, index: usize) -> i64 {
        let member = &self.members[index];
        match member.behind {
            true => member.next - 1,
            false => self.frontier.max(member.next - 1),
        }
    }
}

/// Whether the internal key of `key` lies in `range`.
fn contains_user(range: &KeyRange, key: &[u8]) -> bool {
    starts_at_or_before(&range.start, key) && (range.end.is_empty() || !starts_at_or_before(&range.end, key))
}

/// Whether `bound`, an internal key, is at or before the internal key of `key`.
fn starts_at_or_before(bound: &[u8], key: &[u8]) -> bool {
    match bound.split_first() {
        Some((&TAG_USER, rest)) => rest <= key,
        Some((tag, _)) => *tag < TAG_USER,
        None => true,
    }
}

fn size(event: &Event) -> usize {
    let kvs = event.kv.iter().chain(&event.prev_kv);
    EVENT_BYTES + kvs.map(|kv| kv.key.len() + kv.value.len()).sum::<usize>()
}
