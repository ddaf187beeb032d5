//! Takes one raft snapshot: its files go to a folder of their own, and to the host only if all of them are right.
//!
//! 1. The first frame's message says in its manifest which files come, how long they are and their sums.
//! 2. A thread writes them, at the host's pace; the sender waits meanwhile. A byte too many ends it at once, so a sender
//!    cannot fill the disk beyond its word.
//! 3. At the end sizes and sums are compared, files and folder synced, and the folder given to the host.
//! 4. On any error, and if the sender goes away before the end, the folder is removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use braid_proto::pb::{RaftFrame, SnapshotFile, SnapshotManifest};
use bytes::Bytes;
use metrics::counter;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::Inbound;
use crate::pace::Pace;

/// How long a snapshot waits for one of the places of this process.
pub(super) const PLACE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a file that are written before they are synced: the raft log is on the same disk, and its next write waits behind
/// what the disk is given at once.
const UNSYNCED_BYTES_MAX: u64 = 1 << 20;
/// Chunks between the connection and the thread that writes.
const CHUNKS_WAITING: usize = 4;

/// A snapshot on its way to the disk. Dropping it before [`Intake::finish`] removes what has come.
pub(super) struct Intake {
    chunks: mpsc::Sender<Step>,
    writer: JoinHandle<Result<(), Status>>,
    /// Of the host.
    pace: Arc<Pace>,
}

enum Step {
    Chunk { file: u32, data: Bytes },
    End,
}

impl Intake {
    /// Reads the manifest and makes the folder. Must be called inside a tokio runtime.
    pub(super) fn start(frame: RaftFrame, inbound: Arc<dyn Inbound>) -> Result<Self, Status> {
        let manifest = manifest(&frame)?;
        let (chunks, mut steps) = mpsc::channel(CHUNKS_WAITING);
        let pace = inbound.snapshot_pace();
        let writer = tokio::task::spawn_blocking(move || {
            let mut folder = Folder::new(inbound.snapshot_dir(), manifest.files).map_err(failed)?;
            loop {
                match steps.blocking_recv() {
                    Some(Step::Chunk { file, data }) => folder.write(file as usize, &data)?,
                    Some(Step::End) => break,
                    None => return Err(Status::aborted("the sender went away in the middle of the snapshot")),
                }
            }
            inbound.receive_snapshot(frame, folder.finish()?);
            Ok(())
        });
        Ok(Intake { chunks, writer, pace })
    }

    /// Queues bytes of a file when their turn has come. False: writing has failed, and [`Intake::finish`] says why.
    pub(super) async fn take(&mut self, file: u32, data: Bytes) -> bool {
        self.pace.take(data.len()).await;
        counter!("braid_snapshot_received_bytes_total").increment(data.len() as u64);
        self.chunks.send(Step::Chunk { file, data }).await.is_ok()
    }

    /// All bytes were taken: checks, syncs and hands over.
    pub(super) async fn finish(self) -> Result<(), Status> {
        // If the writer is gone already its result says why.
        let _ = self.chunks.send(Step::End).await;
        self.writer.await.map_err(|error| Status::internal(format!("receiving the snapshot failed: {error}")))?
    }
}

/// What the only message of the frame says comes.
fn manifest(frame: &RaftFrame) -> Result<SnapshotManifest, Status> {
    let [message] = &frame.messages[..] else {
        return Err(Status::invalid_argument(format!("a snapshot has one message, not {}", frame.messages.len())));
    };
    let raft = eraftpb::Message::parse_from_bytes(&message.message)
        .map_err(|error| Status::invalid_argument(format!("the snapshot's raft message is damaged: {error}")))?;
    if raft.get_msg_type() != eraftpb::MessageType::MsgSnapshot {
        return Err(Status::invalid_argument(format!("{:?} is no snapshot", raft.get_msg_type())));
    }
    SnapshotManifest::decode(raft.get_snapshot().get_data())
        .map_err(|error| Status::invalid_argument(format!("the snapshot's manifest is damaged: {error}")))
}

