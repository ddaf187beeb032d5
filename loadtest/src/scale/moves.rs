//! What changes of regions cost: splits, transfers of leadership, moves of a replica and a full rebalance, all under a
//! steady load.
//!
//! 1. Three stores are loaded with regions of about the same size, then a fourth one is added. Schedulers stand still.
//! 2. Each single operation is repeated on different regions. Puts in the region tell how long it stood still.
//! 3. Schedulers go on: the rebalance moves what the fourth store lacks, and the steady load tells what that costs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use braid_proto::key::user_key;
use braid_proto::pb::region_plan_request::Plan as Operator;
use braid_proto::pb::{MovePeer, Region, RegionState};
use bytes::Bytes;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::balance::{self, Rebalanced, Replicas};
use super::cluster::{Cluster, Setup};
use super::fill::{DataSet, Filler};
use super::foreground::{self, Foreground, Window};
use super::probe::Probe;
use crate::admin::{Admin, Ending};
use crate::cluster::Binary;
use crate::progress;
use crate::random::Random;

/// Puts in a region go on for this long before a change, so that there is something to compare with.
const CALM: Duration = Duration::from_secs(1);
/// From one look at a leader to the next.
const LOOK: Duration = Duration::from_millis(5);
/// Regions are known to placement, with their sizes, within this.
const KNOWN: Duration = Duration::from_secs(60);
/// Keys of a region that are put to see whether it stands still.
const PROBED: u64 = 64;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The data.
    pub data: DataSet,
    /// Bytes of keys and values that a region begins with.
    pub region_bytes: u64,
    /// Members of placement's group.
    pub placements: usize,
    /// Proxies.
    pub proxies: usize,
    /// Clients while loading.
    pub fillers: u64,
    /// Puts of one transaction while loading.
    pub batch: u64,
    /// Most operations of the steady load in flight.
    pub clients: usize,
    /// Operations per second of the steady load.
    pub rate: f64,
    /// How often each single operation is done.
    pub repeat: usize,
    /// Length of the stretch before the rebalance.
    pub before: Duration,
    /// How long a move or the rebalance may take.
    pub patience: Duration,
    /// Further flags of each store.
    pub store_flags: Vec<String>,
    /// Makes keys and values repeatable.
    pub seed: u64,
}

/// One split.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Split {
    /// From the request to its answer.
    pub answer_seconds: f64,
    /// From the request until both halves had acknowledged a put.
    pub serving_seconds: f64,
    /// The longest time without an acknowledged put in the region, from the request until both halves serve.
    pub gap_seconds: f64,
    /// The same in the second before.
    pub gap_before_seconds: f64,
}

/// One transfer of leadership.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Transfer {
    /// From the request to its answer.
    pub answer_seconds: f64,
    /// From the request until placement knew the new leader.
    pub known_seconds: f64,
    /// The longest time without an acknowledged put in the region.
    pub gap_seconds: f64,
    /// The same in the second before.
    pub gap_before_seconds: f64,
}

/// One move of a replica.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Move {
    /// Bytes of keys and values in the region.
    pub user_bytes: u64,
    /// What the store says that the region has on disk.
    pub approximate_bytes: u64,
    /// From the request until the operator was done.
    pub seconds: f64,
    /// The longest time without an acknowledged put in the region.
    pub gap_seconds: f64,
    /// The same in the second before.
    pub gap_before_seconds: f64,
}

/// What the run showed.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Bytes of keys and values.
    pub user_bytes: u64,
    /// Regions after loading.
    pub regions: usize,
    /// How long loading took.
    pub load_seconds: f64,
    /// Splits by key.
    pub splits: Vec<Split>,
    /// Transfers of leadership.
    pub transfers: Vec<Transfer>,
    /// Moves of a replica to the fourth store.
    pub moves: Vec<Move>,
    /// Everything else that the fourth store lacks.
    pub rebalance: Rebalanced,
    /// The steady load before the rebalance, while schedulers stood still.
    pub before: Window,
    /// While it lasted.
    pub during: Window,
    /// The p99 of puts and of gets during the rebalance in relation to before.
    pub p99_ratio: (f64, f64),
    /// What went wrong in the steady load, with its number.
    pub errors: BTreeMap<String, u64>,
}

