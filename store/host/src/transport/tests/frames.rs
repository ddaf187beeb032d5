//! Frames: order, refusals, lost and moved hosts, bounds.

use std::sync::atomic::{AtomicUsize, Ordering};

use braid_proto::pb::raft_server::{Raft, RaftServer};
use braid_proto::pb::{RaftDone, SnapshotChunk, Support};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, Streaming};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_in_order_and_whole() {
    let process = Process::start().await;
    let mut received = process.open(2);
    let transport = transport(&book(2, &process.address));
    let total = 20_000;
    let sender = tokio::task::spawn_blocking(move || {
        for number in 0..total {
            while !transport.send(frame(2, number)) {
                std::thread::yield_now();
            }
        }
        transport
    });
    let mut next = 0;
    let mut frames = 0;
    while next < total {
        let frame = received.frame().await;
        frames += 1;
        let addressed = (frame.cluster_id, frame.domain, frame.from_host, frame.to_host, frame.from_incarnation);
        assert_eq!(addressed, (CLUSTER.0, Domain::Store as i32, 1, 2, 5));
        for message in frame.messages {
            assert_eq!((message.region_id, message.message.len()), (next, 100));
            next += 1;
        }
    }
    assert!(frames <= total);
    drop(sender.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn support_and_large_messages_pass() {
    let process = Process::start().await;
    let mut received = process.open(2);
    let transport = transport(&book(2, &process.address));
    let support = Some(Support { request_seq: 7, ..Default::default() });
    assert!(transport.send(RaftFrame { messages: Vec::new(), support, ..frame(2, 0) }));
    assert_eq!(received.frame().await.support, support);
    let large = RaftMessage { region_id: 1, message: vec![3; 9 << 20].into(), ..Default::default() };
    assert!(transport.send(RaftFrame { messages: vec![large.clone()], ..frame(2, 0) }));
    assert_eq!(received.frame().await.messages, std::slice::from_ref(&large));
    let too_large = RaftMessage { message: vec![3; MESSAGE_BYTES_MAX].into(), ..large };
    assert!(!transport.send(RaftFrame { messages: vec![too_large], ..frame(2, 0) }));
    assert!(transport.send(frame(2, 9)), "it did not harm the connection");
    assert_eq!(received.frame().await.messages[0].region_id, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_another_cluster_or_for_another_host_are_refused() {
    let process = Process::start().await;
    let mut received = process.open(2);
    let mut client = process.client().await;
    let cases = [
        (
            RaftFrame { cluster_id: 0xC2, ..frame(2, 0) },
            Code::FailedPrecondition,
            "cluster c1, the sender to cluster c2",
        ),
        (RaftFrame { cluster_id: CLUSTER.0, ..frame(3, 0) }, Code::NotFound, "store s3 does not run here"),
        (
            RaftFrame { cluster_id: CLUSTER.0, domain: Domain::Placement as i32, ..frame(2, 0) },
            Code::NotFound,
            "placement member 2 does not run here",
        ),
        (RaftFrame { cluster_id: CLUSTER.0, domain: 9, ..frame(2, 0) }, Code::InvalidArgument, "no raft domain 9"),
    ];
    for (wrong, code, text) in cases {
        let status = client.stream(tokio_stream::iter([wrong])).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(text), "{status}");
    }
    let right = RaftFrame { cluster_id: CLUSTER.0, ..frame(2, 8) };
    client.stream(tokio_stream::iter([right.clone()])).await.unwrap();
    assert_eq!(received.frame().await, right, "nothing else arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_drops_and_a_host_that_opens_later_is_reached() {
    let process = Process::start().await;
    let book = AddressBook::default();
    let transport = transport(&book);
    assert!(!transport.send(frame(2, 0)));
    assert!(!transport.send(RaftFrame { domain: 77, ..frame(2, 0) }));
    book.set(Domain::Store, 2, &process.address);
    let lost = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&lost);
    transport.on_unreachable(move |unreachable| {
        assert_eq!(unreachable, Unreachable { domain: Domain::Store, from: 1, to: 2 });
        seen.fetch_add(1, Ordering::Relaxed);
    });
    until("the refusal is reported", || {
        transport.send(frame(2, 0));
        lost.load(Ordering::Relaxed) > 0
    })
    .await;
    let mut received = process.open(2);
    until_arrived(&transport, 2, &mut received).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_host_is_found_again_and_while_it_is_down_frames_are_dropped() {
    let started = Instant::now();
    let process = Process::start().await;
    let address = process.address.clone();
    let mut received = process.open(2);
    let transport = transport(&book(2, &address));
    let reports = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&reports);
    transport.on_unreachable(move |_| report.lock().push(Instant::now()));
    until_arrived(&transport, 2, &mut received).await;

    process.stop().await;
    until("the lane notices", || !transport.send(frame(2, 0))).await;
    // Long enough for several attempts, each of which fails.
    until("two reports", || {
        transport.send(frame(2, 0));
        reports.lock().len() >= 2
    })
    .await;

    let process = Process::start_at(&address).await;
    let mut received = process.open(2);
    until_arrived(&transport, 2, &mut received).await;
    let reports = reports.lock();
    let (count, last) = (reports.len() as u32, reports[reports.len() - 1]);
    assert!(last - started >= Duration::from_millis(500) * (count - 1), "{count} reports are too many");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_moves_is_followed() {
    let (old, new) = (Process::start().await, Process::start().await);
    let (mut at_old, mut at_new) = (old.open(2), new.open(2));
    let book = book(2, &old.address);
    let transport = transport(&book);
    until_arrived(&transport, 2, &mut at_old).await;
    book.set(Domain::Store, 2, &new.address);
    until_arrived(&transport, 2, &mut at_new).await;
    assert!(book.get(Domain::Store, 2).is_some_and(|address| *address == *new.address));
}

/// Takes calls, but reads nothing before its gate opens.
struct Stalling {
    service: RaftService,
    gate: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Raft for Stalling {
    async fn stream(&self, request: Request<Streaming<RaftFrame>>) -> Result<Response<RaftDone>, Status> {
        self.gate.clone().wait_for(|open| *open).await.map_err(|_| Status::aborted("the test has ended"))?;
        self.service.stream(request).await
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Result<Response<RaftDone>, Status> {
        self.service.snapshot(request).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_stalls_fills_a_bounded_queue_and_what_was_taken_arrives_in_order() {
    let (open, gate) = watch::channel(false);
    let stalling = |service| RaftServer::new(Stalling { service, gate }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let process = Process::start_with("127.0.0.1:0", stalling).await;
    let mut received = process.open(2);
    let transport = transport(&book(2, &process.address));
    let big = |number| {
        let message = RaftMessage { region_id: number, message: vec![1; 1 << 20].into(), ..Default::default() };
        RaftFrame { messages: vec![message], ..frame(2, 0) }
    };
    // Everything on the way is bounded: the queue, and what the connection takes until its windows are full.
    let mut taken = 0;
    let mut refused_in_a_row = 0;
    while refused_in_a_row < 50 {
        if transport.send(big(taken)) {
            taken += 1;
            refused_in_a_row = 0;
        } else {
            refused_in_a_row += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(taken < 100, "the queue is bounded");
    }
    assert!(taken as usize >= super::super::lane::QUEUE_BYTES >> 21);
    open.send_replace(true);
    let mut next = 0;
    while next < taken {
        for message in received.frame().await.messages {
            assert_eq!(message.region_id, next);
            next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_one_process_need_no_network() {
    let mut received = Received::new();
    let local = LocalRegistry::default();
    local.register(Domain::Store, 2, received.mirror.clone());
    let runtime = tokio::runtime::Handle::current();
    let transport =
        GrpcTransport::new(runtime, CLUSTER, AddressBook::default(), local.clone(), TransportConfig::default());
    assert!(transport.send(frame(2, 4)));
    let arrived = received.frames.try_recv().expect("it is there when send returns");
    assert_eq!(arrived, RaftFrame { cluster_id: CLUSTER.0, ..frame(2, 4) });
    local.unregister(Domain::Store, 2);
    assert!(!transport.send(frame(2, 5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_transport_ends_its_calls() {
    let process = Process::start().await;
    let mut received = process.open(2);
    let transport = transport(&book(2, &process.address));
    until_arrived(&transport, 2, &mut received).await;
    drop(transport);
    // The server stops without ending its calls: it waits for them, and they end from the other side.
    process.stop.send(()).unwrap();
    tokio::time::timeout(PATIENCE, process.server).await.expect("no call is left").unwrap();
}
