//! The faults that are asked of braid's admin service: split, transfer of leadership, move of a replica.

use std::time::Duration;

use anyhow::{Context, bail};
use braid_proto::key::user_key;
use braid_proto::pb::admin_client::AdminClient;
use braid_proto::pb::region_plan_request::Plan as Operator;
use braid_proto::pb::{
    AdminSplitRequest, AdminTransferLeaderRequest, MovePeer, RegionListRequest, RegionPlanRequest, RegionState,
    StoreListRequest,
};
use bytes::Bytes;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use super::Fault;
use crate::client::Address;
use crate::random::Random;

/// How long an order may take.
const PATIENCE: Duration = Duration::from_secs(20);

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
        let order = async {
            let channel = endpoint.channel().await?;
            let mut client = AdminClient::new(channel).max_decoding_message_size(usize::MAX);
            match fault {
                Fault::Split => self.split(&mut client).await,
                Fault::TransferLeader => self.transfer_leader(&mut client).await,
                Fault::MovePeer => self.move_peer(&mut client).await,
                Fault::Kill | Fault::Pause | Fault::Restart => bail!("{fault} is not asked of the admin service"),
            }
        };
        timeout(PATIENCE, order).await.with_context(|| format!("no answer within {PATIENCE:?}"))?
    }

    async fn split(&mut self, client: &mut AdminClient<Channel>) -> anyhow::Result<String> {
        let key = self.keys[self.random.below(self.keys.len() as u64) as usize].clone();
        let request = AdminSplitRequest { key: user_key(&key), ..AdminSplitRequest::default() };
        let answer = client.region_split(request).await.map_err(said)?.into_inner();
        refused(&answer.failed)?;
        Ok(format!("split at {}", key.escape_ascii()))
    }

    async fn transfer_leader(&mut self, client: &mut AdminClient<Channel>) -> anyhow::Result<String> {
        let region = self.region(client).await?;
        let report = region.report.unwrap_or_default();
        let known = report.region.unwrap_or_default();
        let others: Vec<u64> = known
            .peers
            .iter()
            .filter(|peer| !peer.learner && !peer.changing && peer.store_id != region.leader_store)
            .map(|peer| peer.store_id)
            .collect();
        let to_store = self.one_of(&others).with_context(|| format!("region r{} has no other voter", known.id))?;
        let request = AdminTransferLeaderRequest { region_id: known.id, to_store };
        let answer = client.region_transfer_leader(request).await.map_err(said)?.into_inner();
        refused(&answer.failed)?;
        Ok(format!("leader of r{} to s{to_store}", known.id))
    }

    async fn move_peer(&mut self, client: &mut AdminClient<Channel>) -> anyhow::Result<String> {
        let stores = client.store_list(StoreListRequest {}).await.map_err(said)?.into_inner().stores;
        let up = stores.iter().filter(|state| state.state == "up").filter_map(|state| state.store.as_ref());
        let up: Vec<u64> = up.map(|store| store.id).collect();
        let region = self.region(client).await?;
        let known = region.report.and_then(|report| report.region).unwrap_or_default();
        let has = |store: &u64| known.peers.iter().any(|peer| peer.store_id == *store);
        let free: Vec<u64> = up.iter().copied().filter(|store| !has(store)).collect();
        let from: Vec<u64> = known.peers.iter().map(|peer| peer.store_id).collect();
        let (Some(from_store), Some(to_store)) = (self.one_of(&from), self.one_of(&free)) else {
            bail!("every store that is up has a replica of r{}: it takes more stores than replicas", known.id)
        };
        let plan = Operator::MovePeer(MovePeer { region_id: known.id, from_store, to_store });
        let answer = client.region_plan(RegionPlanRequest { plan: Some(plan) }).await.map_err(said)?.into_inner();
        refused(&answer.failed)?;
        Ok(format!("replica of r{} from s{from_store} to s{to_store}", known.id))
    }

    /// One of all regions.
    async fn region(&mut self, client: &mut AdminClient<Channel>) -> anyhow::Result<RegionState> {
        let mut regions = client.region_list(RegionListRequest::default()).await.map_err(said)?.into_inner().regions;
        anyhow::ensure!(!regions.is_empty(), "the cluster tells of no regions yet");
        let at = self.random.below(regions.len() as u64) as usize;
        Ok(regions.swap_remove(at))
    }

    fn one_of(&mut self, stores: &[u64]) -> Option<u64> {
        match stores.len() as u64 {
            0 => None,
            count => Some(stores[self.random.below(count) as usize]),
        }
    }
}

/// An answer that says why not.
fn refused(failed: &str) -> anyhow::Result<()> {
    anyhow::ensure!(failed.is_empty(), "{failed}");
    Ok(())
}

/// An error of the call. A server without the service is no braid, or an older one.
fn said(status: Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => anyhow::anyhow!("this server does not offer it"),
        code => anyhow::anyhow!("{} ({code:?})", status.message()),
    }
}
