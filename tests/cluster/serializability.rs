//! Everything at once on few keys in eight regions, while a proxy, a store and the placement leader are killed: what the
//! clients were told is strictly serializable. `loadtest serializability` does the same for as long as one likes.

use std::time::Duration;

use braid_loadtest::client::Address;
use braid_loadtest::linear;
use braid_loadtest::linear::history::{Outcome, Place, Request};
use braid_loadtest::linear::run::{Plan, Run};
use braid_loadtest::linear::workload::Keys;

use crate::harness::{Cluster, PATIENCE};
use crate::kill::{prefixes, wait_whole};

/// Requests that must be answered between two blows.
const ROUND: u64 = 150;
/// Clients: few, since a debug build on two busy cores serves them all.
const CLIENTS: u32 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_strictly_serializable_while_processes_are_killed() {
    let mut cluster = Cluster::split(3, 3, 2, &["--initial-regions", "8"], &[]);
    wait_whole(&cluster, 8);
    let endpoints: Vec<Address> = cluster.endpoints.iter().map(|url| url.parse().expect("a URL of ours")).collect();
    let keys = Keys::new(&prefixes(), 4).expect("good prefixes");
    let plan = Plan { clients: CLIENTS, attempt: Duration::from_secs(3), ..Plan::new(endpoints, keys) };
    let mut run = Run::start(plan).await.expect("the clients start");
    run.answered_more(ROUND, PATIENCE).await.expect("the cluster answers");

    let leader = cluster.placement_leader();
    for victim in ["proxy-2", "store-1", &leader] {
        cluster.process(victim).kill().expect("it can be killed");
        run.answered_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("without {victim}: {error:#}"));
        cluster.process(victim).restart().expect("it starts again");
        run.answered_more(ROUND, PATIENCE).await.unwrap_or_else(|error| panic!("with {victim} back: {error:#}"));
    }
    cluster.wait_healthy();

    let history = run.stop().await.expect("the cluster can be read");
    let verdict = linear::check(&history).expect("the history is complete");
    let texts: Vec<String> = verdict.violations.iter().take(5).map(ToString::to_string).collect();
    assert!(texts.is_empty(), "{} violations, such as\n{}", verdict.violations.len(), texts.join("\n"));
    let refused = history.ops.iter().find(|op| matches!(op.outcome, Outcome::Refused(_)));
    assert!(refused.is_none(), "nothing that was asked is wrong: {refused:?}");
    // What the verdict is worth: transactions took effect, over more than one region, and money was moved.
    let wide = history.ops.iter().filter(|op| matches!(op.place(), Some(Place::Took(_))) && regions(&op.request) > 1);
    assert!(wide.count() > 50);
}

/// Over how many prefixes a request's puts are spread.
fn regions(request: &Request) -> usize {
    let mut first: Vec<u8> = request.puts().iter().map(|put| put.key[0]).collect();
    first.sort_unstable();
    first.dedup();
    first.len()
}
