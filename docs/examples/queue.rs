//! A queue of jobs: many workers, every job done, in the order in which they came, also when a worker dies over one.
//!
//! ```sh
//! cargo run --example queue -- add one two three
//! cargo run --example queue -- work alice        # until there is nothing left
//! cargo run --example queue -- take bob          # takes one job and never ends it: kill it, and another has the job
//! ```
//!
//! A job is a key under `queue/jobs/`. A worker claims it by a key of the same name under `queue/claims/` that has the
//! worker's lease, in a transaction that looks whether the job is there and the claim is not. Done, it deletes both in
//! another one. A worker that dies loses its claim with its lease.

use anyhow::{Result, bail, ensure};
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};

mod session;
use session::Session;

const JOBS: &str = "queue/jobs/";
const CLAIMS: &str = "queue/claims/";

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut client = session::connect().await?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["add", ref jobs @ ..] if !jobs.is_empty() => {
            for job in jobs {
                client.put(format!("{JOBS}{job}"), *job, None).await?;
            }
            Ok(())
        }
        ["work", worker] => work(client, worker).await,
        ["take", worker] => {
            let mut session = Session::start(&client).await?;
            let Some(job) = claim(&mut client, worker, &session).await? else { bail!("there is no job") };
            println!("{worker} has taken {job}");
            session.ended().await;
            bail!("the lease is gone, and the claim with it")
        }
        _ => bail!("usage: queue add JOB... | queue work WORKER | queue take WORKER"),
    }
}

async fn work(mut client: Client, worker: &str) -> Result<()> {
    let session = Session::start(&client).await?;
    while let Some(job) = claim(&mut client, worker, &session).await? {
        // Here it would be done. Whoever lost the claim meanwhile finds out below, and must not count on having been alone.
        let (job_key, claim) = (format!("{JOBS}{job}"), format!("{CLAIMS}{job}"));
        let mine = Compare::lease(claim.as_str(), CompareOp::Equal, session.lease());
        let done = [TxnOp::delete(job_key, None), TxnOp::delete(claim, None)];
        let answer = client.txn(Txn::new().when([mine]).and_then(done)).await?;
        ensure!(answer.succeeded(), "the claim of {job} was lost");
        println!("{worker} has done {job}");
    }
    session.close().await
}

/// Claims the oldest job that nobody has claimed, and waits while there are only others. `None`: there is no job left.
async fn claim(client: &mut Client, worker: &str, session: &Session) -> Result<Option<String>> {
    loop {
        let oldest_first = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend);
        let jobs = client.get(JOBS, Some(oldest_first)).await?;
        if jobs.kvs().is_empty() {
            return Ok(None);
        }
        for job in jobs.kvs() {
            let (job_key, job) = (job.key_str()?, job.value_str()?);
            let claim = format!("{CLAIMS}{job}");
            let there = Compare::create_revision(job_key, CompareOp::Greater, 0);
            let free = Compare::create_revision(claim.as_str(), CompareOp::Equal, 0);
            let options = PutOptions::new().with_lease(session.lease());
            let put = TxnOp::put(claim, worker, Some(options));
            if client.txn(Txn::new().when([there, free]).and_then([put])).await?.succeeded() {
                return Ok(Some(job.to_owned()));
            }
        }
        // All of them are claimed. Whatever changes after what was read may be a claim that ends.
        let after = jobs.header().map_or(0, |header| header.revision()) + 1;
        let options = WatchOptions::new().with_prefix().with_start_revision(after);
        let mut changes = client.watch("queue/", Some(options)).await?;
        while changes.message().await?.is_some_and(|response| response.events().is_empty()) {}
    }
}
