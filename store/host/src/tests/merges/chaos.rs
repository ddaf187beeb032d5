//! Regions split, merge and move between hosts while those come and go: what was answered is true, and every key is in one
//! place.

use std::collections::BTreeMap;

use super::*;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[derive(Default)]
struct Counts {
    merges: usize,
    thaws: usize,
    splits: usize,
    moves: usize,
}

/// Everybody who believes to lead, by region.
fn leaders(cluster: &Cluster) -> BTreeMap<u64, (u64, PeerHandle, Term)> {
    let mut leaders: BTreeMap<u64, (u64, PeerHandle, Term)> = BTreeMap::new();
    for (host, node) in &cluster.nodes {
        for handle in node.host.handles() {
            let term = handle.term();
            let id = handle.region().id;
            if handle.is_leader(term) && leaders.get(&id).is_none_or(|(_, _, known)| *known < term) {
                leaders.insert(id, (*host, handle, term));
            }
        }
    }
    leaders
}

fn soon(step: impl FnOnce(crate::Changed)) -> Answer {
    let (tell, told) = mpsc::channel();
    step(Box::new(move |ended| _ = tell.send(ended)));
    // Who cannot commit answers later, or never in this round.
    told.recv_timeout(PATIENCE).unwrap_or(Err(ChangeRefused::Unknown))
}

/// One look of whoever leads a frozen source: as far as it gets.
fn drive(cluster: &Cluster, counts: &mut Counts, give_up: bool) {
    let leaders = leaders(cluster);
    for (id, (host, handle, term)) in &leaders {
        let Some(frozen) = handle.frozen() else { continue };
        if let Some(proof) = cluster.nodes[host].host.proof_of_thaw(RegionId(*id)) {
            counts.thaws += usize::from(soon(|done| handle.propose_thaw(*term, proof, done)).is_ok());
            continue;
        }
        let Some((_, into, into_term)) = leaders.get(&frozen.target.0) else { continue };
        if into.region().region_epoch() != frozen.epoch {
            continue;
        }
        let region = handle.region();
        let all = region
            .peers
            .iter()
            .all(|peer| cluster.handle(peer.store_id, *id).is_some_and(|replica| replica.frozen() == Some(frozen)));
        if all && !give_up {
            let merged = soon(|done| into.propose_merge(*into_term, (*region).clone(), done));
            counts.merges += usize::from(merged.is_ok());
        } else if give_up {
            _ = soon(|done| into.propose_bump(*into_term, frozen.epoch, done));
        }
    }
}

/// As placement would: destroys peers that are none any more. Who is no member, the newest leader's region says; a region
/// that nobody leads, and whose range as anybody knows it others hold, was taken in.
fn bury_the_lonely(cluster: &Cluster) {
    let leaders = leaders(cluster);
    for node in cluster.nodes.values() {
        for (id, peer, epoch) in node.host.lonely(99) {
            match leaders.get(&id.0) {
                Some((_, handle, _)) if handle.region().peer(peer).is_some() => {}
                Some((_, handle, _)) => _ = node.host.destroy_peer(id, peer, handle.region().region_epoch()),
                None => {
                    let range = node.host.handle(id).map(|handle| handle.region().range());
                    // One that was split while its leader is away is not gone: who has applied the split knows.
                    let split = cluster
                        .nodes
                        .values()
                        .filter_map(|node| node.host.handle(id))
                        .any(|other| other.region().region_epoch().version > epoch.version);
                    let taken = range.filter(|_| !split).is_some_and(|range| {
                        leaders.values().any(|(_, other, _)| {
                            let other = other.region();
                            other.id != id.0
                                && other.range().overlaps(&range)
                                && other.region_epoch().version > epoch.version
                        })
                    });
                    if taken {
                        node.host.destroy_peer(id, peer, RegionEpoch { conf_ver: u64::MAX - 1, ..epoch });
                    }
                }
            }
        }
    }
}

/// How long a round waits for a step that may not be possible in it.
const PATIENCE: Duration = Duration::from_millis(300);