fn failed(error: io::Error) -> Status {
    Status::internal(format!("the snapshot cannot be stored: {error}"))
}

/// The folder that a snapshot's files are written to, in manifest order.
struct Folder {
    /// None: given away.
    path: Option<PathBuf>,
    files: Vec<SnapshotFile>,
    /// Index of the open file; `files.len()`: all are complete.
    current: usize,
    open: Option<Open>,
}

struct Open {
    file: File,
    bytes: u64,
    /// Of them not synced yet.
    unsynced: u64,
    sum: crc32fast::Hasher,
}

impl Folder {
    fn new(parent: &Path, files: Vec<SnapshotFile>) -> io::Result<Self> {
        /// Tells folders of one process apart; what an earlier process left under the name is skipped.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(parent)?;
        loop {
            let path = parent.join(format!("recv-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Folder { path: Some(path), files, current: 0, open: None }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self, index: usize, data: &[u8]) -> Result<(), Status> {
        if index >= self.files.len() {
            return Err(Status::invalid_argument(format!(
                "bytes for file {index}; the manifest has {} files",
                self.files.len()
            )));
        }
        if index < self.current {
            return Err(Status::invalid_argument(format!("bytes for file {index} after file {}", self.current)));
        }
        while self.current < index {
            self.complete()?;
        }
        let expected = self.files[index].bytes;
        let open = self.open().map_err(failed)?;
        open.bytes += data.len() as u64;
        if open.bytes > expected {
            return Err(Status::invalid_argument(format!("file {index} is longer than its {expected} bytes")));
        }
        open.sum.update(data);
        open.file.write_all(data).map_err(failed)?;
        open.unsynced += data.len() as u64;
        if open.unsynced >= UNSYNCED_BYTES_MAX {
            open.file.sync_data().map_err(failed)?;
            open.unsynced = 0;
        }
        Ok(())
    }

    /// The current file, created if nothing was written to it yet.
    fn open(&mut self) -> io::Result<&mut Open> {
        let path = self.path.as_ref().map(|path| path.join(format!("{}.sst", self.current)));
        let path = path.ok_or_else(|| io::Error::other("the folder was given away"))?;
        match &mut self.open {
            Some(open) => Ok(open),
            closed => Ok(closed.insert(Open {
                file: File::options().write(true).create_new(true).open(path)?,
                bytes: 0,
                unsynced: 0,
                sum: crc32fast::Hasher::new(),
            })),
        }
    }

    /// Checks and syncs the current file and goes on to the next.
    fn complete(&mut self) -> Result<(), Status> {
        self.open().map_err(failed)?;
        let Some(open) = self.open.take() else { return Ok(()) };
        let (index, expected) = (self.current, &self.files[self.current]);
        if open.bytes != expected.bytes {
            return Err(Status::data_loss(format!("file {index} has {} of {} bytes", open.bytes, expected.bytes)));
        }
        let sum = open.sum.finalize();
        if sum != expected.crc32 {
            return Err(Status::data_loss(format!(
                "file {index} has sum {sum:08x}, the manifest says {:08x}",
                expected.crc32
            )));
        }
        open.file.sync_all().map_err(failed)?;
        self.current += 1;
        Ok(())
    }

    /// Checks and syncs the rest and gives the folder away.
    fn finish(mut self) -> Result<PathBuf, Status> {
        while self.current < self.files.len() {
            self.complete()?;
        }
        let path = self.path.take().ok_or_else(|| Status::internal("the folder was given away twice"))?;
        let synced = sync_folder(&path).and_then(|()| path.parent().map_or(Ok(()), sync_folder));
        if let Err(error) = synced {
            self.path = Some(path);
            return Err(failed(error));
        }
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(path = %path.display(), %error, "the folder of a failed snapshot stays behind");
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