impl Plan {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.region_bytes > 0, "--region-mebibytes must be above 0");
        ensure!(
            self.regions() >= 2 * self.repeat as u64,
            "{} regions are too few to do everything {} times on different ones: raise --gigabytes, or lower --repeat or \
             --region-mebibytes",
            self.regions(),
            self.repeat
        );
        Ok(())
    }

    fn regions(&self) -> u64 {
        self.data.bytes_there().div_ceil(self.region_bytes)
    }
}

/// Starts a cluster in `folder` and does everything; `tell` sees each step.
pub async fn run(binary: &Binary, plan: &Plan, folder: &Path, mut tell: impl FnMut(&str)) -> anyhow::Result<Report> {
    plan.check()?;
    let setup = Setup {
        placements: plan.placements,
        proxies: plan.proxies,
        stores: 3,
        replicas: 3,
        placement_flags: plan.data.space.split_flags(plan.regions()),
        store_flags: plan.store_flags.clone(),
        limiter: None,
    };
    let mut cluster = Cluster::start(binary, &setup, folder).await?;
    let mut admin = cluster.admin().await?;
    admin.pause_schedulers(true).await.context("pausing the schedulers")?;
    let load_seconds = load(&cluster, plan).await?;
    tell(&format!("loaded {} keys in {load_seconds:.1} s", plan.data.space.count));

    cluster.grow_to(4).await?;
    let steady = foreground::Plan {
        endpoints: cluster.endpoints(),
        clients: plan.clients,
        rate: plan.rate,
        data: plan.data.clone(),
        seed: plan.seed,
    };
    let mut steady = Foreground::start(steady).await?;
    let mut bench = Bench { plan, cluster, admin };
    let regions = bench.regions().await?.len();

    let mut splits = Vec::new();
    for _ in 0..plan.repeat {
        splits.push(bench.split().await.context("split")?);
    }
    tell(&format!("{} splits done", splits.len()));
    let mut transfers = Vec::new();
    for number in 0..plan.repeat {
        transfers.push(bench.transfer(number).await.context("transfer of a leader")?);
    }
    tell(&format!("{} leaders transferred", transfers.len()));
    let mut moves = Vec::new();
    for _ in 0..plan.repeat {
        moves.push(bench.move_peer().await.context("move of a replica")?);
    }
    tell(&format!("{} replicas moved", moves.len()));

    bench.cluster.check()?;
    let before = steady.window_of(plan.before).await?;
    let (rebalance, during) = bench.rebalance(&mut steady).await.context("rebalance")?;
    tell(&format!("rebalanced in {:.1} s", rebalance.seconds));
    Ok(Report {
        user_bytes: plan.data.bytes_there(),
        regions,
        load_seconds,
        splits,
        transfers,
        moves,
        rebalance,
        p99_ratio: (ratio(during.puts.p99_us, before.puts.p99_us), ratio(during.gets.p99_us, before.gets.p99_us)),
        before,
        during,
        errors: steady.stop().await,
    })
}

async fn load(cluster: &Cluster, plan: &Plan) -> anyhow::Result<f64> {
    let filler = Filler { endpoints: cluster.endpoints(), clients: plan.fillers, batch: plan.batch, seed: plan.seed };
    let bar = progress::counting("loading", plan.data.space.count);
    let took = filler.load(&plan.data, 0, (0, 1), &bar).await?;
    bar.finish_and_clear();
    Ok(took.as_secs_f64())
}

fn ratio(now: f64, before: f64) -> f64 {
    if before > 0.0 { now / before } else { 0.0 }
}

/// A region with its numbers of keys.
struct Held {
    state: RegionState,
    region: Region,
    numbers: std::ops::Range<u64>,
}

struct Bench<'a> {
    plan: &'a Plan,
    cluster: Cluster,
    admin: Admin,
}

