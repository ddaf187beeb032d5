//! Growth, moves and capacity of clusters that are started here as separate processes.
//!
//! | To | Module |
//! |---|---|
//! | start placement, proxies and stores, and add stores | `cluster` (with CPU shares by `cgroup`) |
//! | load a data set, spread over all regions | `fill` |
//! | keep up a steady load and look at any stretch of it | `foreground` |
//! | see how long puts in one region stand still | `probe` |
//! | wait for balance, count what moved | `balance` |
//! | show throughput at 3, 6, 9 stores | `growth` |
//! | time splits, transfers, moves, a rebalance | `moves` |
//! | show latency and memory as data grows | `capacity` |

pub mod balance;
pub mod capacity;
pub mod cgroup;
pub mod cluster;
pub mod fill;
pub mod foreground;
pub mod growth;
pub mod moves;
pub mod probe;

/// Ends early, with an error, if the user interrupts or the system asks to stop: what was started is cleaned up.
pub async fn unless_interrupted<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = work => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            anyhow::bail!("interrupted")
        }
        _ = terminated.recv() => anyhow::bail!("asked to stop"),
    }
}
