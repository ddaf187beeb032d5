//! Waiting until placement says that a cluster is balanced, and what moved until then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;
use braid_proto::pb::{BalanceResponse, RegionState};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::cluster::Cluster;
use crate::admin::Admin;

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(200);
/// A cluster is balanced when placement has said so for this long: schedulers look once in a while.
const STEADY: Duration = Duration::from_secs(3);

/// Which stores have a replica of which region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replicas(BTreeMap<u64, BTreeSet<u64>>);

/// How a cluster came to be balanced.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Rebalanced {
    /// Until placement said that it is balanced, and did not take it back.
    pub seconds: f64,
    /// Operators that were done meanwhile.
    pub operators: u64,
    /// Bytes that placement says moved.
    pub bytes_moved: u64,
    /// Replicas that are at a store where there was none of their region before.
    pub replicas_moved: usize,
    /// Replicas and leaders of each store afterwards, by store.
    pub replicas: BTreeMap<u64, u32>,
    /// Leaders.
    pub leaders: BTreeMap<u64, u32>,
}

impl Replicas {
    /// As placement knows them.
    pub async fn read(admin: &mut Admin) -> anyhow::Result<Self> {
        Ok(Self::of(&admin.regions().await?))
    }

    fn of(regions: &[RegionState]) -> Self {
        let known = regions.iter().filter_map(|state| state.report.as_ref()?.region.as_ref());
        Self(known.map(|region| (region.id, region.peers.iter().map(|peer| peer.store_id).collect())).collect())
    }

    /// Replicas that are at a store where there was none of their region before. Regions that are new meanwhile (split
    /// off) are not counted.
    fn moved_since(&self, before: &Self) -> usize {
        let both = self.0.iter().filter_map(|(region, stores)| Some((stores, before.0.get(region)?)));
        both.map(|(now, before)| now.difference(before).count()).sum()
    }
}

/// Waits for balance; `before` is what there was at `since`, the moment that balance was disturbed.
pub async fn wait(
    cluster: &mut Cluster,
    before: &Replicas,
    counted: &BalanceResponse,
    since: Instant,
    within: Duration,
    bar: &ProgressBar,
) -> anyhow::Result<Rebalanced> {
    let mut admin = cluster.admin().await?;
    let mut balanced_since = None;
    let (seconds, balance) = loop {
        cluster.check()?;
        let balance = admin.balance().await?;
        bar.set_prefix(format!("{} operators under way, {} done", balance.operators, balance.operators_done));
        bar.set_position(since.elapsed().as_millis() as u64);
        if balance.balanced {
            let from = *balanced_since.get_or_insert_with(Instant::now);
            if from.elapsed() >= STEADY {
                break ((from - since).as_secs_f64(), balance);
            }
        } else {
            balanced_since = None;
            if since.elapsed() >= within {
                let under_way = admin.under_way().await?.join("\n  ");
                bail!("{}\nunder way:\n  {under_way}", too_long(&balance, within));
            }
        }
        sleep(LOOK).await;
    };
    let after = Replicas::read(&mut admin).await?;
    let stores = admin.stores().await?;
    let id = |state: &braid_proto::pb::StoreState| state.store.as_ref().map_or(0, |store| store.id);
    Ok(Rebalanced {
        seconds,
        operators: balance.operators_done.saturating_sub(counted.operators_done),
        bytes_moved: balance.bytes_moved.saturating_sub(counted.bytes_moved),
        replicas_moved: after.moved_since(before),
        replicas: stores.iter().map(|state| (id(state), state.replicas)).collect(),
        leaders: stores.iter().map(|state| (id(state), state.leaders)).collect(),
    })
}

fn too_long(balance: &BalanceResponse, within: Duration) -> String {
    let BalanceResponse { bytes_to_move, leaders_to_move, replicas_to_repair, operators, waits_for, .. } = balance;
    let waits = match waits_for.is_empty() {
        true => "placement does not say what it waits for".to_owned(),
        false => format!("it waits for:\n  {}", waits_for.join("\n  ")),
    };
    format!(
        "not balanced after {within:?}: {bytes_to_move} bytes and {leaders_to_move} leaders to move, \
         {replicas_to_repair} replicas to repair, {operators} operators; {waits}"
    )
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::{Peer, Region, RegionReport};

    use super::*;

    fn regions(regions: &[(u64, &[u64])]) -> Replicas {
        let state = |(id, stores): &(u64, &[u64])| {
            let peers = stores.iter().map(|&store_id| Peer { store_id, ..Peer::default() }).collect();
            let region = Region { id: *id, peers, ..Region::default() };
            RegionState {
                report: Some(RegionReport { region: Some(region), ..RegionReport::default() }),
                ..RegionState::default()
            }
        };
        Replicas::of(&regions.iter().map(state).collect::<Vec<_>>())
    }

    #[test]
    fn a_replica_at_a_new_store_has_moved_and_a_new_region_has_not() {
        let before = regions(&[(1, &[1, 2, 3]), (2, &[1, 2, 3])]);
        let after = regions(&[(1, &[4, 2, 5]), (2, &[3, 2, 1]), (3, &[4, 2, 3])]);
        assert_eq!(after.moved_since(&before), 2);
        assert_eq!(before.moved_since(&before), 0);
    }

    #[test]
    fn what_is_waited_for_is_said() {
        let waits_for = vec!["balance is paused".to_owned()];
        let balance = BalanceResponse { leaders_to_move: 3, waits_for, ..BalanceResponse::default() };
        let text = too_long(&balance, Duration::from_secs(9));
        assert!(
            text.contains("after 9s") && text.contains("3 leaders") && text.contains("balance is paused"),
            "{text}"
        );
    }
}
