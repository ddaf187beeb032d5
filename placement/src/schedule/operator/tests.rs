//! An operator, report by report.

use braid_proto::id::PeerId;
use braid_proto::pb::Peer;

use super::*;
use crate::schedule::view::RegionNews;

fn peer(id: u64, learner: bool) -> Peer {
    Peer { learner, ..Peer::voter(10 + id, id) }
}

fn news(conf_ver: u64, peers: &[Peer], leader: u64) -> RegionNews {
    let epoch = Some(RegionEpoch { conf_ver, version: 1 });
    let region = Region { id: 7, start: "a".into(), end: "m".into(), epoch, peers: peers.to_vec() };
    RegionNews { region, leader: PeerId(10 + leader), bytes: 5 << 20, ..RegionNews::default() }
}

struct Bench {
    view: View,
    config: Config,
    operator: Operator,
}

impl Bench {
    /// The replica on s1, which leads, is to go to s4.
    fn new() -> Self {
        Self::with(|region, _| Plan::replace(region, StoreId(1), StoreId(4), None).unwrap())
    }

    fn with(plan: impl Fn(&RegionView, &View) -> Plan) -> Self {
        let mut view = View::new(Vec::new());
        (1..=5).for_each(|id| view.put_store(StoreId(id), Default::default(), 1.0));
        view.take(news(1, &[peer(1, false), peer(2, false), peer(3, false)], 1), 0);
        let mut right = news(1, &[peer(1, false), peer(2, false), peer(3, false)], 1);
        (right.region.id, right.region.start, right.region.end) = (8, "m".into(), "z".into());
        view.take(right, 0);
        let region = view.region(RegionId(7)).unwrap();
        let mut plan = plan(region, &view);
        plan.steps.iter_mut().for_each(|step| step.name(3, &mut || 14));
        let operator = Operator::new(OperatorId(1), plan, region, 0);
        Self { view, config: Config::default(), operator }
    }

    fn report(&mut self, news: RegionNews, now_ms: u64) -> Progress {
        self.view.take(news, now_ms);
        self.look(now_ms)
    }

    fn look(&mut self, now_ms: u64) -> Progress {
        self.operator.step(self.view.region(RegionId(7)).unwrap(), &self.view, &self.config, now_ms)
    }
}

fn ordered(progress: &Progress) -> String {
    match progress {
        Progress::Order(order) => format!("{}: {}", order.leader, order.step),
        Progress::Wait(_) => "wait".to_owned(),
        Progress::Done => "done".to_owned(),
        Progress::Failed(why) => format!("failed: {why}"),
    }
}

#[test]
fn schedule_moves_a_leaders_replica_step_by_step() {
    let mut bench = Bench::new();
    let (one, two, three) = (peer(1, false), peer(2, false), peer(3, false));
    assert_eq!(ordered(&bench.look(0)), "s1: add learner p14 on s4");
    assert_eq!(ordered(&bench.look(100)), "wait", "an order is not given again at once");
    assert_eq!(ordered(&bench.look(6_000)), "s1: add learner p14 on s4");
    bench.operator.not_yet("the store is starting", &bench.config, 6_100);
    let Progress::Wait(why) = bench.look(6_200) else { panic!("refused a moment ago") };
    assert!(why.ends_with("add learner p14 on s4: the store is starting"), "{why}");
    assert_eq!(ordered(&bench.look(7_100)), "s1: add learner p14 on s4", "what was refused need not wait as long");
    assert_eq!(ordered(&bench.look(8_200)), "wait");
    let mut added = news(2, &[one, two, three, peer(4, true)], 1);
    added.catching_up = vec![PeerId(14)];
    assert_eq!(ordered(&bench.report(added.clone(), 8_300)), "wait", "the learner has not caught up");
    added.catching_up.clear();
    assert_eq!(ordered(&bench.report(added.clone(), 8_400)), "s1: transfer leader to s2", "the leader keeps its vote");
    added.leader = PeerId(12);
    assert_eq!(ordered(&bench.report(added, 8_450)), "s2: promote s4, demote s1", "the step itself need not wait");
    let mut changed = news(4, &[peer(1, true), two, three, peer(4, false)], 2);
    changed.joint = true;
    assert_eq!(ordered(&bench.report(changed.clone(), 9_000)), "wait");
    changed.joint = false;
    assert_eq!(ordered(&bench.report(changed, 10_000)), "s2: remove peer on s1");
    assert_eq!(ordered(&bench.report(news(5, &[two, three, peer(4, false)], 2), 11_000)), "done");
}

#[test]
fn schedule_gives_up_when_somebody_else_changes_the_region_or_time_is_over() {
    let mut bench = Bench::new();
    bench.look(0);
    let foreign = news(2, &[peer(1, false), peer(2, false), peer(3, false), peer(5, true)], 1);
    assert_eq!(ordered(&bench.report(foreign, 1)), "failed: the peers of r7 were changed by somebody else");

    let mut bench = Bench::new();
    bench.look(0);
    let mut split = news(1, &[peer(1, false), peer(2, false), peer(3, false)], 1);
    split.region.epoch = Some(RegionEpoch { conf_ver: 1, version: 2 });
    assert_eq!(ordered(&bench.report(split, 1)), "failed: r7 was split or merged meanwhile");

    let mut bench = Bench::new();
    bench.look(0);
    let late = bench.config.snapshot_ms_max + 10_000;
    assert!(ordered(&bench.look(late)).starts_with("failed: not done in 60"), "{:?}", bench.look(late));
    assert_eq!(bench.operator.gone(Some(RegionId(9))), Progress::Failed("the region was merged into r9".to_owned()));
}

#[test]
fn schedule_waits_for_a_frozen_region_to_be_merged() {
    let bench = || Bench::with(|region, view| Plan::merge(region, view.region(RegionId(8)).unwrap()));
    let frozen = |version| {
        let mut news = news(1, &[peer(1, false), peer(2, false), peer(3, false)], 1);
        news.region.epoch = Some(RegionEpoch { conf_ver: 1, version });
        news
    };
    let mut merging = bench();
    assert_eq!(ordered(&merging.look(0)), "s1: merge into r8");
    assert_eq!(ordered(&merging.report(frozen(2), 10)), "wait", "it is frozen at the next version, and reported so");
    assert_eq!(ordered(&merging.look(20)), "wait");
    assert_eq!(merging.operator.gone(Some(RegionId(8))), Progress::Done);

    let mut thawed = bench();
    thawed.look(0);
    assert_eq!(ordered(&thawed.report(frozen(3), 10)), "failed: r7 was split or merged meanwhile");
    let mut stuck = bench();
    stuck.look(0);
    stuck.report(frozen(2), 10);
    assert!(ordered(&stuck.look(stuck.config.step_ms_max + 1)).starts_with("failed"));
}

#[test]
fn schedule_holds_back_a_change_that_would_cost_the_quorum() {
    let mut bench = Bench::new();
    bench.look(0);
    let mut added = news(2, &[peer(1, false), peer(2, false), peer(3, false), peer(4, true)], 2);
    added.down = vec![PeerId(13), PeerId(11)];
    assert_eq!(ordered(&bench.report(added, 10)), "wait");
    assert_eq!(bench.operator.said, "for a quorum of r7's voters");
}
