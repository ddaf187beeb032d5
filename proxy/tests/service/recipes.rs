//! The lock and election services: who owns what in which order, what is left behind, and etcd's own words.

use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::etcd::v3electionpb::election_client::ElectionClient;
use braid_proto::etcd::v3electionpb::*;
use braid_proto::etcd::v3lockpb::lock_client::LockClient;
use braid_proto::etcd::v3lockpb::*;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::client::{fails, fails_as, keys, range, revision};
use crate::cluster::Cluster;

const PATIENCE: Duration = Duration::from_secs(20);

/// Asks for a lock, on a connection of its own.
async fn locking(cluster: &Cluster, lease: i64) -> JoinHandle<Result<LockResponse, Status>> {
    let mut client = LockClient::new(cluster.channel().await);
    tokio::spawn(async move { Ok(client.lock(LockRequest { name: "l".into(), lease }).await?.into_inner()) })
}

async fn campaigning(
    cluster: &Cluster,
    lease: i64,
    value: &'static str,
) -> JoinHandle<Result<CampaignResponse, Status>> {
    let mut client = ElectionClient::new(cluster.channel().await);
    let request = CampaignRequest { name: "e".into(), lease, value: value.into() };
    tokio::spawn(async move { Ok(client.campaign(request).await?.into_inner()) })
}

async fn done<T>(work: JoinHandle<T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time").expect("no panic")
}

/// Waits until the keys of a prefix are these.
async fn settled(cluster: &Cluster, prefix: &str, end: &str, expected: &str) {
    let mut client = cluster.client().await;
    let mut happened = cluster.world.happened();
    let all = async {
        loop {
            happened.borrow_and_update();
            if keys(&client.range(range(prefix, end)).await.expect("served")) == expected {
                return;
            }
            happened.changed().await.expect("the world stands");
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("never {expected:?}"));
}

async fn leased(leases: &[i64]) -> Cluster {
    let cluster = Cluster::watched(&["m"]).await;
    leases.iter().for_each(|id| cluster.world.grant(*id, 60));
    cluster
}

#[tokio::test]
async fn a_lock_goes_from_one_to_the_next() {
    let cluster = leased(&[0x1a, -255, 0x3c]).await;
    let first = done(locking(&cluster, 0x1a).await).await.expect("free");
    assert_eq!((&first.key[..], revision(&first.header)), (&b"l/1a"[..], 2));
    // Who has it has it.
    assert_eq!(done(locking(&cluster, 0x1a).await).await.expect("its own").key, "l/1a");
    let second = locking(&cluster, -255).await;
    settled(&cluster, "l/", "l0", "l/-ff l/1a").await;
    let third = locking(&cluster, 0x3c).await;
    settled(&cluster, "l/", "l0", "l/-ff l/1a l/3c").await;
    assert!(!second.is_finished() && !third.is_finished());
    let mut client = LockClient::new(cluster.channel().await);
    let unlocked = client.unlock(UnlockRequest { key: first.key.clone() }).await.expect("unlocked").into_inner();
    assert_eq!(revision(&unlocked.header), 5);
    let second = done(second).await.expect("its turn");
    assert_eq!((&second.key[..], revision(&second.header)), (&b"l/-ff"[..], 5));
    assert!(!third.is_finished());
    // The lease of the owner ends.
    cluster.world.expire(-255);
    assert_eq!(done(third).await.expect("its turn").key, "l/3c");
    // Unlocking what is not there is no error; a lock without a key is.
    client.unlock(UnlockRequest { key: first.key }).await.expect("nothing to do");
    fails_as(client.unlock(UnlockRequest { key: "".into() }).await, error::EMPTY_KEY);
}

#[tokio::test]
async fn a_lock_without_a_lease_gets_one_of_a_minute() {
    let cluster = leased(&[]).await;
    let lock = done(locking(&cluster, 0).await).await.expect("free");
    let [(id, ttl)] = cluster.world.leases()[..] else { panic!("one lease") };
    assert_eq!((lock.key, ttl), (format!("l/{id:x}").into(), 60));
    fails_as(done(locking(&cluster, 77).await).await, error::LEASE_NOT_FOUND);
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_no_key_behind() {
    let cluster = leased(&[1, 2, 3]).await;
    let first = done(locking(&cluster, 1).await).await.expect("free");
    let second = locking(&cluster, 2).await;
    settled(&cluster, "l/", "l0", "l/1 l/2").await;
    let third = locking(&cluster, 3).await;
    settled(&cluster, "l/", "l0", "l/1 l/2 l/3").await;
    second.abort();
    settled(&cluster, "l/", "l0", "l/1 l/3").await;
    assert!(!third.is_finished(), "it waits for the first now");
    let mut client = LockClient::new(cluster.channel().await);
    client.unlock(UnlockRequest { key: first.key }).await.expect("unlocked");
    assert_eq!(done(third).await.expect("its turn").key, "l/3");
}

#[tokio::test]
async fn who_loses_its_lease_while_it_waits_is_told() {
    let cluster = leased(&[1, 2]).await;
    done(locking(&cluster, 1).await).await.expect("free");
    let second = locking(&cluster, 2).await;
    settled(&cluster, "l/", "l0", "l/1 l/2").await;
    cluster.world.expire(2);
    cluster.world.expire(1);
    fails(done(second).await, Code::Unknown, "mutex: session is expired");
}

#[tokio::test]
async fn stopping_the_proxy_ends_waiting() {
    let cluster = leased(&[1, 2]).await;
    done(locking(&cluster, 1).await).await.expect("free");
    let second = locking(&cluster, 2).await;
    settled(&cluster, "l/", "l0", "l/1 l/2").await;
    cluster.proxy.stop();
    fails_as(done(second).await, error::STOPPED);
}

#[tokio::test]
async fn an_election_has_one_leader_and_then_the_next() {
    let cluster = leased(&[0xa, 0xb]).await;
    let mut client = ElectionClient::new(cluster.channel().await);
    let name = || LeaderRequest { name: "e".into() };
    fails(client.leader(name()).await, Code::Unknown, "election: no leader");
    let first = done(campaigning(&cluster, 0xa, "one").await).await.expect("alone");
    let key = first.leader.clone().expect("a leader");
    assert_eq!(key, LeaderKey { name: "e".into(), key: "e/a".into(), rev: 2, lease: 0xa });
    assert_eq!(revision(&first.header), 2);
    let second = campaigning(&cluster, 0xb, "two").await;
    settled(&cluster, "e/", "e0", "e/a e/b").await;
    let leader = client.leader(name()).await.expect("served").into_inner();
    assert_eq!((leader.kv.expect("a key").value, revision(&leader.header)), ("one".into(), 3));

    let proclaim = |leader: Option<LeaderKey>| ProclaimRequest { leader, value: "uno".into() };
    let answer = client.proclaim(proclaim(Some(key.clone()))).await.expect("it leads").into_inner();
    assert_eq!(revision(&answer.header), 4);
    let leader = client.leader(name()).await.expect("served").into_inner().kv.expect("a key");
    assert_eq!((&leader.value[..], leader.create_revision, leader.lease), (&b"uno"[..], 2, 0xa));
    let missing = "\"leader\" field must be provided";
    fails(client.proclaim(proclaim(None)).await, Code::Unknown, missing);
    fails(client.resign(ResignRequest { leader: None }).await, Code::Unknown, missing);
    let stale = LeaderKey { rev: 1, ..key.clone() };
    fails(client.proclaim(proclaim(Some(stale.clone()))).await, Code::Unknown, "election: not leader");
    client.resign(ResignRequest { leader: Some(stale) }).await.expect("nothing to do");
    assert!(!second.is_finished());

    // A candidate that campaigns again keeps its place and says its new value.
    let again = done(campaigning(&cluster, 0xa, "eins").await).await.expect("it leads");
    assert_eq!(again.leader.expect("a leader").rev, 2);
    assert_eq!(client.leader(name()).await.expect("served").into_inner().kv.expect("a key").value, "eins");

    let resigned = client.resign(ResignRequest { leader: Some(key) }).await.expect("resigned").into_inner();
    assert_eq!(revision(&resigned.header), 6);
    let second = done(second).await.expect("its turn").leader.expect("a leader");
    assert_eq!((&second.key[..], second.rev), (&b"e/b"[..], 3));
}

#[tokio::test]
async fn a_candidate_that_goes_away_resigns() {
    let cluster = leased(&[0xa, 0xb]).await;
    done(campaigning(&cluster, 0xa, "one").await).await.expect("alone");
    let second = campaigning(&cluster, 0xb, "two").await;
    settled(&cluster, "e/", "e0", "e/a e/b").await;
    second.abort();
    settled(&cluster, "e/", "e0", "e/a").await;
}

async fn observed(leaders: &mut Streaming<LeaderResponse>) -> (String, String) {
    let next = tokio::time::timeout(PATIENCE, leaders.message()).await.expect("in time");
    let response = next.expect("no error").expect("a leader");
    let KeyValue { key, value, mod_revision, .. } = response.kv.expect("a key");
    assert!(revision(&response.header) >= mod_revision);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&key), text(&value))
}

