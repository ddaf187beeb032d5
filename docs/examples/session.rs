//! What the examples share: where the cluster is, and a lease that is kept alive for as long as the process lives.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::watch;
use tokio::time::{interval, timeout_at};

/// Seconds after which the cluster takes a process that is silent for dead.
pub const TTL: i64 = 2;

/// Connects to `$ENDPOINTS` (URLs with commas between them), or to where `braid dev` listens by default.
pub async fn connect() -> Result<Client> {
    let endpoints = std::env::var("ENDPOINTS").unwrap_or_else(|_| "http://127.0.0.1:2379".to_owned());
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    Ok(Client::connect(endpoints, None).await?)
}

/// A lease that is kept alive in the background.
pub struct Session {
    client: Client,
    lease: i64,
    alive: watch::Receiver<bool>,
}

impl Session {
    /// Grants a lease of [`TTL`] seconds.
    pub async fn start(client: &Client) -> Result<Self> {
        let mut client = client.clone();
        // The lease may end this long after the request for it has left, not sooner.
        let end = Instant::now() + Duration::from_secs(TTL.unsigned_abs());
        let lease = client.lease_grant(TTL, None).await?.id();
        let (living, alive) = watch::channel(true);
        let keeper = client.clone();
        tokio::spawn(async move {
            keep(keeper, lease, end).await;
            // Nobody may be left to hear it.
            _ = living.send(false);
        });
        Ok(Self { client, lease, alive })
    }

    /// Its id, for keys that go with it.
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Comes back when the lease has ended, or may have.
    pub async fn ended(&mut self) {
        // An error: whoever keeps it alive is gone, which is the same.
        _ = self.alive.wait_for(|alive| !alive).await;
    }

    /// Ends the lease now, and its keys with it.
    pub async fn close(mut self) -> Result<()> {
        self.client.lease_revoke(self.lease).await?;
        Ok(())
    }
}

/// Keeps a lease alive until the cluster says that it is gone, or has not answered for so long that it may be.
async fn keep(mut client: Client, lease: i64, mut end: Instant) {
    let third = Duration::from_secs(TTL.unsigned_abs()) / 3;
    let mut stream = None;
    let mut tick = interval(third);
    while Instant::now() < end {
        tick.tick().await;
        let sent = Instant::now();
        match timeout_at(end.into(), ask(&mut client, lease, &mut stream)).await {
            Ok(Ok(0)) => return,
            Ok(Ok(ttl)) => end = sent + Duration::from_secs(ttl),
            // The proxy or the way to it: another stream.
            Ok(Err(_)) => stream = None,
            Err(_) => return,
        }
    }
}

/// One keep-alive. Returns the seconds that the lease has from when it was sent; 0: there is no such lease.
async fn ask(client: &mut Client, lease: i64, stream: &mut Option<(LeaseKeeper, LeaseKeepAliveStream)>) -> Result<u64> {
    let (keeper, answers) = match stream {
        Some(open) => open,
        None => stream.insert(client.lease_keep_alive(lease).await?),
    };
    keeper.keep_alive().await?;
    match answers.message().await? {
        Some(answer) => Ok(u64::try_from(answer.ttl()).unwrap_or(0)),
        None => bail!("the stream has ended"),
    }
}
