//! The faults that are asked of braid's admin service: split, transfer of leadership, move of a replica.

use std::time::Duration;

use anyhow::{Context, bail};
use braid_proto::key::user_key;
use braid_proto::pb::region_plan_request::Plan as Operator;
use braid_proto::pb::{MovePeer, RegionState};
use bytes::Bytes;

use super::Fault;
use crate::admin::{Admin as Service, Ending};
use crate::client::Address;
use crate::random::Random;

/// How long a move is awaited. Members are up meanwhile: an order is a blow of its own.
const MOVE: Duration = Duration::from_secs(30);

/// Gives orders at random, at whatever endpoint answers.
#[derive(Debug)]
pub struct Admin {
    endpoints: Vec<Address>,
    at: usize,
    random: Random,
    /// Where regions may be cut.
    keys: Vec<Bytes>,
}

impl Admin {
    /// Asks at these endpoints; regions are cut at one of `keys`, which must not be empty.
    pub fn new(endpoints: &[Address], keys: Vec<Bytes>, seed: u64) -> Self {
        Self { endpoints: endpoints.to_vec(), at: 0, random: Random::new(seed, 7), keys }
    }

    /// Gives one order. What was done, or an error that says why not.
    pub async fn deal(&mut self, fault: Fault) -> anyhow::Result<String> {
        let endpoint = self.endpoints[self.at % self.endpoints.len()].clone();
        self.at += 1;
        let mut service = Service::connect(&endpoint).await?;
        match fault {
            Fault::Split => self.split(&mut service).await,
            Fault::TransferLeader => self.transfer_leader(&mut service).await,
            Fault::MovePeer => self.move_peer(&mut service).await,
            Fault::Kill | Fault::Pause | Fault::Restart => bail!("{fault} is not asked of the admin service"),
        }
    }

    async fn split(&mut self, service: &mut Service) -> anyhow::Result<String> {
        let key = self.keys[self.random.below(self.keys.len() as u64) as usize].clone();
        service.split(user_key(&key)).await?;
        Ok(format!("split at {}", key.escape_ascii()))
    }

    async fn transfer_leader(&mut self, service: &mut Service) -> anyhow::Result<String> {
        let region = self.region(service, |_| true).await?;
        let report = region.report.unwrap_or_default();
        let known = report.region.unwrap_or_default();
        let others: Vec<u64> = known
            .peers
            .iter()
            .filter(|peer| !peer.learner && !peer.changing && peer.store_id != region.leader_store)
            .map(|peer| peer.store_id)
            .collect();
        let to_store = self.one_of(&others).with_context(|| format!("region r{} has no other voter", known.id))?;
        service.transfer_leader(known.id, to_store).await?;
        Ok(format!("leader of r{} to s{to_store}", known.id))
    }

    /// Waits until the move has ended. One that ends in another way than it should is not done; one that is still under
    /// way goes on beside the next blows.
    async fn move_peer(&mut self, service: &mut Service) -> anyhow::Result<String> {
        let up = service.stores_up().await?;
        // One thing at a time is done to a region, and schedulers have their own plans.
        let region = self.region(service, |region| region.operator.is_none()).await?;
        let known = region.report.and_then(|report| report.region).unwrap_or_default();
        let has = |store: &u64| known.peers.iter().any(|peer| peer.store_id == *store);
        let free: Vec<u64> = up.iter().copied().filter(|store| !has(store)).collect();
        let from: Vec<u64> = known.peers.iter().map(|peer| peer.store_id).collect();
        let (Some(from_store), Some(to_store)) = (self.one_of(&from), self.one_of(&free)) else {
            bail!("every store that is up has a replica of r{}: it takes more stores than replicas", known.id)
        };
        let what = format!("replica of r{} from s{from_store} to s{to_store}", known.id);
        let plan = Operator::MovePeer(MovePeer { region_id: known.id, from_store, to_store });
        let operator = service.plan(plan).await.with_context(|| what.clone())?;
        let begin = std::time::Instant::now();
        match service.follow(&operator, MOVE).await.with_context(|| format!("{what}, begun"))? {
            Ending::Done => Ok(format!("{what}, done after {:.1} s", begin.elapsed().as_secs_f64())),
            Ending::Open(how) => Ok(format!("{what}, still under way after {MOVE:?}: {how}")),
            Ending::Otherwise(how) => bail!("{what}: {how}"),
        }
    }

    /// One of all regions that fit.
    async fn region(
        &mut self,
        service: &mut Service,
        fits: impl FnMut(&RegionState) -> bool,
    ) -> anyhow::Result<RegionState> {
        let regions = service.regions().await?;
        anyhow::ensure!(!regions.is_empty(), "the cluster tells of no regions yet");
        let mut fitting: Vec<_> = regions.into_iter().filter(fits).collect();
        anyhow::ensure!(!fitting.is_empty(), "something is under way on every region");
        let at = self.random.below(fitting.len() as u64) as usize;
        Ok(fitting.swap_remove(at))
    }

    fn one_of(&mut self, stores: &[u64]) -> Option<u64> {
        match stores.len() as u64 {
            0 => None,
            count => Some(stores[self.random.below(count) as usize]),
        }
    }
}
