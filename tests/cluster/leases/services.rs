//! The services v3lock and v3election, through generated clients and two proxies.

use std::time::Duration;

use braid_proto::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use braid_proto::etcd::v3lockpb::{LockRequest, UnlockRequest};
use bytes::Bytes;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::client::{Client, Events, Keeper, text};
use crate::harness::{Cluster, PATIENCE};

/// Long for an answer that should not come, short for a test.
const QUIET: Duration = Duration::from_millis(300);
/// Those who want the lock at once.
const RIVALS: i64 = 6;

fn unknown(status: &Status, message: &str) {
    assert_eq!((status.code(), status.message()), (Code::Unknown, message));
}

async fn lock(client: &Client, name: &str, lease: i64) -> Result<Bytes, Status> {
    let answer = client.lock.clone().lock(LockRequest { name: text(name), lease }).await?.into_inner();
    assert!(answer.header.expect("a header").revision > 1);
    Ok(answer.key)
}

async fn unlock(client: &Client, key: Bytes) {
    client.lock.clone().unlock(UnlockRequest { key }).await.expect("an unlock never fails");
}

pub async fn a_lock_has_one_holder(cluster: &Cluster) {
    let clients: Vec<Client> = cluster.endpoints.iter().map(|url| Client::at(url)).collect();
    // The lock lies in another region than the leases.
    let name = "Flock";
    for lease in 0x100..0x100 + RIVALS {
        clients[0].grant(lease, 600).await;
    }
    let first = lock(&clients[0], name, 0x100).await.expect("nobody holds it");
    assert_eq!(first, text("Flock/100"));
    assert_eq!(lock(&clients[1], name, 0x100).await.expect("its own"), first, "the holder's lease holds it");

    // All others at once: in between nobody has it twice.
    let held = std::sync::Arc::new(tokio::sync::Mutex::new(()));
    let rivals: Vec<_> = (0x101..0x100 + RIVALS)
        .map(|lease| {
            let (client, held) = (clients[(lease % 2) as usize].clone(), held.clone());
            tokio::spawn(async move {
                let key = lock(&client, name, lease).await.expect("its turn comes");
                let alone = held.try_lock().expect("nobody else holds it");
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(alone);
                unlock(&client, key).await;
            })
        })
        .collect();
    tokio::time::sleep(QUIET).await;
    assert!(rivals.iter().all(|rival| !rival.is_finished()), "the lock is held");
    unlock(&clients[1], first).await;
    for rival in rivals {
        timeout(PATIENCE, rival).await.expect("its turn comes").expect("nobody else holds it");
    }
    assert_eq!(clients[0].under("Flock/").await, []);

    // Without a lease of one's own there is one of a minute.
    let orphan = lock(&clients[0], name, 0).await.expect("nobody holds it");
    let kvs = clients[0].under("Flock/").await;
    assert_eq!((kvs.len(), &kvs[0].key), (1, &orphan));
    assert_eq!(orphan, text(&format!("Flock/{:x}", kvs[0].lease)));
    assert_eq!(clients[0].state(kvs[0].lease).await.granted_ttl, 60);

    // Who waits and loses its lease is told so; who waits and goes away leaves nothing.
    let waiting = tokio::spawn({
        let client = clients[1].clone();
        async move { lock(&client, name, 0x101).await }
    });
    wait_for_keys(&clients[0], "Flock/", 2).await;
    clients[0].revoke(0x101).await.expect("it is there");
    clients[0].revoke(kvs[0].lease).await.expect("it is there");
    let expired = timeout(PATIENCE, waiting).await.expect("an answer").expect("no panic").expect_err("no lease");
    unknown(&expired, "mutex: session is expired");
    let held = lock(&clients[0], name, 0x102).await.expect("nobody holds it");
    assert!(timeout(QUIET, lock(&clients[1], name, 0x103)).await.is_err(), "the lock is held");
    wait_for_keys(&clients[0], "Flock/", 1).await;
    unlock(&clients[0], held).await;

    let missing = lock(&clients[0], name, 0x999).await.expect_err("there is no such lease");
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "etcdserver: requested lease not found"));

    // The holder dies: whoever waits has it when the lease is gone, not before.
    clients[0].grant(0x200, 2).await;
    let keeper = Keeper::start(&clients[0], 0x200);
    let dead = lock(&clients[0], name, 0x200).await.expect("nobody holds it");
    let waiting = tokio::spawn({
        let client = clients[1].clone();
        async move { (lock(&client, name, 0x104).await, std::time::Instant::now()) }
    });
    wait_for_keys(&clients[0], "Flock/", 2).await;
    keeper.answered_more(2).await;
    let events = Events::start(&clients[0]).await;
    let last = keeper.stop();
    let (next, at) = timeout(PATIENCE, waiting).await.expect("its turn comes").expect("no panic");
    let after = at.duration_since(last);
    assert!(after >= Duration::from_secs(2), "the lock changed hands {after:?} after a keep-alive");
    events.all_gone(&[String::from_utf8_lossy(&dead).into_owned()]).await;
    unlock(&clients[1], next.expect("the lock")).await;
}

