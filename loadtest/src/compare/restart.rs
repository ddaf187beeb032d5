//! How long members take from their start until they serve, with all the data they have.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;

use crate::cluster::Cluster;
use crate::histogram::Latencies;
use crate::report::Report;

/// How long a member may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Kills the first so many members and starts them again at once. The operations of the report are members that answered
/// a linearizable get; the latency is the time from the start of the processes until then.
pub async fn measure(cluster: &mut Cluster, members: usize, keys: u64) -> anyhow::Result<Report> {
    let all = cluster.members.len();
    for member in &mut cluster.members[..members] {
        member.process.kill()?;
    }
    let start = Instant::now();
    for member in &mut cluster.members[..members] {
        member.process.restart()?;
    }
    let ready = cluster.members[..members].iter_mut().map(|member| async move {
        member.ready(tokio::time::Instant::now() + PATIENCE).await?;
        anyhow::Ok(start.elapsed())
    });
    let times = try_join_all(ready).await.with_context(|| format!("a restart of {members} of {all} members"))?;
    let mut latencies = Latencies::new();
    times.iter().for_each(|&time| latencies.record(time));
    let longest = times.into_iter().max().unwrap_or_default().as_secs_f64();
    Ok(Report {
        workload: "restart".to_owned(),
        clients: members,
        keys,
        seconds: longest,
        operations: members as u64,
        operations_per_second: members as f64 / longest,
        latency: latencies.summary(),
        client_cpu_us_per_operation: f64::NAN,
        ..Report::default()
    })
}
