//! A lease goes with all its keys, at one revision, in one response of a watch; a put that comes in between goes with it or
//! is refused.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use braid_proto::etcd::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};
use tonic::{Code, Status};

use super::SPREAD;
use super::client::{Client, Events, text};
use crate::harness::{Cluster, PATIENCE};

const RACED: i64 = 0x11;
const REVOKED: i64 = 0x12;
const EXPIRED: i64 = 0x13;
/// Clients that put while a lease is revoked.
const WRITERS: usize = 10;
/// Puts that are acknowledged before it is.
const BEFORE: usize = 60;

fn spread(suffix: &str) -> Vec<String> {
    SPREAD.iter().map(|key| format!("{key}/{suffix}")).collect()
}

pub async fn a_revocation_is_one_revision_and_one_response(cluster: &Cluster) {
    let (client, other) = (Client::at(&cluster.endpoints[0]), Client::at(&cluster.endpoints[1]));
    let events = Events::start(&other).await;
    client.grant(REVOKED, 600).await;
    let keys = spread("revoked");
    client.attach(&keys, REVOKED).await;
    // Detached by an overwrite without the lease: it stays.
    let detached = spread("detached");
    client.attach(&detached, REVOKED).await;
    client.attach(&detached, 0).await;
    let mut attached: Vec<String> = keys.clone();
    attached.sort();
    let told = client.state(REVOKED).await.keys;
    assert_eq!(told.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect::<Vec<_>>(), attached);

    let before = client.put("~last", 0).await.expect("a put");
    let revision = client.revoke(REVOKED).await.expect("it is there");
    assert_eq!(revision, before + 1, "eight regions, one revision");
    assert_eq!(events.all_gone(&keys).await.1, revision);
    assert!(!other.has(REVOKED).await);
    let left: Vec<String> = other.everything().await.iter().map(|kv| String::from_utf8_lossy(&kv.key).into()).collect();
    assert!(detached.iter().all(|key| left.contains(key)) && !keys.iter().any(|key| left.contains(key)), "{left:?}");

    // A lease without keys takes no revision.
    client.grant(REVOKED, 600).await;
    assert_eq!(client.revoke(REVOKED).await.expect("it is there"), revision);
    let again = client.revoke(REVOKED).await.expect_err("it is gone");
    assert_eq!((again.code(), again.message()), (Code::NotFound, "etcdserver: requested lease not found"));
}

pub async fn an_expiry_is_one_revision_and_one_response(cluster: &Cluster) {
    let client = Client::at(&cluster.endpoints[0]);
    let events = Events::start(&client).await;
    let granted = Instant::now();
    client.grant(EXPIRED, 2).await;
    let keys = spread("expired");
    client.attach(&keys, EXPIRED).await;
    let (at, revision) = events.all_gone(&keys).await;
    let after = at.duration_since(granted);
    assert!(after >= Duration::from_secs(2), "gone after {after:?}");
    assert!(!client.has(EXPIRED).await);
    let next = client.put("~last", 0).await.expect("a put");
    assert_eq!(next, revision + 1);
}

/// Puts until the lease is gone: each of its keys by itself, or two in regions far from each other in one transaction.
/// Returns the keys of what was acknowledged, and the last refusal.
async fn race(client: Client, writer: usize, acked: &tokio::sync::Semaphore) -> (Vec<(String, i64)>, Status) {
    let mut done = Vec::new();
    for round in 0.. {
        let region = |by: usize| SPREAD[(writer + round + by) % SPREAD.len()];
        let key = |by: usize| format!("{}/raced/{writer}/{round}/{by}", region(by));
        let keys: Vec<String> = if writer.is_multiple_of(2) { vec![key(0)] } else { vec![key(0), key(3)] };
        let put = |key: &String| PutRequest { key: text(key), lease: RACED, ..PutRequest::default() };
        let op = |key| RequestOp { request: Some(request_op::Request::RequestPut(put(key))) };
        let txn = TxnRequest { success: keys.iter().map(op).collect(), ..TxnRequest::default() };
        match client.kv.clone().txn(txn).await {
            Ok(answer) => {
                let revision = answer.get_ref().header.as_ref().expect("a header").revision;
                done.extend(keys.into_iter().map(|key| (key, revision)));
                acked.add_permits(1);
            }
            Err(status) => return (done, status),
        }
    }
    unreachable!("the numbers end later")
}

pub async fn a_put_that_races_a_revocation_is_refused_or_goes_with_it(cluster: &Cluster) {
    let client = Client::at(&cluster.endpoints[0]);
    let events = Events::start(&client).await;
    client.grant(RACED, 600).await;
    let acked = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (acked, client) = (acked.clone(), Client::at(&cluster.endpoints[writer % 2]));
            tokio::spawn(async move { race(client, writer, &acked).await })
        })
        .collect();
    let enough = acked.acquire_many(BEFORE as u32);
    _ = tokio::time::timeout(PATIENCE, enough).await.expect("puts are acknowledged").expect("it is never closed");
    let revision = client.revoke(RACED).await.expect("it is there");

    let mut put = BTreeSet::new();
    for writer in writers {
        let (done, refusal) = writer.await.expect("a writer does not panic");
        let refusal = (refusal.code(), refusal.message().to_owned());
        assert_eq!(refusal, (Code::NotFound, "etcdserver: requested lease not found".to_owned()));
        assert!(done.iter().all(|(_, at)| *at < revision), "acknowledged after the revocation at {revision}: {done:?}");
        put.extend(done.into_iter().map(|(key, _)| key));
    }
    let keys: Vec<String> = put.into_iter().collect();
    assert!(keys.len() >= BEFORE);
    assert_eq!(events.all_gone(&keys).await.1, revision);
    assert!(client.everything().await.iter().all(|kv| kv.lease != RACED));
}
