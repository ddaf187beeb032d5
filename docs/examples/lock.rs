//! A distributed lock: many processes count in one key, one after the other.
//!
//! ```sh
//! cargo run --example lock -- counter 5 &  cargo run --example lock -- counter 5 &  wait
//! ```
//!
//! The lock is advisory: a process that was paused for longer than its lease may still believe that it holds it. So every
//! write under the lock names the lock's key, and is refused when that key is gone.

use anyhow::{Result, bail, ensure};
use etcd_client::{Client, Compare, CompareOp, LockOptions, Txn, TxnOp};

mod session;
use session::Session;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, rounds] = &args[..] else { bail!("usage: lock NAME ROUNDS") };
    let mut client = session::connect().await?;
    let mut session = Session::start(&client).await?;
    for _ in 0..rounds.parse()? {
        let options = LockOptions::new().with_lease(session.lease());
        let lock = tokio::select! {
            lock = client.lock(format!("locks/{name}"), Some(options)) => lock?.key().to_vec(),
            () = session.ended() => bail!("the lease is gone, and the place in the line with it"),
        };
        let count = count(&mut client, name, &lock).await?;
        println!("{name} is {count}");
        client.unlock(lock).await?;
    }
    session.close().await
}

/// Adds one to what stands in the key `name`, if `lock` is still held.
async fn count(client: &mut Client, name: &str, lock: &[u8]) -> Result<u64> {
    let before = client.get(name, None).await?;
    let before: u64 = before.kvs().first().map_or(Ok("0"), |kv| kv.value_str())?.parse()?;
    let held = Compare::create_revision(lock, CompareOp::Greater, 0);
    let put = TxnOp::put(name, (before + 1).to_string(), None);
    let answer = client.txn(Txn::new().when([held]).and_then([put])).await?;
    ensure!(answer.succeeded(), "the lock was lost before the write");
    Ok(before + 1)
}
