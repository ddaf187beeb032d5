//! The merge as a value: what stores say in, what subscriptions hear out. No clock, no connection, no thread.
//!
//! ```text
//!  in                                          out
//!  subscribe, unsubscribe, resume, want ┐      ┌ Place: find out where a piece is followed
//!  placed, not_placed                   ├ Merge ┤ Follow, Unfollow, Nudge: to a store
//!  joined, left, events, frontier, lost ┘      ├ Reached: a wait has ended
//!                                              └ news, given to receivers at once
//! ```
//!
//! 1. Subscriptions on the same range share a group, if it has delivered nothing that they want. Else they get a private
//!    one that follows from where they are, until it has reached the shared one.
//! 2. A group tiles its range with pieces, one in each region. A piece that is lost, by refusal, split or broken
//!    connection, keeps its frontier, is placed again and followed from there.
//! 3. Events wait in the group until the least frontier over the tiling has reached them, then all of one revision are
//!    delivered at once.
//! 4. A frontier costs by the groups that wait for it, not by those that exist.
//! 5. A receiver without room is behind: the group keeps for it what it misses, within limits; then it is parked and
//!    gets a private group when it has room.
//!
//! Bounds: when more events wait in a group than [`Limits`] say, pieces that are ahead drop the later half of it and are
//! followed again from there when the others have come up. Pieces that lag drop nothing: what they say is what the group
//! waits for, and it is delivered with the next frontiers of their stores.

pub mod group;
pub mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use braid_proto::id::{RegionId, StoreId};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Follow, Refusal, RegionEpoch, RegionEvents, StoreFrontier};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

use self::group::{Group, Member, Piece, Place};
use self::stream::Stream;
use super::{Receiver, SubscriptionId, Wanted};

/// What a merge may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events that wait in one group.
    pub group_events: usize,
    /// The same in bytes.
    pub group_bytes: usize,
    /// Bytes that wait in all groups.
    pub total_bytes: usize,
    /// Events that one group keeps for members that are behind.
    pub backlog_events: usize,
    /// The same in bytes.
    pub backlog_bytes: usize,
    /// How many revisions back a subscription may start and still found a shared group. It is told so much before
    /// others, who want only what is new, hear anything.
    pub recent: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            group_events: 200_000,
            group_bytes: 64 << 20,
            total_bytes: 256 << 20,
            backlog_events: 4_096,
            backlog_bytes: 4 << 20,
            recent: 1_000,
        }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Find out which regions hold `range` and who leads them, then say [`Merge::placed`].
    Place {
        /// The piece.
        piece: u64,
        /// Its keys.
        range: KeyRange,
        /// How often in a row it could not be followed.
        attempt: u32,
        /// Why it is not where it was.
        trouble: Trouble,
    },
    /// Send this order.
    Follow {
        /// To this store.
        store: StoreId,
        /// The order.
        order: Follow,
    },
    /// Send this order.
    Unfollow {
        /// To this store.
        store: StoreId,
        /// The follow.
        id: u64,
    },
    /// Ask for a frontier.
    Nudge {
        /// This store.
        store: StoreId,
        /// That reaches this.
        revision: i64,
    },
    /// Whoever waits until this subscription has taken everything up to this revision waits no longer.
    Reached {
        /// The subscription.
        id: SubscriptionId,
        /// Up to where.
        revision: i64,
    },
}

/// Why a piece needs a place.
#[derive(Clone, Debug, PartialEq)]
pub enum Trouble {
    /// It is new, or goes on after a pause.
    None,
    /// The store has refused it.
    Refused(StoreId, Refusal),
    /// The connection to the store is lost, or there never was one.
    Lost(StoreId),
}