#[tokio::test]
async fn observers_hear_every_leader_and_value() {
    let cluster = leased(&[0xa, 0xb, 0xc]).await;
    let mut client = ElectionClient::<Channel>::new(cluster.channel().await);
    let request = LeaderRequest { name: "e".into() };
    let mut leaders = client.observe(request.clone()).await.expect("a stream").into_inner();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let first = done(campaigning(&cluster, 0xa, "one").await).await.expect("alone").leader;
    assert_eq!(observed(&mut leaders).await, pair("e/a", "one"));
    for value in ["two", "three"] {
        let proclaim = ProclaimRequest { leader: first.clone(), value: value.into() };
        client.proclaim(proclaim).await.expect("it leads");
        assert_eq!(observed(&mut leaders).await, pair("e/a", value));
    }
    let next = campaigning(&cluster, 0xb, "four").await;
    settled(&cluster, "e/", "e0", "e/a e/b").await;
    client.resign(ResignRequest { leader: first }).await.expect("resigned");
    let second = done(next).await.expect("its turn").leader;
    assert_eq!(observed(&mut leaders).await, pair("e/b", "four"));
    // Nobody leads for a while.
    client.resign(ResignRequest { leader: second }).await.expect("resigned");
    let mut late = client.observe(request).await.expect("a stream").into_inner();
    done(campaigning(&cluster, 0xc, "five").await).await.expect("alone");
    assert_eq!(observed(&mut leaders).await, pair("e/c", "five"));
    assert_eq!(observed(&mut late).await, pair("e/c", "five"));
    drop((leaders, late));
    cluster.proxy.stop();
}
