//! How long puts in one region stand still: a few clients put its keys, one put after the other, and the longest time
//! without an acknowledged put is what a change of the region costs whoever writes there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::PutRequest;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::client::Address;

/// Clients: enough that a single slow put is not a gap.
const CLIENTS: usize = 4;
/// Pause after a failed put.
const PAUSE: Duration = Duration::from_millis(5);
/// A put without an answer is given up after this.
const ATTEMPT: Duration = Duration::from_secs(20);
/// The first put must be acknowledged within this.
const FIRST: Duration = Duration::from_secs(30);

/// Puts that go on until this is dropped.
#[derive(Debug)]
pub struct Probe {
    acks: Arc<Mutex<Vec<Instant>>>,
    _clients: JoinSet<()>,
}

impl Probe {
    /// Puts these keys in turn; returns when the first put was acknowledged.
    pub async fn start(endpoint: &Address, keys: Vec<Bytes>, value: Bytes) -> anyhow::Result<Self> {
        ensure!(!keys.is_empty(), "there must be a key to put");
        let kv = endpoint.connect().await?;
        let acks = Arc::new(Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (mut kv, keys, value, acks) = (kv.clone(), keys.clone(), value.clone(), Arc::clone(&acks));
            clients.spawn(async move {
                for key in keys.iter().cycle().skip(number) {
                    let request = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
                    match timeout(ATTEMPT, kv.put(request)).await {
                        Ok(Ok(_)) => acks.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now()),
                        Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
                    }
                }
            });
        }
        let mut probe = Self { acks, _clients: clients };
        let begin = Instant::now();
        probe.acked_after(begin).await.context("puts in the region")?;
        Ok(probe)
    }

    /// Waits for a put that was acknowledged after a moment.
    pub async fn acked_after(&mut self, moment: Instant) -> anyhow::Result<()> {
        let deadline = Instant::now() + FIRST;
        while self.acks().last().is_none_or(|last| *last <= moment) {
            ensure!(Instant::now() < deadline, "no put was acknowledged within {FIRST:?}");
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// The longest time without an acknowledged put between two moments.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        longest_gap(&self.acks(), from, to)
    }

    fn acks(&self) -> Vec<Instant> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn longest_gap(acks: &[Instant], from: Instant, to: Instant) -> Duration {
    let inside = acks.iter().copied().filter(|ack| (from..to).contains(ack));
    let (longest, last) = inside.fold((Duration::ZERO, from), |(longest, last), ack| (longest.max(ack - last), ack));
    longest.max(to.saturating_duration_since(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_to_both_ends() {
        let begin = Instant::now();
        let at = |millis: u64| begin + Duration::from_millis(millis);
        let acks = [at(5), at(10), at(40), at(50)];
        let gap = |from, to| longest_gap(&acks, at(from), at(to)).as_millis();
        assert_eq!(gap(0, 60), 30);
        assert_eq!(gap(0, 12), 5);
        assert_eq!(gap(41, 100), 50);
        assert_eq!(gap(11, 39), 28);
    }
}
