//! Sends one raft snapshot: the frame, then its files in chunks, at the pace of the process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use braid_proto::pb::raft_client::RaftClient;
use braid_proto::pb::{Domain, RaftFrame, SnapshotChunk};
use bytes::{Bytes, BytesMut};
use metrics::counter;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::receive::{self, Intake};
use super::{AddressBook, LocalRegistry, MESSAGE_BYTES_MAX, endpoint, explain, name};
use crate::pace::Pace;

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 512 << 10;
/// A receiver that takes no chunk for this long is given up. Longer than it may wait for a free place.
const STALL: Duration = Duration::from_secs(45);
/// How long the receiver may take over the last chunk: it syncs all files.
const FINISH: Duration = Duration::from_secs(120);

const _: () = assert!(STALL.as_secs() > receive::PLACE_TIMEOUT.as_secs());

/// Tells how a snapshot ended exactly once, also if its task is thrown away with the runtime.
pub(super) struct Outcome(Option<Done>);

type Done = Box<dyn FnOnce(Result<(), String>) + Send>;

impl Outcome {
    pub(super) fn new(done: Done) -> Self {
        Outcome(Some(done))
    }

    pub(super) fn is(mut self, result: Result<(), String>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err("the process is stopping".into()));
        }
    }
}

pub(super) struct SendSnapshot {
    pub(super) frame: RaftFrame,
    pub(super) files: Vec<PathBuf>,
    pub(super) book: AddressBook,
    pub(super) local: LocalRegistry,
    pub(super) pace: Arc<Pace>,
}

impl SendSnapshot {
    pub(super) async fn run(self) -> Result<(), String> {
        let domain = Domain::try_from(self.frame.domain).map_err(|error| error.to_string())?;
        let to = self.frame.to_host;
        match self.local.get(domain, to) {
            Some(inbound) => {
                let mut intake = Intake::start(self.frame, inbound).map_err(|status| status.message().to_owned())?;
                for (index, path) in self.files.iter().enumerate() {
                    let mut file = Reader::open(path).await?;
                    while let Some(data) = file.next().await? {
                        self.pace.take(data.len()).await;
                        if !intake.take(index as u32, data).await {
                            break;
                        }
                    }
                }
                intake.finish().await.map_err(|status| status.message().to_owned())
            }
            None => {
                let address = self
                    .book
                    .get(domain, to)
                    .ok_or_else(|| format!("the address of {} is unknown", name(domain, to)))?;
                self.over_the_network(&address).await
            }
        }
    }

    async fn over_the_network(self, address: &str) -> Result<(), String> {
        let channel = endpoint(address)?.connect().await.map_err(|error| explain(&error))?;
        let (chunks, body) = mpsc::channel(2);
        let mut client = RaftClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let call = client.snapshot(ReceiverStream::new(body));
        tokio::pin!(call);
        // The receiver's word counts: it knows best why it stopped taking chunks.
        let fed = tokio::select! {
            answer = &mut call => return judge(answer),
            fed = self.feed(chunks) => fed,
        };
        match fed {
            Ok(()) => match timeout(FINISH, call).await {
                Ok(answer) => judge(answer),
                Err(_) => Err(format!("{address} did not finish the snapshot in {FINISH:?}")),
            },
            Err(why) => Err(why),
        }
    }

    /// Puts the frame and all files into `chunks`, and closes it at their end. After an error here the receiver may see
    /// an end as well; it compares what came with the manifest and refuses.
    async fn feed(self, chunks: mpsc::Sender<SnapshotChunk>) -> Result<(), String> {
        put(&chunks, SnapshotChunk { head: Some(self.frame), ..Default::default() }).await?;
        for (index, path) in self.files.iter().enumerate() {
            let mut file = Reader::open(path).await?;
            while let Some(data) = file.next().await? {
                self.pace.take(data.len()).await;
                counter!("braid_snapshot_sent_bytes_total").increment(data.len() as u64);
                put(&chunks, SnapshotChunk { head: None, file: index as u32, data }).await?;
            }
        }
        Ok(())
    }
}

async fn put(chunks: &mpsc::Sender<SnapshotChunk>, chunk: SnapshotChunk) -> Result<(), String> {
    match timeout(STALL, chunks.send(chunk)).await {
        Ok(Ok(())) => Ok(()),
        // The call has ended; it is polled beside this and says why.
        Ok(Err(_)) => std::future::pending().await,
        Err(_) => Err(format!("the receiver took no data for {STALL:?}")),
    }
}

fn judge<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<(), String> {
    answer.map(|_| ()).map_err(|status| match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    })
}

/// Reads a file in chunks.
struct Reader {
    file: File,
    path: String,
}

impl Reader {
    async fn open(path: &Path) -> Result<Self, String> {
        let path_text = path.display().to_string();
        let file = File::open(path).await.map_err(|error| format!("{path_text}: {error}"))?;
        Ok(Reader { file, path: path_text })
    }

    /// The next full chunk, the shorter rest, or none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let read = self.file.read_buf(&mut chunk).await.map_err(|error| format!("{}: {error}", self.path))?;
            if read == 0 {
                break;
            }
        }
        Ok((!chunk.is_empty()).then(|| chunk.freeze()))
    }
}
