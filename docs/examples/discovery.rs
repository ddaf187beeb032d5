//! Service discovery: instances of a service are known for as long as they live.
//!
//! ```sh
//! cargo run --example discovery -- watch web                     # who is there, and every change
//! cargo run --example discovery -- serve web 10.0.0.1:8080       # one instance, until Ctrl-C
//! ```
//!
//! An instance is a key with a lease: Ctrl-C takes it away at once, `kill -9` after the lease's two seconds.

use anyhow::{Result, bail};
use etcd_client::{Client, EventType, GetOptions, PutOptions, WatchOptions};
use tokio::signal::unix::{SignalKind, signal};

mod session;
use session::Session;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let client = session::connect().await?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", service, address] => serve(client, service, address).await,
        ["watch", service] => watch(client, service).await,
        _ => bail!("usage: discovery serve SERVICE ADDRESS | discovery watch SERVICE"),
    }
}

async fn serve(mut client: Client, service: &str, address: &str) -> Result<()> {
    // Before anything is said: who has heard that the instance is there may end it.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut session = Session::start(&client).await?;
    let with_lease = PutOptions::new().with_lease(session.lease());
    client.put(format!("services/{service}/{address}"), address, Some(with_lease)).await?;
    println!("{service}: {address} is registered");
    tokio::select! {
        () = session.ended() => bail!("the lease is gone: this instance is not known any more"),
        _ = interrupts.recv() => {}
    }
    session.close().await?;
    println!("{service}: {address} is gone");
    Ok(())
}

async fn watch(mut client: Client, service: &str) -> Result<()> {
    let prefix = format!("services/{service}/");
    let known = client.get(prefix.as_str(), Some(GetOptions::new().with_prefix())).await?;
    for instance in known.kvs() {
        println!("+ {}", instance.value_str()?);
    }
    println!("{} known", known.kvs().len());
    // From the first change after what was just read: nothing is missed, nothing comes twice.
    let after = known.header().map_or(0, |header| header.revision()) + 1;
    let changes = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(after);
    let mut changes = client.watch(prefix, Some(changes)).await?;
    while let Some(response) = changes.message().await? {
        for event in response.events() {
            match (event.event_type(), event.kv(), event.prev_kv()) {
                (EventType::Put, Some(instance), _) => println!("+ {}", instance.value_str()?),
                (EventType::Delete, _, Some(instance)) => println!("- {}", instance.value_str()?),
                _ => {}
            }
        }
    }
    bail!("the watch has ended")
}