impl Bench<'_> {
    /// Regions with keys, by their keys, the largest first; waits until placement knows all of them with a size.
    async fn regions(&mut self) -> anyhow::Result<Vec<Held>> {
        let deadline = Instant::now() + KNOWN;
        loop {
            let states = self.admin.regions().await?;
            let held = states.into_iter().filter_map(|state| {
                let region = state.report.as_ref()?.region.clone()?;
                let numbers = self.plan.data.numbers(&region.start, &region.end)?;
                Some(Held { state, region, numbers })
            });
            let mut held: Vec<_> = held.collect();
            let keys: u64 = held.iter().map(|held| held.numbers.end - held.numbers.start).sum();
            let sized = held.iter().all(|held| held.approximate_bytes() > 0);
            if keys == self.plan.data.space.count && sized {
                held.sort_by_key(|held| std::cmp::Reverse(held.numbers.end - held.numbers.start));
                return Ok(held);
            }
            self.cluster.check()?;
            ensure!(
                Instant::now() < deadline,
                "placement knows regions with {keys} of {} keys after {KNOWN:?}, all of them with sizes: {sized}",
                self.plan.data.space.count
            );
            sleep(LOOK).await;
        }
    }

    /// The `number`-th of the regions that fit.
    async fn region(&mut self, number: usize, fits: impl Fn(&Held) -> bool) -> anyhow::Result<Held> {
        let regions = self.regions().await?;
        regions.into_iter().filter(fits).nth(number).context("no region is left for it")
    }

    /// Puts in a region, before a change.
    async fn probe(&self, numbers: &std::ops::Range<u64>) -> anyhow::Result<(Probe, Instant)> {
        let data = &self.plan.data;
        let step = ((numbers.end - numbers.start) / PROBED).max(1) as usize;
        let keys = numbers.clone().step_by(step).map(|number| data.key(number)).collect();
        let value = data.value(&mut Random::new(self.plan.seed, 3));
        let probe = Probe::start(&self.cluster.endpoints()[0], keys, value).await?;
        let calm = Instant::now();
        sleep(CALM).await;
        Ok((probe, calm))
    }

    /// Cuts one of the largest regions in the middle.
    async fn split(&mut self) -> anyhow::Result<Split> {
        let held = self.region(0, |_| true).await?;
        let middle = held.numbers.start + (held.numbers.end - held.numbers.start) / 2;
        let endpoint = self.cluster.endpoints()[0].clone();
        let value = self.plan.data.value(&mut Random::new(self.plan.seed, 4));
        let (probe, calm) = self.probe(&held.numbers).await?;
        let begin = Instant::now();
        let (left, right) = self.admin.split(user_key(&self.plan.data.key(middle))).await?;
        let answered = Instant::now();
        ensure!(left.end == right.start, "the halves do not meet: {left:?} and {right:?}");
        for half in [held.numbers.start..middle, middle..held.numbers.end] {
            let keys: Vec<Bytes> = half.take(1).map(|number| self.plan.data.key(number)).collect();
            Probe::start(&endpoint, keys, value.clone()).await.context("a half does not serve")?;
        }
        let serving = Instant::now();
        Ok(Split {
            answer_seconds: (answered - begin).as_secs_f64(),
            serving_seconds: (serving - begin).as_secs_f64(),
            gap_seconds: probe.longest_gap(begin, serving).as_secs_f64(),
            gap_before_seconds: probe.longest_gap(calm, begin).as_secs_f64(),
        })
    }

    /// Gives a region another leader.
    async fn transfer(&mut self, number: usize) -> anyhow::Result<Transfer> {
        let held = self.region(number, |held| held.other_voter().is_some()).await?;
        let to_store = held.other_voter().context("no other voter")?;
        let (mut probe, calm) = self.probe(&held.numbers).await?;
        let begin = Instant::now();
        self.admin.transfer_leader(held.region.id, to_store).await?;
        let answered = Instant::now();
        let deadline = begin + KNOWN;
        while self.admin.region(held.region.id).await?.leader_store != to_store {
            ensure!(Instant::now() < deadline, "r{} is not led by s{to_store} after {KNOWN:?}", held.region.id);
            sleep(LOOK).await;
        }
        let known = Instant::now();
        probe.acked_after(known).await?;
        Ok(Transfer {
            answer_seconds: (answered - begin).as_secs_f64(),
            known_seconds: (known - begin).as_secs_f64(),
            gap_seconds: probe.longest_gap(begin, Instant::now()).as_secs_f64(),
            gap_before_seconds: probe.longest_gap(calm, begin).as_secs_f64(),
        })
    }

    /// Moves a replica of one of the regions that have not been split to the store that has fewest.
    async fn move_peer(&mut self) -> anyhow::Result<Move> {
        let stores = self.admin.stores().await?;
        let emptiest = stores.iter().min_by_key(|state| state.replicas).and_then(|state| state.store.as_ref());
        let to_store = emptiest.context("placement names no stores")?.id;
        let held = self.region(0, |held| !held.has(to_store)).await?;
        // A follower: what a transfer of leadership costs is measured by itself.
        let from_store = held.other_voter().context("no other voter")?;
        let (mut probe, calm) = self.probe(&held.numbers).await?;
        let begin = Instant::now();
        let plan = Operator::MovePeer(MovePeer { region_id: held.region.id, from_store, to_store });
        let operator = self.admin.plan(plan).await?;
        match self.admin.follow(&operator, self.plan.patience).await? {
            Ending::Done => {}
            Ending::Otherwise(how) => bail!("r{} from s{from_store} to s{to_store}: {how}", held.region.id),
            Ending::Open(how) => bail!(
                "r{} from s{from_store} to s{to_store}: not done after {:?}: {how}",
                held.region.id,
                self.plan.patience
            ),
        }
        let done = Instant::now();
        probe.acked_after(done).await?;
        Ok(Move {
            user_bytes: (held.numbers.end - held.numbers.start) * self.plan.data.space.entry_bytes(),
            approximate_bytes: held.approximate_bytes(),
            seconds: (done - begin).as_secs_f64(),
            gap_seconds: probe.longest_gap(begin, Instant::now()).as_secs_f64(),
            gap_before_seconds: probe.longest_gap(calm, begin).as_secs_f64(),
        })
    }

    /// Lets schedulers go on until all is balanced.
    async fn rebalance(&mut self, steady: &mut Foreground) -> anyhow::Result<(Rebalanced, Window)> {
        let (before, counted) = (Replicas::read(&mut self.admin).await?, self.admin.balance().await?);
        let begin = Instant::now();
        self.admin.pause_schedulers(false).await.context("letting the schedulers go on")?;
        let bar = progress::timing("rebalancing", self.plan.patience);
        let done = balance::wait(&mut self.cluster, &before, &counted, begin, self.plan.patience, &bar).await?;
        bar.finish_and_clear();
        let end = begin + Duration::from_secs_f64(done.seconds);
        Ok((done, steady.window(begin, end).await?))
    }
}

