//! HashKV, and the comparison of replicas.

use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use braid_proto::etcd::etcdserverpb::{HashKvRequest, HashKvResponse};
use braid_proto::pb::checked_region::Verdict;
use braid_proto::pb::inspect_client::InspectClient;
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{Busy, CheckedRegion, HashResponse, RegionCheckRequest, TimedOut, region_response};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::client::{fails_as, revision};
use crate::cluster::Cluster;
use crate::world::Script;

/// Four regions with a few keys in each.
async fn filled() -> (Cluster, MaintenanceClient<Channel>) {
    let cluster = Cluster::local(&["c", "f", "t"]).await;
    for (i, key) in ["a", "b", "c", "e", "f", "s", "t", "z", "a", "f"].iter().enumerate() {
        cluster.world.put(key, &i.to_string());
    }
    let client = MaintenanceClient::new(cluster.channel().await);
    (cluster, client)
}

async fn hash(client: &mut MaintenanceClient<Channel>, revision: i64) -> Result<HashKvResponse, Status> {
    let mut request = Request::new(HashKvRequest { revision });
    request.set_timeout(Duration::from_secs(20));
    Ok(client.hash_kv(request).await?.into_inner())
}

fn other_hash() -> Script {
    Script::Answer(region_response::Result::Hash(HashResponse { crc: 1, bytes: 2, keys: 3, versions: 4 }))
}

#[tokio::test]
async fn the_hash_is_that_of_the_whole_wherever_regions_are_cut() {
    let (cluster, mut client) = filled().await;
    let found = hash(&mut client, 0).await.expect("served");
    assert_eq!(found.hash, cluster.world.hash_of_all(11).crc);
    assert_eq!((revision(&found.header), found.compact_revision, found.hash_revision), (11, -1, 11));
    assert_eq!(found.header.expect("a header").member_id, crate::cluster::MEMBER);
    let older = hash(&mut client, 7).await.expect("served");
    assert_eq!(older.hash, cluster.world.hash_of_all(7).crc);
    assert_eq!((revision(&older.header), older.hash_revision), (11, 7));
    assert_ne!(older.hash, found.hash);

    // The routes are old now: what was one region's is asked of two.
    cluster.world.split("e");
    cluster.world.split("b");
    assert_eq!(hash(&mut client, 0).await.expect("served").hash, found.hash);
}

#[tokio::test]
async fn revisions_are_judged_as_etcd_does() {
    let (cluster, mut client) = filled().await;
    fails_as(hash(&mut client, 12).await, error::FUTURE_REVISION);
    cluster.world.set_compacted(5);
    fails_as(hash(&mut client, 4).await, error::COMPACTED);
    let found = hash(&mut client, 5).await.expect("served");
    assert_eq!((found.compact_revision, found.hash_revision), (5, 5));
}

#[tokio::test]
async fn a_store_that_has_compacted_more_makes_it_begin_again() {
    let (cluster, mut client) = filled().await;
    let compacted = region_response::Result::Error(error::COMPACTED.into());
    cluster.world.script(1, Script::Answer(compacted));
    let found = hash(&mut client, 0).await.expect("served");
    assert_eq!(found.hash, cluster.world.hash_of_all(11).crc);
}

async fn check(cluster: &Cluster, region_id: u64, timeout: Duration) -> Vec<CheckedRegion> {
    let mut request = Request::new(RegionCheckRequest { region_id });
    request.set_timeout(timeout);
    let answer = InspectClient::new(cluster.channel().await).region_check(request).await.expect("served");
    answer.into_inner().regions
}

const ENOUGH: Duration = Duration::from_secs(20);

fn verdicts(regions: &[CheckedRegion]) -> Vec<(u64, Verdict, &[u64])> {
    let id = |checked: &CheckedRegion| checked.region.as_ref().expect("a region").id;
    regions.iter().map(|checked| (id(checked), checked.verdict(), &checked.differing_stores[..])).collect()
}

#[tokio::test]
async fn every_replica_is_asked_and_the_one_that_differs_is_named() {
    let (cluster, _) = filled().await;
    let same = (Verdict::Same, &[][..]);
    let all_same = [(1, same.0, same.1), (2, same.0, same.1), (3, same.0, same.1), (4, same.0, same.1)];
    let regions = check(&cluster, 0, ENOUGH).await;
    assert_eq!(verdicts(&regions), all_same);
    assert!(regions.iter().all(|region| region.revision == 11 && region.replicas.len() == 3));
    let mut calls = cluster.world.take_calls();
    calls.sort();
    let every_replica: Vec<String> =
        (1..=3).flat_map(|store| (1..=4).map(move |region| format!("s{store} r{region} hash"))).collect();
    assert_eq!(calls, every_replica);

    cluster.world.script(2, other_hash());
    let regions = check(&cluster, 3, ENOUGH).await;
    assert_eq!(verdicts(&regions), [(3, Verdict::Different, &[2][..])]);
}

#[tokio::test]
async fn a_replica_without_a_hash_is_named_with_the_reason() {
    let (cluster, _) = filled().await;
    cluster.world.script(1, Script::Refuse(Reason::Busy(Busy { what: "scripted".into(), retry_after_ms: 0 })));
    cluster.world.script(3, Script::Refuse(Reason::TimedOut(TimedOut { what: "it lags".into() })));
    let regions = check(&cluster, 2, ENOUGH).await;
    assert_eq!(verdicts(&regions), [(2, Verdict::Incomplete, &[][..])], "busy is asked again, late is not");
    let failed: Vec<&str> = regions[0].replicas.iter().map(|replica| replica.failed.as_str()).collect();
    assert_eq!(failed, ["", "", "it lags"]);

    let asked = Instant::now();
    cluster.world.script(2, Script::Hang);
    let regions = check(&cluster, 2, Duration::from_secs(1)).await;
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert_eq!(verdicts(&regions), [(2, Verdict::Incomplete, &[][..])]);
    assert_eq!(regions[0].replicas[1].failed, "it does not answer in time");

    cluster.world.kill(3);
    let regions = check(&cluster, 2, Duration::from_secs(1)).await;
    assert_eq!(regions[0].replicas[2].failed, "the store cannot be reached");
}

#[tokio::test]
async fn regions_that_change_meanwhile_are_looked_up_again() {
    let (cluster, mut client) = filled().await;
    hash(&mut client, 0).await.expect("the routes are known");
    cluster.world.split("e");
    cluster.world.move_region(4, &[1, 2]);
    let regions = check(&cluster, 0, ENOUGH).await;
    let same = &[][..];
    let ids: Vec<_> = [1, 2, 5, 3, 4].iter().map(|id| (*id, Verdict::Same, same)).collect();
    assert_eq!(verdicts(&regions), ids);
    assert_eq!(regions[4].replicas.len(), 2);
}

#[tokio::test]
async fn a_region_that_does_not_exist_is_said_so() {
    let (cluster, _) = filled().await;
    let mut client = InspectClient::new(cluster.channel().await);
    let answer = client.region_check(RegionCheckRequest { region_id: 99 }).await.expect("served").into_inner();
    assert_eq!((answer.failed.as_str(), answer.regions.len()), ("there is no such region", 0));
}
