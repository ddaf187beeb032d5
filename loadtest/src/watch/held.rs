//! Watches that are only there: opened in bulk, and held by a thread while something else is measured.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, bail};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::oneshot;

use super::Shape;
use super::stream::{Target, WatchStream};
use crate::client::Address;

/// Opens `shape.watches` watches on `shape.streams` streams on `shape.connections` connections, one stream after the
/// other; connections take the endpoints in turn. Watch w is on stream w modulo the streams.
pub async fn open(
    endpoints: &[Address],
    shape: Shape,
    target: impl Fn(usize) -> Target,
) -> anyhow::Result<Vec<WatchStream>> {
    let mut channels = Vec::new();
    for connection in 0..shape.connections {
        channels.push(endpoints[connection % endpoints.len()].channel().await?);
    }
    let mut streams = Vec::new();
    for number in 0..shape.streams {
        let targets = (number..shape.watches).step_by(shape.streams).map(&target).collect();
        let channel = channels[number % channels.len()].clone();
        streams.push(WatchStream::open(channel, targets).await.with_context(|| format!("stream {number}"))?);
    }
    Ok(streams)
}

/// Watches of which none may see an event; gone when dropped.
#[derive(Debug)]
pub struct Held {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Held {
    /// Opens them. Blocks until all of them stand.
    pub fn start(
        endpoints: &[Address],
        shape: Shape,
        target: impl Fn(usize) -> Target + Send + 'static,
    ) -> anyhow::Result<Self> {
        let endpoints = endpoints.to_vec();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut streams = open(&endpoints, shape, target).await?;
                ready.send(()).context("nobody waits for the watches")?;
                let mut all: FuturesUnordered<_> = streams.iter_mut().map(WatchStream::next).collect();
                tokio::select! {
                    // Stopped, or its handle dropped.
                    _ = stopped => Ok(()),
                    Some(told) = all.next() => match told {
                        Ok((watch, _)) => bail!("watch {watch} was told something, but nothing happened"),
                        Err(error) => Err(error),
                    },
                }
            })
        });
        // A thread that fails drops its sender; why, comes with the join.
        match is_ready.recv() {
            Ok(()) => Ok(Self { stop, thread }),
            Err(_) => {
                drop(stop);
                join(thread)?;
                bail!("the watches were given up before they stood")
            }
        }
    }

    /// Whether they have ended by themselves: one was told something, or the server ended it.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends them. Fails if one of them was told anything, or has ended before.
    pub fn finish(self) -> anyhow::Result<()> {
        // A receiver that is gone has failed, which the join tells.
        let _ = self.stop.send(());
        join(self.thread)
    }
}

fn join(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().unwrap_or_else(|_| bail!("the thread that holds the watches panicked"))
}
