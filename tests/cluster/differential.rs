//! Random programs against braid, every answer compared with a model of etcd's semantics, revisions included: on one, on
//! three and on sixteen regions that are split meanwhile. The programs are another set with each number of regions, and
//! the same ones in every run.

use braid_loadtest::client::Address;
use braid_loadtest::differential::generate::{Shape, universe};
use braid_loadtest::differential::server::Server;
use braid_loadtest::differential::session::{Limits, Session};
use braid_loadtest::differential::split::Splitter;
use braid_loadtest::differential::{Plan, run};
use braid_loadtest::model::Dialect;
use bytes::Bytes;

use crate::harness::{Cluster, wait_for};

/// Fifteen of the keys that programs use.
const SIXTEEN: &str = "a/,a/a,a0,b,bb,c,c/2,d,f,k,m,p,s,x,\\xff";

struct Case {
    flags: &'static [&'static str],
    regions: usize,
    requests: u64,
    splits: u64,
}

/// Runs programs and fails at the first answer that is not etcd's.
async fn judge(case: &Case) {
    let cluster = Cluster::dev(case.flags);
    let regions = || cluster.admin(&["region", "list"])["regions"].as_array().map_or(0, Vec::len);
    wait_for("the regions", || (regions() == case.regions).then_some(()));
    let seed = case.regions as u64;
    let endpoints: Vec<Address> = cluster.endpoints.iter().map(|url| url.parse().expect("a URL of ours")).collect();
    let mut server = Server::connect(&endpoints).await.expect("the cluster is reachable");
    let splitter = Splitter::start(&endpoints[0], seed, case.splits, case.requests, universe()).await;
    server.split_with(splitter.expect("the cluster is reachable"));
    let limits = Limits { prefix: Bytes::new(), compactions: true };
    let session = Session::open("braid", server, Dialect::Braid, limits).await.expect("an empty store");
    let shape = Shape {
        length: 40,
        dialect: Dialect::Braid,
        unknown_sorts: true,
        leases: session.has_leases(),
        compactions: true,
        physical: true,
        serializable: true,
    };
    let plan = Plan { seed, first: 0, requests: case.requests, shape };
    let mut sessions = [session];
    let outcome = run(&plan, &mut sessions, |_| ()).await.expect("the store can be used");
    let agreement = outcome.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(agreement.requests >= case.requests, "{agreement:?}");

    let splits = sessions[0].target().take_splitter().expect("it was given").finish().await.expect("it ends");
    println!("seed {seed}: {} requests agree, {splits:?}", agreement.requests);
    assert_eq!(splits.done + splits.refused, case.splits);
    assert!(splits.done > 0, "{splits:?}");
    let expected = case.regions + usize::try_from(splits.done).expect("few");
    wait_for("the list to show every split", || (regions() == expected).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_region_answers_as_etcd_does() {
    judge(&Case { flags: &["--stores", "1", "--regions", "1"], regions: 1, requests: 2_500, splits: 4 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_regions_answer_as_etcd_does() {
    judge(&Case { flags: &["--stores", "3", "--split-keys", "a0,d"], regions: 3, requests: 2_500, splits: 6 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_regions_answer_as_etcd_does() {
    judge(&Case { flags: &["--stores", "1", "--split-keys", SIXTEEN], regions: 16, requests: 2_500, splits: 8 }).await;
}
