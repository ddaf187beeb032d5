//! Snapshots: intact or not at all.

use std::fs;

use braid_proto::pb::{SnapshotChunk, SnapshotFile, SnapshotManifest};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::*;

/// Files of a snapshot on the sender's disk.
struct Files {
    folder: tempfile::TempDir,
    contents: Vec<Vec<u8>>,
}

impl Files {
    /// One file for each size, with contents of their own.
    fn of(sizes: &[usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let content = |index: usize, size: usize| (0..size).map(|at| (at * 31 + index * 7 + at / 251) as u8).collect();
        let contents: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(index, &size)| content(index, size)).collect();
        for (index, content) in contents.iter().enumerate() {
            fs::write(folder.path().join(format!("{index}.sent")), content).unwrap();
        }
        Files { folder, contents }
    }

    fn paths(&self) -> Vec<PathBuf> {
        (0..self.contents.len()).map(|index| self.folder.path().join(format!("{index}.sent"))).collect()
    }

    fn manifest(&self) -> SnapshotManifest {
        let file = |content: &Vec<u8>| SnapshotFile {
            cf: "data".into(),
            bytes: content.len() as u64,
            crc32: crc32fast::hash(content),
        };
        SnapshotManifest { region: None, files: self.contents.iter().map(file).collect(), ..Default::default() }
    }
}

fn snapshot_frame(to: u64, manifest: &SnapshotManifest) -> RaftFrame {
    let mut raft = eraftpb::Message::default();
    raft.set_msg_type(eraftpb::MessageType::MsgSnapshot);
    raft.mut_snapshot().set_data(manifest.encode_to_vec().into());
    let mut frame = frame(to, 3);
    frame.cluster_id = CLUSTER.0;
    frame.messages[0].message = raft.write_to_bytes().unwrap().into();
    frame
}

/// Sends a snapshot and waits for the sender's verdict.
async fn send(transport: &GrpcTransport, frame: RaftFrame, files: Vec<PathBuf>) -> Result<(), String> {
    let (done, ended) = oneshot::channel();
    transport.send_snapshot(frame, files, Box::new(move |result| done.send(result).unwrap()));
    tokio::time::timeout(PATIENCE, ended).await.expect("a verdict in time").expect("a verdict")
}