/// Brings the voters of a region one step nearer to `stores`. True: a step was made.
fn step_towards(handle: &PeerHandle, term: Term, stores: &[u64], new_peer: u64) -> bool {
    let region = handle.region();
    let on = |store: &u64| region.peer_on(StoreId(*store));
    let one = |store: u64| vec![StoreId(store)];
    let change = if let Some(store) = stores.iter().find(|store| on(store).is_none()) {
        PeerChange::AddLearner(Peer::learner(new_peer, *store))
    } else if let Some(store) = stores.iter().find(|store| on(store).is_some_and(|peer| peer.learner)) {
        PeerChange::Voters { promote: one(*store), demote: Vec::new() }
    } else if let Some(peer) = region.peers.iter().find(|peer| !stores.contains(&peer.store_id)) {
        if peer.learner {
            PeerChange::Remove(StoreId(peer.store_id))
        } else if peer.id == handle.peer().id {
            let to = region.peers.iter().find(|other| other.id != peer.id && !other.learner);
            if let Some(to) = to {
                handle.transfer_leader(term, PeerId(to.id), Box::new(|_| ()));
            }
            return false;
        } else {
            PeerChange::Voters { promote: Vec::new(), demote: one(peer.store_id) }
        }
    } else {
        return false;
    };
    soon(|done| handle.propose_change(term, region.region_epoch(), change, done)).is_ok()
}

fn key(dice: &mut Dice, n: usize) -> String {
    format!("{}{n}", (b'a' + dice.roll(26) as u8) as char)
}

#[test]
fn every_key_stays_in_one_place_while_regions_split_merge_and_move() {
    let mut total = Counts::default();
    for seed in [0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03] {
        let counts = run(seed);
        total.merges += counts.merges;
        total.thaws += counts.thaws;
        total.splits += counts.splits;
        total.moves += counts.moves;
    }
    let Counts { merges, thaws, splits, moves } = total;
    println!("merges {merges}, thaws {thaws}, splits {splits}, changes of peers {moves}");
    assert!(merges >= 2 && splits >= 4, "merges {merges}, splits {splits}");
}

