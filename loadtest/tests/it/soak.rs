//! Steady writers against a server in memory: the checkers accept what is right and find each planted fault.

use std::time::Duration;

use crate::memory::{Fault, Faults, Memory};
use braid_loadtest::check;
use braid_loadtest::client::Address;
use braid_loadtest::history::History;
use braid_loadtest::writer::{Plan, Writer};

const LONG: Duration = Duration::from_secs(60);

fn plan(endpoints: Vec<Address>) -> Plan {
    Plan { attempt: Duration::from_secs(3), ..Plan::new(endpoints) }
}

/// Writes until 1,000 puts are acknowledged; gives the history and the violated properties.
async fn soak(faults: Faults) -> (History, Vec<&'static str>) {
    let server = Memory::start(faults).await;
    let mut writer = Writer::start(plan(vec![server.address.clone()])).await.unwrap();
    writer.acked_more(1_000, LONG).await.unwrap();
    let (history, state) = writer.stop().await.unwrap();
    assert!(history.acked().count() >= 1_000 && !history.reads.is_empty());
    let mut properties: Vec<_> = check::all(&history, &state).iter().map(|violation| violation.property).collect();
    properties.sort_unstable();
    properties.dedup();
    (history, properties)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_faults_is_not_blamed() {
    let (history, properties) = soak(|_| Fault::None).await;
    assert_eq!(properties, Vec::<&str>::new());
    assert_eq!(history.unknown(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcomes_are_no_violation() {
    let (history, properties) = soak(|put| match put % 40 {
        3 => Fault::AnswerLost,
        5 => Fault::Busy,
        _ => Fault::None,
    })
    .await;
    assert_eq!(properties, Vec::<&str>::new());
    assert!(history.unknown() >= 20, "{}", history.unknown());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_without_an_answer_is_given_up() {
    let (history, properties) = soak(|put| if put == 100 { Fault::Hangs } else { Fault::None }).await;
    assert_eq!(properties, Vec::<&str>::new());
    assert_eq!(history.unknown(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_put_is_found() {
    let (_, properties) = soak(|put| if put % 20 == 19 { Fault::Forgotten } else { Fault::None }).await;
    assert!(properties.contains(&"durability") && properties.contains(&"once"), "{properties:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_put_is_found() {
    let (_, properties) = soak(|put| if put == 500 { Fault::Repeated } else { Fault::None }).await;
    assert_eq!(properties, ["once"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_move_on_from_an_endpoint_that_is_gone() {
    let server = Memory::start(|_| Fault::None).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoints = vec![gone.to_string().parse().unwrap(), server.address.clone()];
    let mut writer = Writer::start(plan(endpoints)).await.unwrap();
    writer.acked_more(200, LONG).await.unwrap();
    let (history, state) = writer.stop().await.unwrap();
    assert_eq!(check::all(&history, &state), []);
    // What was refused by a closed port was not sent: nothing is unknown.
    assert_eq!(history.unknown(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_stands_still_is_reported() {
    let server = Memory::start(|put| if put >= 100 { Fault::Hangs } else { Fault::None }).await;
    let mut writer = Writer::start(plan(vec![server.address.clone()])).await.unwrap();
    writer.acked_more(50, LONG).await.unwrap();
    let error = writer.acked_more(1_000, Duration::from_millis(200)).await.unwrap_err().to_string();
    assert!(error.contains("of 1000 puts were acknowledged"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_exist_are_not_written_over() {
    let server = Memory::start(|_| Fault::None).await;
    let writer = Writer::start(plan(vec![server.address.clone()])).await.unwrap();
    let mut writer = writer;
    writer.acked_more(1, LONG).await.unwrap();
    writer.stop().await.unwrap();
    let error = Writer::start(plan(vec![server.address.clone()])).await.unwrap_err().to_string();
    assert!(error.contains("choose another prefix"), "{error}");
}
