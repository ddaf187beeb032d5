//! Child processes that tests and `compare` run: started with their output in a file, killed hard, paused, continued,
//! started again, and never left behind.
//!
//! Every wait ends: it has a deadline, and it waits for the process itself (a pidfd), not for time to pass.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid};

use crate::random::mix;

/// How to start a process; kept, so that it can be started again in the same way.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What to call it in errors.
    pub name: String,
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables in addition to our own.
    pub env: Vec<(String, String)>,
    /// Our own environment variables that start with one of these are kept from it.
    pub env_hidden_prefixes: Vec<String>,
    /// Its standard output and standard error are added to this file.
    pub log: PathBuf,
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    child: Child,
    /// How it ended, once that is known: its process id may belong to somebody else from then on.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it.
    pub fn start(spec: Spec) -> anyhow::Result<Self> {
        let child = spawn(&spec)?;
        Ok(Self { spec, child, ended: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it was started.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How it ended; none while it runs or is paused.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("cannot ask for {}", self.spec.name))?;
        }
        Ok(self.ended)
    }

    /// kill -9, also of a paused process. Returns when it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.ended()?.is_none() {
            self.signal(Signal::KILL)?;
            self.ended = Some(self.child.wait().with_context(|| format!("cannot wait for {}", self.spec.name))?);
        }
        Ok(())
    }

    /// Asks it to stop (SIGTERM); see `wait`.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Stops it in the middle of whatever it does, memory and connections kept (SIGSTOP). Returns when it stands still.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.raw_pid()), options).with_context(|| format!("cannot wait for {}", self.spec.name))?;
        Ok(())
    }

    /// Lets it go on after `pause`.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        let name = &self.spec.name;
        match wait_within(&mut self.child, within).with_context(|| format!("cannot wait for {name}"))? {
            Some(status) => {
                self.ended = Some(status);
                Ok(status)
            }
            None => bail!("{name} (process {}) has not ended within {within:?}\n{}", self.pid(), self.log_tail(10)),
        }
    }

    /// Starts it again as it was started first. It must have ended.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.ended()?.is_some(), "{} still runs: kill it before it is started again", self.spec.name);
        self.child = spawn(&self.spec)?;
        self.ended = None;
        Ok(())
    }

    /// The last lines it wrote.
    pub fn log_tail(&self, lines: usize) -> String {
        let path = self.spec.log.display();
        let Ok(file) = File::open(&self.spec.log) else { return format!("({path} cannot be read)") };
        let mut tail = VecDeque::with_capacity(lines + 1);
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            tail.push_back(String::from_utf8_lossy(&line).into_owned());
            if tail.len() > lines {
                tail.pop_front();
            }
        }
        format!("last lines of {path}:\n{}", Vec::from(tail).join("\n"))
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        let name = self.spec.name.clone();
        if let Some(status) = self.ended()? {
            bail!("{name} has already ended: {status}\n{}", self.log_tail(10));
        }
        kill_process(self.raw_pid(), signal).with_context(|| format!("cannot signal {name}"))
    }

    fn raw_pid(&self) -> Pid {
        pid_of(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it is gone already, and there is nobody to tell.
        let _ = self.kill();
    }
}

/// Waits until a child has ended. None: it still runs after `within`.
pub fn wait_within(child: &mut Child, within: Duration) -> std::io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pidfd = pidfd_open(pid_of(child), PidfdFlags::empty())?;
    let timeout = Timespec { tv_sec: within.as_secs().cast_signed(), tv_nsec: within.subsec_nanos().into() };
    if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))? == 0 {
        return Ok(None);
    }
    child.wait().map(Some)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).expect("a child's process id is not 0")
}

fn spawn(spec: &Spec) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(&spec.log);
    let log = log.with_context(|| format!("cannot write the log {}", spec.log.display()))?;
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    for (name, _) in std::env::vars_os() {
        let hidden = |prefix: &String| name.to_string_lossy().starts_with(prefix.as_str());
        if spec.env_hidden_prefixes.iter().any(hidden) {
            command.env_remove(name);
        }
    }
    command.envs(spec.env.iter().map(|(name, value)| (name, value)));
    command.spawn().with_context(|| format!("cannot start {} ({})", spec.name, spec.program.display()))
}

/// Ports are handed out below the range that the kernel gives to outgoing connections, which could otherwise take a port
/// between our test and the server's start.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// A TCP port that nobody listens on at 127.0.0.1. No port is given twice by one process, before all others were.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes start at different places, so that they seldom test the same port at the same time.
    let first = mix(u64::from(std::process::id())) % count;
    for _ in 0..count {
        let port = PORTS.start + (first + GIVEN.fetch_add(1, Ordering::Relaxed)) % count;
        let port = u16::try_from(port).expect("below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

#[cfg(test)]
mod tests;
