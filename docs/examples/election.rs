//! Leader election: of many candidates one leads, and the next one takes over when it resigns or dies.
//!
//! ```sh
//! cargo run --example election -- observe shop           # every leader, one after the other
//! cargo run --example election -- run shop alice         # a candidate; Ctrl-C resigns
//! ```

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client, ResignOptions};
use tokio::signal::unix::{SignalKind, signal};

mod session;
use session::Session;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let client = session::connect().await?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", election, candidate] => run(client, election, candidate).await,
        ["observe", election] => observe(client, election).await,
        _ => bail!("usage: election run ELECTION CANDIDATE | election observe ELECTION"),
    }
}

async fn run(mut client: Client, election: &str, candidate: &str) -> Result<()> {
    // One for both waits below: a Ctrl-C between them counts.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut session = Session::start(&client).await?;
    println!("{candidate} is a candidate");
    // Comes back when everybody who came before is gone.
    let leadership = tokio::select! {
        won = client.campaign(election, candidate, session.lease()) => won?,
        () = session.ended() => bail!("the lease is gone, and the candidate with it"),
        _ = interrupts.recv() => return session.close().await,
    };
    println!("{candidate} leads");
    tokio::select! {
        // From here on another one may lead: stop whatever only a leader may do.
        () = session.ended() => bail!("the lease is gone, and the leadership with it"),
        _ = interrupts.recv() => {}
    }
    let leader = leadership.leader().context("a campaign that was won has a key")?.clone();
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    println!("{candidate} has resigned");
    session.close().await
}

async fn observe(mut client: Client, election: &str) -> Result<()> {
    let mut leaders = client.observe(election).await?;
    println!("observing {election}");
    while let Some(leader) = leaders.message().await? {
        println!("leader: {}", leader.kv().context("a leader has a key")?.value_str()?);
    }
    bail!("the stream has ended")
}
