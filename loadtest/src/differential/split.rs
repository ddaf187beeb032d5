//! Splits regions of a braid cluster at random moments of a run, beside the requests and without waiting for them.

use anyhow::Context as _;
use braid_proto::key::user_key;
use braid_proto::pb::AdminSplitRequest;
use braid_proto::pb::admin_client::AdminClient;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::client::Address;
use crate::random::Random;

/// Splits that wait for the one before: a run is much slower than a split, so this is never reached in practice, and a
/// split that finds no room is left out and counted.
const WAITING_MAX: usize = 64;

/// When and where to split.
#[derive(Debug)]
pub struct Splitter {
    random: Random,
    keys: Vec<Bytes>,
    /// How many splits are still to come in how many requests.
    left: u64,
    requests: u64,
    sender: mpsc::Sender<Bytes>,
    dropped: u64,
    worker: JoinHandle<Splits>,
}

/// What became of the splits.
#[derive(Debug, Clone, Default)]
pub struct Splits {
    /// Regions that were cut in two.
    pub done: u64,
    /// Splits that were refused, for example because the region begins with that key already.
    pub refused: u64,
    /// Why the last one was refused.
    pub last_refusal: String,
}

impl Splitter {
    /// `count` splits in `requests` requests, each at one of `keys`.
    pub async fn start(
        endpoint: &Address,
        seed: u64,
        count: u64,
        requests: u64,
        keys: Vec<Bytes>,
    ) -> anyhow::Result<Self> {
        let client = AdminClient::connect(endpoint.url().to_owned()).await;
        let mut client = client.with_context(|| format!("cannot connect to {endpoint}"))?;
        let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING_MAX);
        let worker = tokio::spawn(async move {
            let mut splits = Splits::default();
            while let Some(key) = receiver.recv().await {
                let refusal =
                    match client.region_split(AdminSplitRequest { key: user_key(&key), ..Default::default() }).await {
                        Ok(answer) => answer.into_inner().failed,
                        Err(status) => status.to_string(),
                    };
                match refusal.is_empty() {
                    true => splits.done += 1,
                    false => {
                        splits.refused += 1;
                        splits.last_refusal = refusal;
                    }
                }
            }
            splits
        });
        Ok(Self { random: Random::new(seed, u64::MAX), keys, left: count, requests, sender, dropped: 0, worker })
    }

    /// Called once for each request: perhaps starts a split.
    pub fn step(&mut self) {
        let due = self.left > 0 && self.random.below(self.requests.max(1)) < self.left;
        self.requests = self.requests.saturating_sub(1);
        if due {
            self.left -= 1;
            let key = self.keys[self.random.below(self.keys.len() as u64) as usize].clone();
            self.dropped += u64::from(self.sender.try_send(key).is_err());
        }
    }

    /// Waits for the last split.
    pub async fn finish(self) -> anyhow::Result<Splits> {
        drop(self.sender);
        let mut splits = self.worker.await.context("the splitting task")?;
        splits.refused += self.dropped;
        Ok(splits)
    }
}