impl Held {
    fn approximate_bytes(&self) -> u64 {
        self.state.report.as_ref().map_or(0, |report| report.approximate_bytes)
    }

    /// A store with a voter that is not the leader.
    fn other_voter(&self) -> Option<u64> {
        let voters = self.region.peers.iter().filter(|peer| !peer.learner && !peer.changing);
        voters.map(|peer| peer.store_id).find(|store| *store != self.state.leader_store)
    }

    fn has(&self, store: u64) -> bool {
        self.region.peers.iter().any(|peer| peer.store_id == store)
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::Peer;

    use super::*;

    #[test]
    fn there_must_be_regions_enough() {
        let mut plan = Plan {
            data: DataSet::new("k/".into(), 1_000, 88, 0).unwrap(),
            region_bytes: 20_000,
            placements: 1,
            proxies: 1,
            fillers: 1,
            batch: 1,
            clients: 1,
            rate: 1.0,
            repeat: 2,
            before: CALM,
            patience: CALM,
            store_flags: Vec::new(),
            seed: 1,
        };
        assert_eq!(plan.regions(), 5);
        assert!(plan.check().is_ok());
        plan.repeat = 3;
        assert!(plan.check().unwrap_err().to_string().contains("--repeat"));
        plan.region_bytes = 0;
        assert!(plan.check().is_err());
    }

    #[test]
    fn a_transfer_goes_to_a_voter_that_does_not_lead() {
        let peer = |store_id, learner| Peer { id: store_id, store_id, learner, changing: false };
        let region = Region { peers: vec![peer(1, false), peer(2, true), peer(3, false)], ..Region::default() };
        let state = RegionState { leader_store: 1, ..RegionState::default() };
        let mut held = Held { state, region, numbers: 0..1 };
        assert_eq!(held.other_voter(), Some(3));
        assert!(held.has(2) && !held.has(4));
        held.region.peers.pop();
        assert_eq!(held.other_voter(), None);
    }

    #[test]
    fn nothing_before_makes_no_ratio() {
        assert!((ratio(6.0, 3.0) - 2.0).abs() < 1e-9);
        assert!(ratio(6.0, 0.0).abs() < 1e-9);
    }
}
