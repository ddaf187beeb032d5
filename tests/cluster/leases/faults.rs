//! Stores are killed and paused under leases: a lease that is kept alive stays, with its keys; another one goes, with all
//! its keys at once, and not before its time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::SPREAD;
use super::client::{Client, Events, Keeper};
use crate::harness::{Cluster, PATIENCE, wait_for};
use crate::kill::wait_whole;

const TTL: i64 = 3;
/// Longer than the TTL, every election and every lease of a leader.
const PAUSE: Duration = Duration::from_secs(4);
/// Keep-alives that take longer than the TTL.
const MORE: usize = 8;
const GRANTED: i64 = 24;
const REVOKED: i64 = 8;

fn keys(of: &str) -> Vec<String> {
    SPREAD.iter().step_by(2).map(|key| format!("{key}/{of}")).collect()
}

/// The process of the store that leads the region of the leases' records. Stores have their numbers in the order in which
/// they came, so that the address has to tell.
fn lease_leader(cluster: &Cluster) -> String {
    let store = wait_for("the region of the leases to have a leader", || {
        let regions = cluster.admin(&["region", "list"])["regions"].as_array()?.clone();
        let first = regions.iter().find(|region| region["start"]["internal_hex"] == "")?;
        first["leader_store"].as_u64()
    });
    let stores = cluster.admin(&["store", "list"])["stores"].as_array().expect("a list").clone();
    let leader = stores.iter().find(|row| row["id"] == store).expect("it is listed");
    let addr = leader["peer_addr"].as_str().expect("an address");
    let mut specs = cluster.processes.iter().map(|process| process.spec());
    let spec = specs.find(|spec| spec.args.iter().any(|arg| arg.ends_with(addr))).expect("one of ours");
    spec.name.clone()
}

/// What happens to the store that leads the leases.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    Kill,
    Pause,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_neither_early_nor_never_while_their_leader_dies_or_sleeps() {
    let mut cluster = Cluster::split(1, 3, 2, &["--initial-regions", "8"], &[]);
    wait_whole(&cluster, 8);
    let client = Client::at(&cluster.endpoints[0]);
    let events = Events::start(&Client::at(&cluster.endpoints[1])).await;
    client.grant(1, TTL).await;
    let keeper = Keeper::start(&client, 1);
    let kept = keys("kept");
    client.attach(&kept, 1).await;

    for (lease, blow) in [(2, Blow::Kill), (3, Blow::Pause)] {
        let left = keys(&format!("left-{lease}"));
        client.grant(lease, TTL).await;
        // Kept until now, so that the attaching may take its time.
        let leaving = Keeper::start(&client, lease);
        client.attach(&left, lease).await;
        leaving.answered_more(1).await;
        let victim = lease_leader(&cluster);
        let last = leaving.stop();
        match blow {
            Blow::Kill => cluster.process(&victim).kill().expect("it can be killed"),
            Blow::Pause => {
                cluster.process(&victim).pause().expect("it can be paused");
                // What others do meanwhile is the point, and how long they have for it: this is no wait for a condition.
                tokio::time::sleep(PAUSE).await;
            }
        }
        keeper.answered_more(MORE).await;
        wait_for("another leader", || (lease_leader(&cluster) != victim).then_some(()));
        if blow == Blow::Kill {
            // Two of three stores are enough for it to go.
            events.all_gone(&left).await;
        }
        match blow {
            Blow::Kill => cluster.process(&victim).restart().expect("it starts again"),
            Blow::Pause => cluster.process(&victim).resume().expect("it can go on"),
        }
        wait_whole(&cluster, 8);
        keeper.answered_more(MORE).await;
        let (at, _) = events.all_gone(&left).await;
        let after = at.duration_since(last);
        assert!(after >= Duration::from_secs(TTL.unsigned_abs()), "{blow:?}: gone after {after:?}");
        assert!(!client.has(lease).await);
        assert_eq!(client.state(1).await.keys.len(), kept.len(), "{blow:?}: what is kept has its keys");
    }
    assert!(!events.deletes().iter().any(|(_, key)| kept.contains(key)));
    let last = keeper.stop();
    let (at, _) = events.all_gone(&kept).await;
    let after = at.duration_since(last);
    assert!(after >= Duration::from_secs(TTL.unsigned_abs()), "gone after {after:?}");
}

/// `kill -9` of everything while revocations are under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_their_keys_agree_after_everything_was_killed() {
    let mut cluster = Cluster::servers(&["--initial-regions", "8"]);
    wait_whole(&cluster, 8);
    let client = Client::at(&cluster.endpoints[0]);
    for lease in 1..=GRANTED {
        client.grant(lease, 600).await;
        client.attach(&keys(&format!("of-{lease}")), lease).await;
    }
    let (telling, mut told) = tokio::sync::mpsc::unbounded_channel();
    for lease in 1..=REVOKED {
        let (client, telling) = (Client::at(&cluster.endpoints[lease as usize % 3]), telling.clone());
        tokio::spawn(async move {
            let revoked = client.revoke(lease).await;
            // The test may be over.
            _ = telling.send((lease, revoked));
        });
    }
    drop(telling);
    // One is done; how far the others are is left to chance.
    let (lease, first) = told.recv().await.expect("an answer");
    let mut revoked = HashMap::from([(lease, first.expect("it is there"))]);
    cluster.processes.iter_mut().for_each(|process| process.kill().expect("it can be killed"));
    while let Some((lease, outcome)) = told.recv().await {
        if let Ok(revision) = outcome {
            revoked.insert(lease, revision);
        }
    }
    cluster.processes.iter_mut().for_each(|process| process.restart().expect("it starts again"));
    cluster.wait_healthy();
    wait_whole(&cluster, 8);

    // A key without its lease may be seen between the two questions, but not twice.
    let mut owners = HashMap::new();
    for kv in client.everything().await {
        if client.has(kv.lease).await {
            owners.entry(kv.lease).or_insert_with(Vec::new).push(kv.key);
        } else {
            let again = client.under(&String::from_utf8_lossy(&kv.key)).await;
            assert!(again.iter().all(|other| other.key != kv.key), "{kv:?} has no lease any more");
        }
    }
    for lease in 1..=GRANTED {
        let state = client.state(lease).await;
        if revoked.contains_key(&lease) {
            assert_eq!((state.granted_ttl, owners.get(&lease)), (0, None), "{lease} was revoked");
        } else if lease > REVOKED {
            let expected = keys(&format!("of-{lease}"));
            assert_eq!((state.granted_ttl, state.keys.len()), (600, expected.len()), "{lease} was granted");
            assert_eq!(owners.get(&lease), Some(&state.keys), "{lease} and its keys");
        }
    }
    // What was begun is ended by itself, or was never begun.
    let started = Instant::now();
    for lease in 1..=REVOKED {
        loop {
            let state = client.state(lease).await;
            let count = client.everything().await.iter().filter(|kv| kv.lease == lease).count();
            if (state.granted_ttl, state.keys.len(), count) == (0, 0, 0) || (state.granted_ttl, count) == (600, 4) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{lease}: {state:?}, and {count} keys");
        }
    }
    // The others are revoked as ever.
    for lease in REVOKED + 1..=GRANTED {
        client.revoke(lease).await.expect("it is there");
    }
    assert!(client.everything().await.iter().all(|kv| kv.lease <= REVOKED));
}
