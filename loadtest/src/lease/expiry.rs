//! Puts at a fixed rate, with and without leases that expire meanwhile.
//!
//! 1. Leases are granted together, with TTLs a second apart, and get their keys, spread evenly over the key space: when
//!    the puts begin, nothing is left to do but to expire.
//! 2. The same puts run without them too, before or after, in turn from one seed to the next.
//! 3. In both a watch follows the deletes. Every lease must end with all its keys at one revision, and not before its
//!    time; afterwards no lease and no key may be left.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use braid_proto::etcd::etcdserverpb::request_op::Request;
use braid_proto::etcd::etcdserverpb::{LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RequestOp, TxnRequest};
use bytes::Bytes;
use futures::future::try_join_all;
use indicatif::ProgressBar;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::ends::{Deletes, Ledger};
use crate::client::unlimited;
use crate::keys::KeySpace;
use crate::report::{Expired, Report};
use crate::runner::{self, Plan};

/// Keys of each lease.
pub const KEYS: u64 = 1_000;

/// TTL of the lease that expires first, in seconds: until then all must have their keys.
const FIRST_TTL: u64 = 6;

/// Puts in one transaction, as many as etcd allows.
const TXN_PUTS: usize = 128;

/// How long after its time a lease may end. etcd looks for expired leases twice a second.
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs both and reports the puts beside the leases; `put-without` are the others. Blocks the calling thread, which must
/// not belong to a runtime.
pub fn run(plan: &Plan, name: &str, bar: &ProgressBar) -> anyhow::Result<Report> {
    ensure!(plan.rate.is_some(), "{name} needs a rate: puts per second");
    ensure!(!plan.endpoints.is_empty(), "no endpoints");
    // One thread besides that of `block_on`: the watch is read while the puts run.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let channel = runtime.block_on(plan.endpoints[0].channel())?;
    let watch = || {
        let prefix = Bytes::copy_from_slice(plan.keys.prefix.as_bytes());
        runtime.block_on(Deletes::watch(channel.clone(), prefix))
    };
    let without = || -> anyhow::Result<Report> {
        let mut deletes = watch()?;
        let watching = runtime.spawn(async move { deletes.next(&mut Ledger::default()).await });
        let report = runner::run(plan, bar)?;
        ensure!(!watching.is_finished(), "the watch ended, or something was deleted, while nothing expired");
        watching.abort();
        Ok(report)
    };
    let with = || -> anyhow::Result<(Report, Expired)> {
        let mut deletes = watch()?;
        let leases = (plan.warmup + plan.duration).as_secs() + 1;
        let mut ledger = runtime.block_on(doom(&channel, &plan.keys, leases))?;
        let watching = runtime.spawn(async move {
            let gone = deletes.until_gone(&mut ledger).await;
            gone.map(|()| ledger)
        });
        let report = runner::run(plan, bar)?;
        let ledger = runtime.block_on(async {
            let all = timeout(Duration::from_secs(FIRST_TTL) + PATIENCE, watching).await;
            all.context("OUTLIVED: keys are there long after the time of their leases")?
                .context("the watch panicked")?
        })?;
        runtime.block_on(none_left(&channel, &ledger))?;
        let latest_ms = ledger.latest()?.as_secs_f64() * 1e3;
        Ok((report, Expired { leases, keys: ledger.keys() as u64, latest_ms }))
    };
    let (alone, (report, expired)) = match plan.seed % 2 {
        0 => {
            let alone = without()?;
            (alone, with()?)
        }
        _ => {
            let beside = with()?;
            (without()?, beside)
        }
    };
    let mut kinds = report.kinds;
    kinds.insert("put-without", alone.latency);
    let mut errors = report.errors;
    alone.errors.into_iter().for_each(|(text, count)| *errors.entry(text).or_default() += count);
    let unfinished = report.unfinished + alone.unfinished;
    Ok(Report { workload: name.to_owned(), kinds, errors, unfinished, expired: Some(expired), ..report })
}

/// Grants leases that expire a second apart, with their keys. Returns shortly before the first one's time.
async fn doom(channel: &Channel, keys: &KeySpace, leases: u64) -> anyhow::Result<Ledger> {
    let start = Instant::now();
    let doomed = try_join_all((0..leases).map(|number| async move {
        let mut client = LeaseClient::new(channel.clone());
        let ttl = (FIRST_TTL + number).cast_signed();
        let sent = Instant::now();
        let granted = client.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.into_inner();
        ensure!(granted.ttl == ttl, "{ttl} s were asked for, and granted was {granted:?}");
        let own: Vec<_> = (0..KEYS).map(|key| place(keys, number, key)).collect();
        let mut kv = unlimited(channel.clone());
        for some in own.chunks(TXN_PUTS) {
            let put = |key: &Bytes| PutRequest { key: key.clone(), lease: granted.id, ..PutRequest::default() };
            let op = |key| RequestOp { request: Some(Request::RequestPut(put(key))) };
            kv.txn(TxnRequest { success: some.iter().map(op).collect(), ..TxnRequest::default() }).await?;
        }
        anyhow::Ok((granted.id, sent + Duration::from_secs(FIRST_TTL + number), own))
    }));
    let mut ledger = Ledger::default();
    for (id, due, own) in doomed.await.context("making leases")? {
        ledger.lease(id, due, own);
    }
    let begin = start + Duration::from_secs(FIRST_TTL - 1);
    ensure!(Instant::now() < begin, "the leases had their keys only after {:?}: too late", start.elapsed());
    tokio::time::sleep_until(begin.into()).await;
    Ok(ledger)
}

/// A key of a lease, beside the numbered keys and evenly spread over them.
fn place(keys: &KeySpace, lease: u64, key: u64) -> Bytes {
    let number = (u128::from(keys.count) * u128::from(key) / u128::from(KEYS)) as u64;
    [&keys.key(number)[..], format!("/expires-{lease}-{key}").as_bytes()].concat().into()
}

/// Fails if a lease whose keys are gone is still there after a while: the keys may go a moment before it.
async fn none_left(channel: &Channel, ledger: &Ledger) -> anyhow::Result<()> {
    let mut client = LeaseClient::new(channel.clone());
    for id in ledger.ids() {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = LeaseTimeToLiveRequest { id, keys: true };
            let left = client.lease_time_to_live(request).await?.into_inner();
            if left.ttl == -1 && left.granted_ttl == 0 {
                break;
            }
            ensure!(Instant::now() < deadline, "OUTLIVED: lease {id:x} is there after its keys are gone: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_lease_are_its_own_and_spread() {
        let keys = KeySpace { prefix: "bench/".into(), count: 100, value_bytes: 8 };
        let all: std::collections::HashSet<_> = (0..2)
            .flat_map(|lease| (0..KEYS).map(move |key| (lease, key)))
            .map(|(lease, key)| place(&keys, lease, key))
            .collect();
        assert_eq!(all.len(), 2_000);
        assert!(all.contains(&b"bench/0000000099/expires-1-999"[..]));
    }
}
