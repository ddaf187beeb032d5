//! The processes that are broken: members that were started here, or those of a running cluster, known by process id.
//!
//! A member of a running cluster can be paused as it is. To be killed it needs a command that starts it again; the process
//! started so belongs to the cluster and outlives this program.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use braid_proto::etcd::etcdserverpb::RangeRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::time::{Instant, sleep, timeout};

use super::Fault;
use crate::client::Address;
use crate::cluster::Cluster;

/// How long a process may take to end.
const END: Duration = Duration::from_secs(60);
/// How long a member may take to answer again.
const READY: Duration = Duration::from_secs(90);

/// All members that can be broken.
#[derive(Debug)]
pub enum Targets {
    /// Started here.
    Own(Cluster),
    /// Of a running cluster; none if nothing is known of its processes.
    Running(Vec<RunningMember>),
}

/// A member of a running cluster.
#[derive(Debug)]
pub struct RunningMember {
    /// Where it serves.
    pub endpoint: Address,
    /// Its process.
    pid: Pid,
    /// The shell command that starts it again, in the foreground.
    command: Option<String>,
    /// The process, if it was started here: to be waited for after it was killed.
    child: Option<Child>,
}

impl RunningMember {
    /// A member by its process id, which must exist.
    pub fn new(endpoint: Address, pid: u32, command: Option<String>) -> anyhow::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = raw.with_context(|| format!("{pid} is no process id"))?;
        pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("there is no process {pid}"))?;
        Ok(Self { endpoint, pid, command, child: None })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("cannot signal process {}", self.pid))
    }

    /// Signals it and waits until it is gone.
    fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let pidfd = pidfd_open(self.pid, PidfdFlags::empty())
            .with_context(|| format!("process {} has ended by itself", self.pid))?;
        self.signal(signal)?;
        let limit = Timespec { tv_sec: END.as_secs().cast_signed(), tv_nsec: 0 };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        ensure!(poll(&mut fds, Some(&limit))? > 0, "process {} has not ended within {END:?}", self.pid);
        if let Some(mut child) = self.child.take() {
            child.wait().context("cannot wait for a member")?;
        }
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let Some(command) = &self.command else { bail!("there is no command that starts {} again", self.endpoint) };
        let mut shell = Command::new("sh");
        // In a group of its own: what ends this program must not end the cluster's member.
        shell.arg("-c").arg(format!("exec {command}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = shell.process_group(0).spawn().with_context(|| format!("cannot start {command:?}"))?;
        let raw = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        self.pid = raw.context("a process without an id")?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it answers a linearizable get.
    async fn ready(&mut self) -> anyhow::Result<()> {
        const ATTEMPT: Duration = Duration::from_secs(2);
        const PAUSE: Duration = Duration::from_millis(50);
        let mut kv = self.endpoint.connect_lazy();
        let deadline = Instant::now() + READY;
        loop {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("it has ended at once ({status}): its command must stay in the foreground");
            }
            let request = RangeRequest { key: (&b"ready"[..]).into(), ..RangeRequest::default() };
            let why = match timeout(ATTEMPT, kv.range(request)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) => status.message().to_owned(),
                Err(_) => format!("no answer within {ATTEMPT:?}"),
            };
            ensure!(Instant::now() < deadline, "{}: {why}", self.endpoint);
            sleep(PAUSE).await;
        }
    }
}

impl Targets {
    /// Members that can be broken.
    pub fn count(&self) -> usize {
        match self {
            Self::Own(cluster) => cluster.members.len(),
            Self::Running(members) => members.len(),
        }
    }

    /// Why a fault cannot be dealt to processes, if it cannot.
    pub fn lacks(&self, fault: Fault) -> Option<String> {
        match (self, fault) {
            (_, Fault::Split | Fault::TransferLeader | Fault::MovePeer) | (Self::Own(_), _) => None,
            (Self::Running(members), _) if members.is_empty() => {
                Some("give the members' process ids with --pids, in the order of --endpoints".into())
            }
            (Self::Running(_), Fault::Pause) => None,
            (Self::Running(members), Fault::Kill | Fault::Restart) => {
                let startable = members.iter().all(|member| member.command.is_some());
                (!startable).then(|| "give the commands that start the members with --restart-command, one each".into())
            }
        }
    }

    /// What a member is called.
    pub fn name(&self, number: usize) -> String {
        match self {
            Self::Own(cluster) => cluster.members[number].name.clone(),
            Self::Running(members) => members[number].endpoint.to_string(),
        }
    }

    /// kill -9; returns when it is gone.
    pub fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Own(cluster) => cluster.members[number].process.kill(),
            Self::Running(members) => members[number].end(Signal::KILL),
        }
    }

    /// Asks it to stop; returns when it is gone.
    pub fn stop(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Own(cluster) => {
                let process = &mut cluster.members[number].process;
                process.terminate()?;
                process.wait(END).map(drop)
            }
            Self::Running(members) => members[number].end(Signal::TERM),
        }
    }

    /// Starts it again.
    pub fn start(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Own(cluster) => cluster.members[number].process.restart(),
            Self::Running(members) => members[number].start(),
        }
    }

    /// Makes it stand still.
    pub fn pause(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Own(cluster) => cluster.members[number].process.pause(),
            Self::Running(members) => members[number].signal(Signal::STOP),
        }
    }

    /// Lets it go on.
    pub fn resume(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Own(cluster) => cluster.members[number].process.resume(),
            Self::Running(members) => members[number].signal(Signal::CONT),
        }
    }

    /// Waits until it answers a linearizable get.
    pub async fn ready(&mut self, number: usize) -> anyhow::Result<()> {
        let name = self.name(number);
        let ready = match self {
            Self::Own(cluster) => cluster.members[number].ready(Instant::now() + READY).await,
            Self::Running(members) => members[number].ready().await,
        };
        ready.with_context(|| format!("{name} does not come back"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
    }

    fn member(pid: u32, command: Option<&str>) -> RunningMember {
        RunningMember::new("127.0.0.1:1".parse().unwrap(), pid, command.map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_running_process_is_paused_killed_and_started_by_its_command() {
        let mut outside = sleeper();
        let mut member = member(outside.id(), Some("sleep 600"));
        member.signal(Signal::STOP).unwrap();
        member.signal(Signal::CONT).unwrap();
        let reaper = std::thread::spawn(move || outside.wait().unwrap());
        member.end(Signal::KILL).unwrap();
        assert!(!reaper.join().unwrap().success());
        member.start().unwrap();
        member.end(Signal::TERM).unwrap();
        assert!(member.child.is_none());
    }

    #[test]
    fn what_is_missing_for_a_fault_is_said() {
        let none = Targets::Running(Vec::new());
        assert!(none.lacks(Fault::Pause).unwrap().contains("--pids"));
        assert_eq!(none.lacks(Fault::Split), None);
        let own = std::process::id();
        let without = Targets::Running(vec![member(own, None)]);
        assert!(without.lacks(Fault::Kill).unwrap().contains("--restart-command"));
        assert_eq!(without.lacks(Fault::Pause), None);
        assert_eq!(Targets::Running(vec![member(own, Some("true"))]).lacks(Fault::Restart), None);
        let gone = RunningMember::new("127.0.0.1:1".parse().unwrap(), 4_000_000, None);
        assert!(gone.unwrap_err().to_string().contains("no process"));
    }
}