/// Waits until `count` keys begin with `prefix`.
async fn wait_for_keys(client: &Client, prefix: &str, count: usize) {
    let started = std::time::Instant::now();
    while client.under(prefix).await.len() != count {
        assert!(started.elapsed() < PATIENCE, "{count} keys under {prefix}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn campaign(client: &Client, lease: i64, value: &str) -> Result<LeaderKey, Status> {
    let request = CampaignRequest { name: text("Relect"), lease, value: text(value) };
    let CampaignResponse { leader, .. } = client.election.clone().campaign(request).await?.into_inner();
    Ok(leader.expect("a key"))
}

pub async fn an_election_has_one_leader(cluster: &Cluster) {
    let clients: Vec<Client> = cluster.endpoints.iter().map(|url| Client::at(url)).collect();
    let name = || LeaderRequest { name: text("Relect") };
    for lease in [0x300, 0x301, 0x302] {
        clients[0].grant(lease, 600).await;
    }
    let nobody = clients[0].election.clone().leader(name()).await.expect_err("nobody leads");
    unknown(&nobody, "election: no leader");
    for refused in [
        clients[0].election.clone().proclaim(ProclaimRequest::default()).await.expect_err("no key"),
        clients[0].election.clone().resign(ResignRequest::default()).await.expect_err("no key"),
    ] {
        unknown(&refused, "\"leader\" field must be provided");
    }

    let mut seen = clients[1].election.clone().observe(name()).await.expect("a stream").into_inner();
    let first = campaign(&clients[0], 0x300, "one").await.expect("nobody leads");
    assert_eq!((&first.key, first.lease, &first.name), (&text("Relect/300"), 0x300, &text("Relect")));
    let second = tokio::spawn({
        let client = clients[1].clone();
        async move { campaign(&client, 0x301, "two").await }
    });
    wait_for_keys(&clients[0], "Relect/", 2).await;
    let third = tokio::spawn({
        let client = clients[0].clone();
        async move { campaign(&client, 0x302, "three").await }
    });
    wait_for_keys(&clients[0], "Relect/", 3).await;
    assert_eq!(
        clients[1].election.clone().leader(name()).await.expect("one leads").into_inner().kv.unwrap().value,
        "one"
    );
    let proclaim =
        |leader: &LeaderKey, value: &str| ProclaimRequest { leader: Some(leader.clone()), value: text(value) };
    clients[1].election.clone().proclaim(proclaim(&first, "one more")).await.expect("it leads");
    assert!(!second.is_finished() && !third.is_finished());

    clients[1].election.clone().resign(ResignRequest { leader: Some(first.clone()) }).await.expect("it leads");
    let second = timeout(PATIENCE, second).await.expect("its turn").expect("no panic").expect("it leads");
    let late = clients[0].election.clone().proclaim(proclaim(&first, "late")).await.expect_err("it has resigned");
    unknown(&late, "election: not leader");
    assert!(!third.is_finished());
    // With its lease goes the leader.
    clients[0].revoke(second.lease).await.expect("it is there");
    let third = timeout(PATIENCE, third).await.expect("its turn").expect("no panic").expect("it leads");
    assert_eq!(third.key, text("Relect/302"));

    for value in ["one", "one more", "two", "three"] {
        let leader = timeout(PATIENCE, seen.message()).await.expect("an event").expect("a stream").expect("more");
        assert_eq!(leader.kv.expect("a leader").value, value);
    }
    clients[0].revoke(0x302).await.expect("it is there");
}