fn assert_intact(files: &Files, folder: &Path) {
    for (index, content) in files.contents.iter().enumerate() {
        assert!(fs::read(folder.join(format!("{index}.sst"))).unwrap() == *content, "file {index} is intact");
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), files.contents.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_intact_over_the_network() {
    let process = Process::start().await;
    let mut received = process.open(2);
    let transport = transport(&book(2, &process.address));
    // Below, at and above the size of a chunk, and empty ones at the start, in the middle and at the end.
    let files = Files::of(&[0, 1, 512 << 10, 0, 3_000_001, 17, 0]);
    let frame = snapshot_frame(2, &files.manifest());
    let begun = tokio::time::Instant::now();
    assert_eq!(send(&transport, frame.clone(), files.paths()).await, Ok(()));
    let (arrived, folder) = received.snapshot().await;
    assert_eq!(arrived, frame);
    assert_eq!(folder.parent(), Some(received.mirror.folder.path()));
    assert_intact(&files, &folder);
    let bytes: usize = files.contents.iter().map(Vec::len).sum();
    let paid = received.mirror.pace.turn(0, begun, Duration::MAX).expect("no limit to patience").expect("a turn later");
    let seconds = (paid - begun).as_secs_f64();
    assert!(seconds > 0.999 * bytes as f64 / SNAPSHOT_BYTES_PER_SECOND as f64, "each byte had its turn: {seconds} s");
    assert!(files.paths().iter().all(|path| path.exists()), "the sender's files stay the sender's");

    let other = send(&transport, frame, files.paths()).await;
    assert_eq!(other, Ok(()));
    assert_ne!(received.snapshot().await.1, folder, "each snapshot has its own folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_intact_inside_a_process() {
    let mut received = Received::new();
    let local = LocalRegistry::default();
    local.register(Domain::Store, 2, received.mirror.clone());
    let runtime = tokio::runtime::Handle::current();
    let transport = GrpcTransport::new(runtime, CLUSTER, AddressBook::default(), local, TransportConfig::default());
    let files = Files::of(&[700_000, 3]);
    assert_eq!(send(&transport, snapshot_frame(2, &files.manifest()), files.paths()).await, Ok(()));
    assert_intact(&files, &received.snapshot().await.1);

    let mut manifest = files.manifest();
    manifest.files[0].crc32 ^= 1;
    let why = send(&transport, snapshot_frame(2, &manifest), files.paths()).await.unwrap_err();
    assert!(why.starts_with("file 0 has sum"), "{why}");
    assert_eq!(received.folders(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_match_the_manifest_is_refused_and_removed() {
    let process = Process::start().await;
    let mut received = process.open(2);
    let transport = transport(&book(2, &process.address));
    let files = Files::of(&[1000, 2000]);
    type Damage = fn(&mut SnapshotManifest);
    let cases: [(Damage, &str); 5] = [
        (|manifest| manifest.files[1].crc32 ^= 1, "file 1 has sum"),
        (|manifest| manifest.files[0].bytes = 999, "file 0 is longer than its 999 bytes"),
        (|manifest| manifest.files[0].bytes = 1001, "file 0 has 1000 of 1001 bytes"),
        (|manifest| manifest.files.truncate(1), "the manifest has 1 files"),
        (|manifest| manifest.files.push(SnapshotFile { bytes: 5, ..Default::default() }), "file 2 has 0 of 5 bytes"),
    ];
    for (damage, expect) in cases {
        let mut manifest = files.manifest();
        damage(&mut manifest);
        let why = send(&transport, snapshot_frame(2, &manifest), files.paths()).await.unwrap_err();
        assert!(why.contains(expect), "{why}");
        until("the folder is removed", || received.folders() == 0).await;
    }
    assert!(received.snapshots.try_recv().is_err(), "the host heard of none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_no_snapshot_is_refused() {
    let process = Process::start().await;
    let received = process.open(2);
    let mut client = process.client().await;
    let good = snapshot_frame(2, &Files::of(&[10]).manifest());
    let with = |change: fn(&mut RaftFrame)| {
        let mut frame = good.clone();
        change(&mut frame);
        SnapshotChunk { head: Some(frame), ..Default::default() }
    };
    let cases = [
        (SnapshotChunk::default(), Code::InvalidArgument, "begins with its frame"),
        (with(|frame| frame.cluster_id = 1), Code::FailedPrecondition, "the sender to cluster 1"),
        (with(|frame| frame.to_host = 4), Code::NotFound, "store s4 does not run here"),
        (with(|frame| frame.messages.clear()), Code::InvalidArgument, "one message, not 0"),
        (
            with(|frame| frame.messages[0].message = vec![0xff; 9].into()),
            Code::InvalidArgument,
            "raft message is damaged",
        ),
        (with(|frame| frame.messages[0].message = Default::default()), Code::InvalidArgument, "MsgHup is no snapshot"),
    ];
    for (head, code, expect) in cases {
        let status = client.snapshot(tokio_stream::iter([head])).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(expect), "{status}");
    }
    assert_eq!(received.folders(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_goes_away_leaves_nothing_behind() {
    let process = Process::start().await;
    let received = process.open(2);
    let mut client = process.client().await;
    let head = snapshot_frame(2, &Files::of(&[1000]).manifest());
    let (chunks, body) = mpsc::channel(4);
    let call = tokio::spawn(async move { client.snapshot(ReceiverStream::new(body)).await });
    chunks.send(SnapshotChunk { head: Some(head), ..Default::default() }).await.unwrap();
    chunks.send(SnapshotChunk { head: None, file: 0, data: vec![1; 500].into() }).await.unwrap();
    until("it has begun", || received.folders() == 1).await;
    call.abort();
    until("the folder is removed", || received.folders() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_sender_are_told() {
    let process = Process::start().await;
    let received = process.open(2);
    let transport = transport(&book(2, &process.address));
    let files = Files::of(&[10, 10]);
    let frame = snapshot_frame(2, &files.manifest());
    fs::remove_file(&files.paths()[1]).unwrap();
    let why = send(&transport, frame.clone(), files.paths()).await.unwrap_err();
    assert!(why.contains("1.sent: No such file"), "{why}");
    until("the folder is removed", || received.folders() == 0).await;

    let why = send(&transport, RaftFrame { to_host: 8, ..frame.clone() }, files.paths()).await.unwrap_err();
    assert_eq!(why, "the address of store s8 is unknown");

    process.stop().await;
    let why = send(&transport, frame, files.paths()).await.unwrap_err();
    assert!(why.contains("onnection refused"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifth_snapshot_waits_for_a_place() {
    let process = Process::start().await;
    let mut received = process.open(2);
    let transport = transport(&book(2, &process.address));
    let files = Files::of(&[100]);
    let head = SnapshotChunk { head: Some(snapshot_frame(2, &files.manifest())), ..Default::default() };
    let mut held = Vec::new();
    for count in 1..=SNAPSHOTS_AT_ONCE {
        let mut client = process.client().await;
        let (chunks, body) = mpsc::channel(4);
        let call = tokio::spawn(async move { client.snapshot(ReceiverStream::new(body)).await });
        chunks.send(head.clone()).await.unwrap();
        until("it has its place", || received.folders() == count).await;
        held.push((chunks, call));
    }
    let (done, mut ended) = oneshot::channel();
    let frame = snapshot_frame(2, &files.manifest());
    transport.send_snapshot(frame, files.paths(), Box::new(move |result| done.send(result).unwrap()));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut ended).await.is_err(), "it waits");
    assert_eq!(received.folders(), SNAPSHOTS_AT_ONCE);

    let (chunks, call) = held.pop().unwrap();
    chunks.send(SnapshotChunk { head: None, file: 0, data: files.contents[0].clone().into() }).await.unwrap();
    drop(chunks);
    call.await.unwrap().unwrap();
    assert_intact(&files, &received.snapshot().await.1);
    assert_eq!(tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap(), Ok(()));
    assert_intact(&files, &received.snapshot().await.1);
}

#[test]
fn a_verdict_comes_even_if_the_runtime_goes_first() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let handle = runtime.handle().clone();
    let config = TransportConfig::default();
    let transport = GrpcTransport::new(handle, CLUSTER, AddressBook::default(), LocalRegistry::default(), config);
    drop(runtime);
    let (done, ended) = std::sync::mpsc::channel();
    let frame = snapshot_frame(2, &SnapshotManifest::default());
    transport.send_snapshot(frame, Vec::new(), Box::new(move |result| done.send(result).unwrap()));
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Err("the process is stopping".into()));
}
