//! Indexes and sums are always those that counting anew would give.

use braid_proto::pb::{Peer, Region, RegionEpoch};

use super::*;

/// xorshift: repeatable from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn random_news(dice: &mut Dice, id: u64, version: u64) -> RegionNews {
    let first = dice.roll(5);
    let peers: Vec<Peer> = (0..3)
        .map(|at| Peer { learner: at == 2 && dice.roll(4) == 0, ..Peer::voter(id * 10 + at, (first + at) % 5 + 1) })
        .collect();
    let epoch = Some(RegionEpoch { conf_ver: 1, version });
    let region = Region { id, start: format!("{id:03}").into(), end: format!("{:03}", id + 1).into(), epoch, peers };
    let (bytes, keys) = (dice.roll(100) << 20, dice.roll(1_000));
    let load = Load { ops: dice.roll(50), written: dice.roll(500) };
    let leader = if dice.roll(5) == 0 { PeerId::INVALID } else { PeerId(id * 10) };
    RegionNews { region, leader, bytes, keys, load, ..RegionNews::default() }
}

fn check(view: &View) {
    let (mut held, mut planned) = (BTreeMap::<StoreId, Sums>::new(), BTreeMap::<StoreId, Sums>::new());
    for region in view.regions() {
        let add = |sums: &mut BTreeMap<StoreId, Sums>, stores: Vec<StoreId>, leader: StoreId| {
            for store in stores {
                let sum = sums.entry(store).or_default();
                let leads = u64::from(store == leader);
                sum.replicas += 1;
                sum.bytes += region.weight_bytes();
                sum.written += region.news.load.written;
                sum.leaders += leads;
                sum.ops += leads * region.news.load.ops;
            }
        };
        add(&mut held, region.stores().collect(), region.leader_store());
        let (stores, leader) = region.planned();
        add(&mut planned, stores, leader);
    }
    for store in view.stores() {
        assert_eq!(store.held, held.remove(&store.id).unwrap_or_default(), "{}", store.id);
        assert_eq!(store.planned, planned.remove(&store.id).unwrap_or_default(), "{}", store.id);
        assert_eq!(store.replicas.len() as u64, store.held.replicas);
        assert_eq!(store.leaders.len() as u64, store.held.leaders);
    }
    let (index, regions) = (view.index(), view.regions().len());
    assert_eq!([index.by_start.len(), index.by_bytes.len(), index.by_keys.len()], [regions; 3]);
    assert_eq!(index.by_voters.values().map(|set| set.len()).sum::<usize>(), regions);
    assert_eq!(index.by_crowding.values().map(|set| set.len()).sum::<usize>(), regions);
    assert_eq!(index.unwell.len(), view.regions().filter(|region| !region.is_calm()).count());
    assert_eq!(index.ops, view.regions().map(|region| region.news.load.ops).sum::<u64>());
}

#[test]
fn schedule_view_counts_as_if_counted_anew() {
    for seed in 1..=20 {
        let (mut dice, mut view) = (Dice(seed), View::new(vec!["zone".to_owned()]));
        for step in 0..200 {
            let id = 1 + dice.roll(30);
            match dice.roll(7) {
                0 => view.forget(RegionId(id)),
                1 => view.lose_leader(RegionId(id)),
                2 => {
                    let goal = Goal { stores: vec![StoreId(1), StoreId(2)], leader: Some(StoreId(2)) };
                    view.set_goal(RegionId(id), (dice.roll(2) == 0).then_some(goal));
                }
                // Also stores that join after regions on them are known, and that get another label.
                3 => {
                    let zone = format!("z{}", dice.roll(2));
                    view.put_store(StoreId(1 + dice.roll(5)), [("zone".to_owned(), zone)].into(), 1.0);
                }
                _ => _ = view.take(random_news(&mut dice, id, step + 1), step),
            }
        }
        check(&view);
    }
}

#[test]
fn schedule_view_forgets_what_a_newer_region_covers_and_refuses_older_reports() {
    let (mut dice, mut view) = (Dice(5), View::new(Vec::new()));
    (1..=4).for_each(|id| _ = view.take(random_news(&mut dice, id, 3), 0));
    let mut merged = random_news(&mut dice, 2, 4);
    merged.region.end = "004".into();
    assert_eq!(view.take(merged, 1), Taken::New { gone: vec![RegionId(3)] });
    assert_eq!(view.take(random_news(&mut dice, 3, 3), 2), Taken::Stale, "a late word of what is merged");
    assert_eq!(view.take(random_news(&mut dice, 2, 3), 2), Taken::Stale);
    let mut over = random_news(&mut dice, 9, 2);
    (over.region.start, over.region.end) = ("001".into(), "002".into());
    assert_eq!(view.take(over, 2), Taken::Stale, "an older region over a part of a newer one");
}

#[test]
fn schedule_goes_around_a_set_from_any_point() {
    let set = [3, 4, 9].map(RegionId).into();
    for seed in 0..20 {
        let mut seen: Vec<RegionId> = around(&set, seed).collect();
        seen.sort_unstable();
        assert_eq!(seen, [3, 4, 9].map(RegionId));
    }
    assert_eq!(around(&std::collections::BTreeSet::new(), 5).count(), 0);
}