fn run(seed: u64) -> Counts {
    let mut cluster = Cluster::new(0);
    cluster.timing.lonely = Duration::from_secs(2);
    cluster.keep_entries = 30;
    (1..=4).for_each(|host| cluster.start(host));
    cluster.create(&[region(1, "", "", &[1, 2, 3])]);
    let mut dice = Dice(seed);
    let mut counts = Counts::default();
    let mut asked: Vec<(String, mpsc::Receiver<Outcome>)> = Vec::new();
    let mut next_id = 100;
    for round in 0..100 {
        for (_, handle, term) in leaders(&cluster).values() {
            if handle.frozen().is_some() {
                continue;
            }
            for _ in 0..4 {
                let name = key(&mut dice, asked.len());
                if handle.region().range().contains(name.as_bytes()) {
                    let told = propose(handle, *term, &name, "v");
                    asked.push((name, told));
                }
            }
        }
        let now = leaders(&cluster);
        let regions: Vec<u64> = now.keys().copied().collect();
        let picked = (!regions.is_empty()).then(|| &now[&regions[dice.roll(regions.len() as u64) as usize]]);
        if let Some((_, handle, term)) = picked {
            let region = handle.region();
            match dice.roll(8) {
                0 | 1 if regions.len() < 6 => {
                    let at = key(&mut dice, 0);
                    next_id += 1 + region.peers.len() as u64;
                    let child_peer_ids = (0..region.peers.len() as u64).map(|n| next_id - 1 - n).collect();
                    let spec = SplitSpec { key: at.into(), child_id: RegionId(next_id), child_peer_ids };
                    let (tell, told) = mpsc::channel();
                    handle.propose_split(*term, spec, Box::new(move |outcome| _ = tell.send(outcome)));
                    let split = told.recv_timeout(PATIENCE) == Ok(Outcome::Applied);
                    counts.splits += usize::from(split);
                }
                2 => {
                    next_id += 1;
                    let stores: Vec<u64> = (1..=4).filter(|store| *store != 1 + dice.roll(4)).collect();
                    counts.moves += usize::from(step_towards(handle, *term, &stores, next_id));
                }
                _ => {
                    let beside = |other: &Region| other.start == region.end || other.end == region.start;
                    let mut others = now.values().map(|(_, other, term)| (other, term, other.region()));
                    let target = others.find(|(.., other)| other.id != region.id && beside(other));
                    if let Some((target_handle, target_term, target)) = target {
                        next_id += 1;
                        let voters = target.peers.iter().filter(|peer| !peer.learner).map(|peer| peer.store_id);
                        let voters: Vec<u64> = voters.collect();
                        // First the target sheds its learners, then the source goes to the same stores.
                        let moved = step_towards(target_handle, *target_term, &voters, next_id)
                            || step_towards(handle, *term, &voters, next_id);
                        counts.moves += usize::from(moved);
                        if !moved && soon(|done| handle.propose_freeze(*term, (*target).clone(), done)).is_ok() {
                            let id = region.id;
                            let all = || {
                                region.peers.iter().all(|peer| {
                                    cluster.handle(peer.store_id, id).is_some_and(|replica| replica.frozen().is_some())
                                })
                            };
                            let deadline = std::time::Instant::now() + PATIENCE;
                            while !all() && std::time::Instant::now() < deadline {
                                std::thread::park_timeout(Duration::from_millis(2));
                            }
                        }
                    }
                }
            }
        }
        drive(&cluster, &mut counts, dice.roll(4) == 0);
        match dice.roll(7) {
            0 => cluster.net.isolate(1 + dice.roll(4)),
            1 => cluster.net.cut_from(1 + dice.roll(4)),
            2 => {
                let host = 1 + dice.roll(4);
                cluster.stop(host);
                cluster.start(host);
            }
            3 => {}
            _ => cluster.net.heal(),
        }
        drive(&cluster, &mut counts, false);
        if round % 4 == 3 {
            cluster.net.heal();
            eventually("some region is led", || (!leaders(&cluster).is_empty()).then_some(()));
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
    cluster.net.heal();
    settle(&cluster, &mut counts);
    for (name, told) in asked {
        let outcome = eventually(&format!("an outcome for {name}"), || told.try_recv().ok());
        let here = |host: &u64| cluster.nodes[host].host.handle_at(name.as_bytes()).is_some();
        for host in cluster.nodes.keys().filter(|host| here(host)) {
            let there = cluster.get(*host, &name).is_some();
            match outcome {
                Outcome::Applied => assert!(there, "{name} was applied, host {host} lacks it"),
                Outcome::Dropped => assert!(!there, "{name} was dropped, host {host} has it"),
                Outcome::Unknown => {}
            }
        }
    }
    (1..=4).for_each(|host| assert_indexed(&cluster.nodes[&host].host.db()));
    // What is on the disks says the same.
    for host in 1..=4 {
        let before: Vec<Region> = regions_of(&cluster, host);
        cluster.stop(host);
        cluster.start(host);
        assert_eq!(regions_of(&cluster, host), before);
    }
    counts
}

fn regions_of(cluster: &Cluster, host: u64) -> Vec<Region> {
    cluster.nodes[&host].host.handles().iter().map(|handle| (*handle.region()).clone()).collect()
}

/// Waits until nobody is frozen, the leaders' regions cover all keys, and everybody agrees with them.
fn settle(cluster: &Cluster, counts: &mut Counts) {
    let mut seen = String::new();
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("all regions come to rest", || {
            drive(cluster, counts, true);
            bury_the_lonely(cluster);
            let leaders = leaders(cluster);
            let here =
                |host| cluster.nodes[&host].host.handles().into_iter().map(|peer| (peer.region(), peer)).collect();
            seen = format!("{:#?}", (1..=4).map(|host| (host, here(host))).collect::<Vec<(u64, Vec<_>)>>());
            let mut regions: Vec<(Region, PeerHandle, Term)> =
                leaders.into_values().map(|(_, handle, term)| ((*handle.region()).clone(), handle, term)).collect();
            regions.sort_by(|a, b| a.0.start.cmp(&b.0.start));
            let mut next = bytes::Bytes::new();
            let last = regions.len().checked_sub(1)?;
            for (at, (region, handle, term)) in regions.iter().enumerate() {
                if handle.frozen().is_some() || region.start != next || (region.end.is_empty() != (at == last)) {
                    return None;
                }
                let name = format!("{}!end", std::str::from_utf8(&region.start).unwrap());
                if propose(handle, *term, &name, "v").recv_timeout(Duration::from_secs(1)) != Ok(Outcome::Applied) {
                    return None;
                }
                next = region.end.clone();
            }
            let agrees = |host: u64| {
                cluster.nodes[&host].host.handles().into_iter().all(|replica| {
                    regions.iter().any(|(region, leader, _)| {
                        *replica.region() == *region
                            && region.peer_on(StoreId(host)).is_some()
                            && replica.applied_index() == leader.applied_index()
                    })
                })
            };
            let everywhere = regions
                .iter()
                .all(|(region, ..)| region.peers.iter().all(|peer| cluster.handle(peer.store_id, region.id).is_some()));
            // Followers learn a little later what is committed; the next look would propose more.
            let deadline = std::time::Instant::now() + PATIENCE;
            while everywhere && std::time::Instant::now() < deadline {
                if (1..=4).all(agrees) {
                    return Some(());
                }
                std::thread::park_timeout(Duration::from_millis(2));
            }
            None
        })
    }));
    if settled.is_err() {
        panic!("did not settle: {seen}");
    }
}
