//! The judging of a cluster while it is broken, against a server in memory that offers nothing to break: what cannot be
//! dealt is said, and what the server does wrong is found.

use std::time::Duration;

use braid_loadtest::client::Address;
use braid_loadtest::faults::targets::Targets;
use braid_loadtest::faults::watching::Recorder;
use braid_loadtest::faults::{self, Check, Fault, Plan, Verdict};
use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest};

use crate::memory::{self, Faults, Memory};

fn plan(address: &Address) -> Plan {
    Plan {
        endpoints: vec![address.clone()],
        checks: vec![Check::Durability],
        faults: vec![Fault::Split, Fault::Pause],
        duration: Duration::from_millis(900),
        every: Duration::from_millis(200),
        clients: 8,
        prefixes: vec!["a/".into(), "b/".into()],
        seed: 1,
    }
}

async fn durability(faults: Faults) -> Verdict {
    let server = Memory::start(faults).await;
    let mut told = Vec::new();
    let mut nothing = Targets::Running(Vec::new());
    let verdict = faults::run(&plan(&server.address), &mut nothing, |step| told.push(step.to_owned())).await.unwrap();
    assert!(told.iter().any(|step| step.starts_with("split: not done")), "{told:?}");
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_its_promises_is_not_blamed_and_what_was_not_dealt_is_said() {
    let verdict = durability(|_| memory::Fault::None).await;
    assert_eq!(verdict.violations, Vec::<String>::new());
    assert_eq!(verdict.never_dealt(&[Fault::Split, Fault::Pause]), [Fault::Split, Fault::Pause]);
    assert!(verdict.refused[&Fault::Split].contains("does not offer"), "{:?}", verdict.refused);
    assert!(verdict.refused[&Fault::Pause].contains("--pids"), "{:?}", verdict.refused);
    assert!(verdict.seen[0].starts_with("durability: "), "{:?}", verdict.seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_put_is_a_violation() {
    let verdict = durability(|put| if put % 20 == 19 { memory::Fault::Forgotten } else { memory::Fault::None }).await;
    assert!(verdict.violations.iter().any(|text| text.starts_with("durability: ")), "{:?}", verdict.violations);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_without_room_for_a_blow_is_refused() {
    let server = Memory::start(|_| memory::Fault::None).await;
    let short = Plan { duration: Duration::from_millis(100), ..plan(&server.address) };
    let mut nothing = Targets::Running(Vec::new());
    let error = faults::run(&short, &mut nothing, |_| ()).await.unwrap_err().to_string();
    assert!(error.contains("more than --every"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorder_sees_everything_up_to_the_end() {
    let server = Memory::start(|_| memory::Fault::None).await;
    let recorder = Recorder::start(std::slice::from_ref(&server.address)).await.unwrap();
    let mut kv = server.address.connect().await.unwrap();
    for key in ["a", "b", "a"] {
        kv.put(PutRequest { key: key.into(), value: key.into(), ..PutRequest::default() }).await.unwrap();
    }
    let deleted =
        kv.delete_range(DeleteRangeRequest { key: "b".into(), ..DeleteRangeRequest::default() }).await.unwrap();
    let revision = deleted.into_inner().header.unwrap().revision;
    let events = recorder.finish(revision).await.unwrap();
    let shown: Vec<_> = events.seen.iter().map(|seen| (&seen.key[..], seen.value.is_some())).collect();
    assert_eq!(shown, [(&b"a"[..], true), (b"b", true), (b"a", true), (b"b", false)]);
    assert!(events.streams >= 1 && events.seen.windows(2).all(|pair| pair[0].revision < pair[1].revision));
}