/// Where a part of a piece is to be followed.
#[derive(Clone, Debug)]
pub struct Tile {
    /// Its keys.
    pub range: KeyRange,
    /// Their region.
    pub region: RegionId,
    /// The region's epoch.
    pub epoch: RegionEpoch,
    /// The store that most likely leads it.
    pub store: StoreId,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Groups.
    pub groups: usize,
    /// Subscriptions.
    pub watches: usize,
    /// Events that wait for a frontier.
    pub waiting_events: usize,
    /// How often a piece was followed again, ever.
    pub refollows: u64,
}

/// Groups, streams and subscriptions.
pub struct Merge {
    limits: Limits,
    groups: FxHashMap<u64, Group>,
    /// The group that new subscriptions join, by range and whether they want what was before.
    shared: HashMap<(KeyRange, bool), u64>,
    homes: HashMap<SubscriptionId, Home>,
    /// Pieces by their present names: group and first key.
    pieces: FxHashMap<u64, (u64, Bytes)>,
    streams: FxHashMap<StoreId, Stream>,
    /// Groups with pieces that nobody tells about.
    silent: FxHashSet<u64>,
    effects: Vec<Effect>,
    next_id: u64,
    waiting_events: usize,
    waiting_bytes: usize,
    refollows: u64,
}

/// Where a subscription is.
enum Home {
    Group(u64),
    Parked(Box<Parked>),
}

/// A subscription whose receiver has no room, and which no group keeps anything for.
struct Parked {
    range: KeyRange,
    prev_kv: bool,
    member: Member,
    waits: Vec<i64>,
    /// It has ended: its history begins here. Only its receiver does not know.
    compacted: Option<i64>,
}

