//! Loading a data set and reading it back, against a server in memory that can be tampered with.

use std::time::Duration;

use crate::memory::{Fault, Memory};
use braid_loadtest::dataset::Dataset;
use braid_loadtest::loader::{Loaded, Loader};
use braid_loadtest::session::{Policy, Pool};
use braid_loadtest::verify::{Expected, Verified, verify};
use indicatif::ProgressBar;

const KEYS: u64 = 1_000;

async fn load(server: &Memory, policy: Policy) -> anyhow::Result<Loaded> {
    let dataset = Dataset::new(1);
    let endpoints = vec![server.address.clone()];
    let loader = Loader { endpoints, clients: 16, connections: 2, policy };
    let entry = move |index| (dataset.key_of(index), dataset.value_of(index, 1));
    loader.load(KEYS, entry, &ProgressBar::hidden()).await
}

async fn read_back(server: &Memory) -> Verified {
    let expected = Expected::new(Dataset::new(1), KEYS, 1);
    let pool = Pool::new(std::slice::from_ref(&server.address), 1, Policy::default());
    verify(&mut pool.session(0), &expected, 300, &ProgressBar::hidden()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_loaded_is_read_back() {
    let server = Memory::start(|_| Fault::None).await;
    let loaded = load(&server, Policy::default()).await.unwrap();
    assert_eq!((loaded.puts, loaded.retries, loaded.revision), (KEYS, 0, 1 + KEYS as i64));
    assert_eq!(loaded.latency.count, KEYS);
    let verified = read_back(&server).await;
    assert_eq!((verified.problems, verified.keys, verified.pages), (0, KEYS, 4), "{:#?}", verified.first_problems);
    assert_eq!(verified.bytes, loaded.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_are_overcome() {
    let server = Memory::start(|put| match put % 50 {
        7 => Fault::Busy,
        9 => Fault::AnswerLost,
        _ => Fault::None,
    })
    .await;
    let loaded = load(&server, Policy::default()).await.unwrap();
    assert!(loaded.retries >= KEYS / 25, "{}", loaded.retries);
    assert_eq!(read_back(&server).await.problems, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_lasts_is_an_error_that_names_the_key() {
    let server = Memory::start(|_| Fault::Busy).await;
    let policy = Policy { total: Duration::from_millis(200), ..Policy::default() };
    let error = load(&server, policy).await.unwrap_err().to_string();
    assert!(error.contains("put of /registry/") && error.contains("no leader"), "{error}");
    let server = Memory::start(|_| Fault::Hangs).await;
    let policy = Policy { attempt: Duration::from_millis(50), total: Duration::from_millis(200) };
    let error = load(&server, policy).await.unwrap_err().to_string();
    assert!(error.contains("no answer within"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_write_and_a_changed_byte_are_found() {
    let server = Memory::start(|put| if put == 234 { Fault::Forgotten } else { Fault::None }).await;
    load(&server, Policy::default()).await.unwrap();
    let verified = read_back(&server).await;
    assert_eq!(verified.problems, 2, "{:#?}", verified.first_problems);
    assert!(verified.first_problems[0].contains("is missing"), "{:#?}", verified.first_problems);

    let server = Memory::start(|_| Fault::None).await;
    load(&server, Policy::default()).await.unwrap();
    {
        let mut state = server.state.lock().await;
        let kv = state.keys.values_mut().nth(700).unwrap();
        let mut value = kv.value.to_vec();
        *value.last_mut().unwrap() ^= 1;
        kv.value = value.into();
    }
    let verified = read_back(&server).await;
    assert_eq!(verified.problems, 1);
    assert!(verified.first_problems[0].contains("is wrong"), "{:#?}", verified.first_problems);
}
