//! Programs that talk to a cluster: run to their end, or watched while they run. Each has a process group of its own, so
//! that one that is killed takes along what it has started, and none is waited for longer than [`PATIENCE`].

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use braid_loadtest::process::wait_within;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::harness::PATIENCE;

/// Long for a line that should not come, short for a test.
const QUIET: Duration = Duration::from_millis(300);

/// Runs a program to its end, with `input` on its stdin.
#[track_caller]
pub fn output(command: &mut Command, input: &[u8]) -> Output {
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    // Beside waiting: what is larger than a pipe would block both sides.
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let stdout = read(child.stdout.take().expect("stdout is piped"));
    let stderr = read(child.stderr.take().expect("stderr is piped"));
    let ended = wait_within(&mut child, PATIENCE).expect("it can be waited for");
    if ended.is_none() {
        kill_group(&mut child);
    }
    let [stdout, stderr] = [stdout, stderr].map(|reader| reader.join().expect("the reader does not panic"));
    let Some(status) = ended else {
        let [stdout, stderr] = [&stdout, &stderr].map(|said| String::from_utf8_lossy(said));
        panic!("{command:?} has not ended within {PATIENCE:?}; it said:\n{stdout}\n{stderr}");
    };
    writer.join().expect("the writer does not panic").expect("the program reads its input");
    Output { status, stdout, stderr }
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut said = Vec::new();
        from.read_to_end(&mut said).expect("a pipe can be read");
        said
    })
}

/// kill -9 for a child and what it has started. It may have ended.
fn kill_group(child: &mut Child) {
    _ = kill_process_group(pid(child), Signal::KILL);
    _ = child.wait();
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).expect("a child's process id is not 0")
}

/// A program that runs, and the lines it prints.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|why| panic!("{command:?}: {why}"));
        let output = child.stdout.take().expect("stdout is piped");
        let (telling, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if telling.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Its next line.
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    #[track_caller]
    pub fn says(&self, expect: &str) {
        assert_eq!(self.lines.recv_timeout(PATIENCE).as_deref(), Ok(expect));
    }

    #[track_caller]
    pub fn is_silent(&self) {
        assert_eq!(self.lines.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
    }

    /// Fails if it has ended.
    #[track_caller]
    pub fn must_run(&mut self) {
        assert_eq!(self.child.try_wait().expect("it can be asked"), None, "it has ended");
    }

    /// Everything that it still says, and how it ends.
    #[track_caller]
    pub fn end(mut self) -> (Vec<String>, ExitStatus) {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end, and has said {rest:?}"),
            }
        }
        let ended = wait_within(&mut self.child, PATIENCE).expect("it can be waited for");
        let status =
            ended.unwrap_or_else(|| panic!("it has closed its output and does not end, and has said {rest:?}"));
        (rest, status)
    }

    /// Everything that it still says; it ends well.
    #[track_caller]
    pub fn rest(self) -> Vec<String> {
        let (rest, status) = self.end();
        assert!(status.success(), "{status}, it has said {rest:?}");
        rest
    }

    /// kill -9: it gives nothing up.
    pub fn kill(self) {}

    /// Ctrl-C.
    #[must_use]
    pub fn interrupt(self) -> Self {
        kill_process(pid(&self.child), Signal::INT).expect("it can be signalled");
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whoever has been waited for must not be killed: the process id may belong to somebody else.
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_group(&mut self.child);
        }
    }
}