impl Merge {
    /// Nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            groups: FxHashMap::default(),
            shared: HashMap::new(),
            homes: HashMap::new(),
            pieces: FxHashMap::default(),
            streams: FxHashMap::default(),
            silent: FxHashSet::default(),
            effects: Vec::new(),
            next_id: 1,
            waiting_events: 0,
            waiting_bytes: 0,
            refollows: 0,
        }
    }

    /// What is to be done since this was last called.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            groups: self.groups.len(),
            watches: self.homes.len(),
            waiting_events: self.waiting_events,
            refollows: self.refollows,
        }
    }

    /// A subscription begins. `newest`: newest revision that this process has heard of.
    pub fn subscribe(&mut self, id: SubscriptionId, wanted: Wanted, receiver: Arc<dyn Receiver>, newest: i64) {
        let member = Member { id, next: wanted.start.max(1), behind: false, receiver };
        self.enter(wanted.range, wanted.prev_kv, member, Vec::new(), newest);
    }

    /// A subscription ends.
    pub fn unsubscribe(&mut self, id: SubscriptionId) {
        match self.homes.remove(&id) {
            Some(Home::Group(name)) => {
                if let Some(group) = self.groups.get_mut(&name) {
                    if let Ok(index) = group.member(id) {
                        group.members.remove(index);
                    }
                    group.waits.retain(|(waiting, _)| *waiting != id);
                    group.trim_backlog();
                }
                self.remove_if_empty(name);
            }
            Some(Home::Parked(_)) => {}
            None => return,
        }
        self.effects.push(Effect::Reached { id, revision: i64::MAX });
    }

    /// The receiver has room again.
    pub fn resume(&mut self, id: SubscriptionId, newest: i64) {
        match self.homes.get(&id) {
            Some(Home::Group(name)) => {
                let name = *name;
                let Some(group) = self.groups.get_mut(&name) else { return };
                if let Ok(index) = group.member(id)
                    && group.members[index].behind
                    && group.resume(index)
                {
                    self.after_delivery(name);
                }
            }
            Some(Home::Parked(_)) => {
                let Some(Home::Parked(parked)) = self.homes.remove(&id) else { return };
                let Parked { range, prev_kv, member, waits, compacted } = *parked;
                match compacted {
                    Some(compacted) => self.end(range, prev_kv, member, waits, compacted),
                    None => self.enter(range, prev_kv, member, waits, newest),
                }
            }
            None => {}
        }
    }

    /// Where these subscriptions hear nothing, because nobody tells about a piece: the first keys of such pieces.
    pub fn silent(&self, ids: &[SubscriptionId]) -> HashSet<Bytes> {
        if self.silent.is_empty() {
            return HashSet::new();
        }
        let group = |id: &SubscriptionId| match self.homes.get(id)? {
            Home::Group(name) if self.silent.contains(name) => self.groups.get(name),
            _ => None,
        };
        let pieces = ids.iter().filter_map(group).flat_map(Group::silent);
        pieces.map(|piece| piece.range.start.clone()).collect()
    }

    /// Up to where the receiver of `id` has taken everything; `None`: there is no such subscription.
    pub fn frontier(&mut self, id: SubscriptionId) -> Option<i64> {
        match self.homes.get(&id)? {
            Home::Parked(parked) => Some(parked.member.next - 1),
            Home::Group(name) => {
                let group = self.groups.get_mut(name)?;
                // Of a group for which nothing waits, frontiers are counted only when somebody asks.
                if group.waiting_events == 0 {
                    let reached = group.reckon(&self.streams, false);
                    group.frontier = group.frontier.max(reached);
                }
                Some(group.taken(group.member(id).ok()?))
            }
        }
    }

    /// Somebody waits for the frontier of `id` to reach `revision`. True: it has, or there is no such subscription.
    /// Otherwise [`Effect::Reached`] says when.
    pub fn want(&mut self, id: SubscriptionId, revision: i64) -> bool {
        if self.frontier(id).is_none_or(|frontier| frontier >= revision) {
            return true;
        }
        match self.homes.get_mut(&id) {
            Some(Home::Parked(parked)) => {
                if !parked.waits.contains(&revision) {
                    parked.waits.push(revision);
                }
            }
            Some(Home::Group(name)) => {
                let name = *name;
                if let Some(group) = self.groups.get_mut(&name)
                    && !group.waits.contains(&(id, revision))
                {
                    group.waits.push((id, revision));
                }
                self.heat(name);
                self.nudge(name, revision, None);
            }
            None => return true,
        }
        false
    }

    /// A piece is to be followed there. `tiles` cover it, in key order; a piece that is not looked for is left alone.
    pub fn placed(&mut self, piece: u64, tiles: Vec<Tile>) {
        let Some((name, index)) = self.find(piece) else { return };
        let Some(group) = self.groups.get_mut(&name) else { return };
        let old = &group.pieces()[index];
        if old.place != Place::Nowhere || tiles.is_empty() {
            return;
        }
        // Whatever the group has delivered need not be said again.
        let (frontier, attempt) = (old.frontier.max(group.frontier), old.attempt);
        self.pieces.remove(&piece);
        let mut pieces = Vec::with_capacity(tiles.len());
        for Tile { range, region, epoch, store } in tiles {
            let id = self.next_id;
            self.next_id += 1;
            self.pieces.insert(id, (name, range.start.clone()));
            let order = Follow {
                id,
                region_id: region.0,
                epoch: Some(epoch),
                start: range.start.clone(),
                end: range.end.clone(),
                after: frontier,
                prev_kv: group.prev_kv,
            };
            self.effects.push(Effect::Follow { store, order });
            pieces.push(Piece { id, range, frontier, attempt, place: Place::Asked { store, region } });
        }
        group.retile(index, pieces);
        self.note_silence(name);
    }

    /// Nobody could say where a piece is to be followed.
    pub fn not_placed(&mut self, piece: u64) {
        let Some((name, index)) = self.find(piece) else { return };
        if self.groups[&name].pieces()[index].place == Place::Nowhere {
            self.place_again(name, index, Trouble::None);
        }
    }

    /// A store begins to tell. `frontier`: up to where it has told everything.
    pub fn joined(&mut self, store: StoreId, id: u64, frontier: i64) {
        let Some((name, index)) = self.find(id) else { return };
        let since = self.streams.entry(store).or_default().count;
        let Some(group) = self.groups.get_mut(&name) else { return };
        let Place::Asked { store: asked, region } = group.pieces()[index].place else { return };
        if asked != store {
            return;
        }
        group.change(index, |piece| {
            piece.place = Place::Joined { store, region, since };
            piece.frontier = piece.frontier.max(frontier);
        });
        self.note_silence(name);
        let Some(group) = self.groups.get(&name) else { return };
        if !group.is_hot() {
            return;
        }
        let caught_up = if group.private { self.newest_shared(name) } else { None };
        let Some(group) = self.groups.get(&name) else { return };
        let reached = group.pieces()[index].frontier;
        let stream = self.streams.entry(store).or_default();
        stream.hot.insert(name);
        if let Some(needed) = group.needed().max(caught_up)
            && needed > reached
        {
            let revision = stream.want_anew(needed);
            self.effects.push(Effect::Nudge { store, revision });
        }
        self.advance(name);
    }

    /// A store tells no more, or has not begun to.
    pub fn left(&mut self, store: StoreId, id: u64, trouble: Trouble) {
        let Some((name, index)) = self.find(id) else { return };
        if self.groups[&name].pieces()[index].place.store() == Some(store) {
            self.place_again(name, index, trouble);
        }
    }

    /// A store cannot tell what happened before `compacted` any more.
    pub fn left_compacted(&mut self, store: StoreId, id: u64, compacted: i64) {
        let Some((name, index)) = self.find(id) else { return };
        let Some(group) = self.groups.get_mut(&name) else { return };
        if group.pieces()[index].place.store() != Some(store) {
            return;
        }
        let reached = group.pieces()[index].reached(&self.streams).max(group.frontier);
        let through = compacted - 1;
        group.change(index, |piece| piece.frontier = reached.max(through));
        self.place_again(name, index, Trouble::None);
        if reached >= through {
            return;
        }
        let Some(group) = self.groups.get_mut(&name) else { return };
        let delivered = group.frontier;
        let needs_it = |member: &mut Member| match member.behind {
            true => member.next < compacted,
            false => member.next.max(delivered + 1) < compacted,
        };
        let ended: Vec<Member> = group.members.extract_if(.., needs_it).collect();
        group.trim_backlog();
        self.account(name, |group| group.skip_to(through));
        for mut member in ended {
            let waits = self.take_waits(name, member.id);
            let Some(group) = self.groups.get(&name) else { return };
            let (range, prev_kv) = (group.range.clone(), group.prev_kv);
            match member.behind {
                // There may be something for it yet, at a store that keeps more.
                true => self.park(range, prev_kv, member, waits, None),
                false => {
                    member.next = member.next.max(delivered + 1);
                    self.end(range, prev_kv, member, waits, compacted);
                }
            }
        }
        self.remove_if_empty(name);
    }

    /// A store tells what one transaction did.
    pub fn events(&mut self, store: StoreId, told: &RegionEvents) {
        for id in &told.ids {
            let Some((name, index)) = self.find(*id) else { continue };
            let Some(group) = self.groups.get(&name) else { continue };
            if group.pieces()[index].place.store() != Some(store) {
                continue;
            }
            let was_hot = group.is_hot();
            if !self.account(name, |group| group.hold(index, told.revision, &told.events)) {
                continue;
            }
            if !was_hot {
                self.heat(name);
            }
            self.nudge(name, told.revision, Some(store));
            self.shed(name);
        }
    }

    /// A store says how far it has told everything.
    pub fn store_frontier(&mut self, store: StoreId, frontier: &StoreFrontier) {
        let stream = self.streams.entry(store).or_default();
        if let Some(revision) = stream.take(frontier) {
            self.effects.push(Effect::Nudge { store, revision });
        }
        let hot = std::mem::take(&mut stream.hot);
        for name in hot {
            self.advance(name);
            let stays = self
                .groups
                .get(&name)
                .is_some_and(|group| group.is_hot() && group.stores().any(|asked| asked == store));
            if stays {
                self.streams.entry(store).or_default().hot.insert(name);
            }
        }
    }

    /// The connection to a store is lost, with everything that was asked for on it.
    pub fn lost(&mut self, store: StoreId) {
        let mut lost: Vec<u64> = Vec::new();
        for group in self.groups.values().filter(|group| group.stores().any(|asked| asked == store)) {
            lost.extend(group.pieces().iter().filter(|p| p.place.store() == Some(store)).map(|p| p.id));
        }
        for id in lost {
            self.left(store, id, Trouble::Lost(store));
        }
        if let Some(stream) = self.streams.get_mut(&store) {
            stream.reset();
        }
    }

    /// Keeps [`Merge::silent`] true after a change of a group's pieces.
    fn note_silence(&mut self, name: u64) {
        match self.groups.get(&name).is_some_and(Group::is_silent) {
            true => self.silent.insert(name),
            false => self.silent.remove(&name),
        };
    }

    fn find(&self, piece: u64) -> Option<(u64, usize)> {
        let (name, start) = self.pieces.get(&piece)?;
        Some((*name, self.groups.get(name)?.find(start, piece)?))
    }

    /// A subscription joins the shared group, founds it, or gets a group of its own.
    fn enter(&mut self, range: KeyRange, prev_kv: bool, mut member: Member, waits: Vec<i64>, newest: i64) {
        member.behind = false;
        let key = (range, prev_kv);
        let shared = self.shared.get(&key).copied();
        let name = match shared.and_then(|name| Some((name, self.groups.get(&name)?))) {
            Some((name, group)) if group.frontier < member.next => name,
            None if member.next + self.limits.recent > newest => self.found(key, member.next - 1, None),
            _ => self.found(key, member.next - 1, Some(newest)),
        };
        self.settle_in(name, member, waits);
    }

    /// Puts a member into a group that has delivered nothing it wants.
    fn settle_in(&mut self, name: u64, member: Member, waits: Vec<i64>) {
        let Some(group) = self.groups.get_mut(&name) else { return };
        let id = member.id;
        let index = group.member(id).unwrap_or_else(|index| index);
        group.members.insert(index, member);
        self.homes.insert(id, Home::Group(name));
        for revision in waits {
            if self.want(id, revision) {
                self.effects.push(Effect::Reached { id, revision });
            }
        }
    }

    fn found(&mut self, (range, prev_kv): (KeyRange, bool), frontier: i64, private: Option<i64>) -> u64 {
        let (name, piece) = (self.next_id, self.next_id + 1);
        self.next_id += 2;
        let mut group = Group::new(range.clone(), prev_kv, frontier, piece);
        match private {
            Some(target) => (group.private, group.target) = (true, target),
            None => _ = self.shared.insert((range.clone(), prev_kv), name),
        }
        self.groups.insert(name, group);
        self.note_silence(name);
        self.pieces.insert(piece, (name, range.start.clone()));
        self.effects.push(Effect::Place { piece, range, attempt: 0, trouble: Trouble::None });
        name
    }

    fn remove_if_empty(&mut self, name: u64) {
        if self.groups.get(&name).is_none_or(|group| !group.members.is_empty()) {
            return;
        }
        let Some(group) = self.groups.remove(&name) else { return };
        self.silent.remove(&name);
        self.waiting_events -= group.waiting_events;
        self.waiting_bytes -= group.waiting_bytes;
        for piece in group.pieces() {
            self.pieces.remove(&piece.id);
            if let Some(store) = piece.place.store() {
                self.effects.push(Effect::Unfollow { store, id: piece.id });
            }
        }
        if !group.private {
            self.shared.remove(&(group.range, group.prev_kv));
        }
    }

    /// Looks for a place for a piece, which goes on from its own frontier (F4) under a new name.
    fn place_again(&mut self, name: u64, index: usize, trouble: Trouble) {
        let Some(group) = self.groups.get_mut(&name) else { return };
        let piece = &group.pieces()[index];
        let attempt = if piece.is_settled(&self.streams) { 0 } else { piece.attempt.saturating_add(1) };
        let attempt = if piece.place == Place::Paused { 0 } else { attempt };
        let reached = piece.reached(&self.streams);
        let (old, id) = (piece.id, self.next_id);
        self.next_id += 1;
        self.refollows += 1;
        group.change(index, |piece| {
            (piece.id, piece.frontier, piece.attempt, piece.place) = (id, reached, attempt, Place::Nowhere);
        });
        let range = group.pieces()[index].range.clone();
        self.note_silence(name);
        self.pieces.remove(&old);
        self.pieces.insert(id, (name, range.start.clone()));
        self.effects.push(Effect::Place { piece: id, range, attempt, trouble });
    }

    /// Frontiers matter to a group from now on.
    fn heat(&mut self, name: u64) {
        let Some(group) = self.groups.get(&name) else { return };
        for store in group.stores() {
            self.streams.entry(store).or_default().hot.insert(name);
        }
    }

    /// Asks the stores of a group for frontiers that reach `revision`, but not the one that will send one by itself.
    fn nudge(&mut self, name: u64, revision: i64, except: Option<StoreId>) {
        let Some(group) = self.groups.get(&name) else { return };
        for store in group.stores().filter(|store| Some(*store) != except) {
            if let Some(revision) = self.streams.entry(store).or_default().want(revision) {
                self.effects.push(Effect::Nudge { store, revision });
            }
        }
    }

    /// Changes a group and keeps count of what waits.
    fn account<T>(&mut self, name: u64, change: impl FnOnce(&mut Group) -> T) -> T
    where
        T: Default,
    {
        let Some(group) = self.groups.get_mut(&name) else { return T::default() };
        let (events, bytes) = (group.waiting_events, group.waiting_bytes);
        let out = change(group);
        self.waiting_events = self.waiting_events + group.waiting_events - events;
        self.waiting_bytes = self.waiting_bytes + group.waiting_bytes - bytes;
        out
    }

    /// Delivers what the frontiers allow.
    fn advance(&mut self, name: u64) {
        let Some(group) = self.groups.get_mut(&name) else { return };
        let reached = group.reckon(&self.streams, false);
        if reached > group.frontier {
            self.account(name, |group| group.deliver(reached));
        }
        let Some(group) = self.groups.get_mut(&name) else { return };
        if group.paused && group.reckon(&self.streams, true) > group.frontier {
            group.paused = false;
            let paused = |(index, piece): (usize, &Piece)| (piece.place == Place::Paused).then_some(index);
            let paused: Vec<usize> = group.pieces().iter().enumerate().filter_map(paused).collect();
            paused.into_iter().for_each(|index| self.place_again(name, index, Trouble::None));
        }
        self.after_delivery(name);
    }

    /// Ends waits, parks members that are too far behind, and moves those over that have caught up.
    fn after_delivery(&mut self, name: u64) {
        let Some(group) = self.groups.get_mut(&name) else { return };
        if group.backlog_overflows(&self.limits) {
            let (range, prev_kv) = (group.range.clone(), group.prev_kv);
            for member in group.take_behind() {
                let waits = self.take_waits(name, member.id);
                self.park(range.clone(), prev_kv, member, waits, None);
            }
            self.remove_if_empty(name);
        }
        let Some(group) = self.groups.get_mut(&name) else { return };
        if !group.waits.is_empty() {
            let mut waits = std::mem::take(&mut group.waits);
            waits.retain(|(id, revision)| match group.member(*id) {
                Ok(index) if group.taken(index) < *revision => true,
                _ => {
                    self.effects.push(Effect::Reached { id: *id, revision: *revision });
                    false
                }
            });
            group.waits = waits;
        }
        if group.private {
            self.move_over(name);
        }
    }

    /// How far the shared group of a private one has come, or what stands for that.
    fn newest_shared(&self, name: u64) -> Option<i64> {
        let group = self.groups.get(&name)?;
        let shared = self.shared.get(&(group.range.clone(), group.prev_kv));
        match shared.and_then(|shared| self.groups.get(shared)) {
            Some(shared) => Some(shared.frontier),
            None => Some(group.target),
        }
    }

    /// A private group that has delivered all that the shared one has is not needed any more: what comes above the
    /// shared one's frontier comes from there, and its member has taken some of it already.
    fn move_over(&mut self, name: u64) {
        let Some(newest) = self.newest_shared(name) else { return };
        let Some(group) = self.groups.get_mut(&name) else { return };
        if group.frontier < newest || group.members.iter().any(|member| member.behind) {
            return;
        }
        let key = (group.range.clone(), group.prev_kv);
        let Some(shared) = self.shared.get(&key).copied() else {
            group.private = false;
            self.shared.insert(key, name);
            return;
        };
        let delivered = group.frontier;
        let members = std::mem::take(&mut group.members);
        let waits = std::mem::take(&mut group.waits);
        self.remove_if_empty(name);
        for mut member in members {
            member.next = member.next.max(delivered + 1);
            let waits = waits.iter().filter(|(id, _)| *id == member.id).map(|(_, revision)| *revision).collect();
            self.settle_in(shared, member, waits);
        }
    }

    /// Makes room in a group in which too much waits.
    fn shed(&mut self, name: u64) {
        let Some(group) = self.groups.get(&name) else { return };
        let is_over = |group: &Group, total: usize, limits: &Limits| {
            group.waiting_events > limits.group_events
                || group.waiting_bytes > limits.group_bytes
                || total > limits.total_bytes
        };
        if !is_over(group, self.waiting_bytes, &self.limits) || group.waiting_events < group.patience {
            return;
        }
        self.advance(name);
        let Some(group) = self.groups.get_mut(&name) else { return };
        group.patience = 0;
        if !is_over(group, self.waiting_bytes, &self.limits) {
            return;
        }
        let (events, bytes) = (group.waiting_events, group.waiting_bytes);
        let (cut, ahead) = group.shed(&self.streams, &self.limits);
        self.waiting_events -= events - group.waiting_events;
        self.waiting_bytes -= bytes - group.waiting_bytes;
        if ahead.is_empty() {
            group.patience = events + events / 4 + 1;
            return;
        }
        tracing::debug!(pieces = ahead.len(), events, "too many events wait for a piece that lags");
        group.paused = true;
        for index in ahead {
            let piece = &group.pieces()[index];
            let (old, id) = (piece.id, self.next_id);
            self.next_id += 1;
            if let Some(store) = piece.place.store() {
                self.effects.push(Effect::Unfollow { store, id: old });
            }
            let start = piece.range.start.clone();
            self.pieces.remove(&old);
            self.pieces.insert(id, (name, start));
            group.change(index, |piece| (piece.id, piece.frontier, piece.place) = (id, cut, Place::Paused));
        }
    }

    fn take_waits(&mut self, name: u64, id: SubscriptionId) -> Vec<i64> {
        let Some(group) = self.groups.get_mut(&name) else { return Vec::new() };
        group.waits.extract_if(.., |(waiting, _)| *waiting == id).map(|(_, revision)| revision).collect()
    }

    fn park(&mut self, range: KeyRange, prev_kv: bool, member: Member, waits: Vec<i64>, compacted: Option<i64>) {
        let id = member.id;
        self.homes.insert(id, Home::Parked(Box::new(Parked { range, prev_kv, member, waits, compacted })));
    }

    /// Tells a subscription that it has ended, now or when there is room.
    fn end(&mut self, range: KeyRange, prev_kv: bool, member: Member, waits: Vec<i64>, compacted: i64) {
        if !member.receiver.end(member.id, compacted) {
            return self.park(range, prev_kv, member, waits, Some(compacted));
        }
        self.homes.remove(&member.id);
        self.effects.push(Effect::Reached { id: member.id, revision: i64::MAX });
    }
}

#[cfg(test)]
mod tests;
