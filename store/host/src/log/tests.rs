use raft::eraftpb::Entry;

use super::*;

fn entry(index: u64, term: u64, data: &str) -> Entry {
    Entry { index, term, data: data.to_owned().into(), context: vec![2].into(), ..Default::default() }
}

fn write(log: &dyn LogStore, region: u64, ops: Vec<LogOp>) {
    let mut write = LogWrite::default();
    for op in ops {
        write.push(region, op);
    }
    log.write(write, true).unwrap();
}

#[test]
fn entries_and_raft_state_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<Entry> = (6..16).map(|i| entry(i, 5 + i / 10, &"x".repeat(i as usize * 100))).collect();
    let state = RaftState { peer_id: 3, term: 6, vote: 3, commit: 9 };
    {
        let log = EngineLog::open(dir.path(), 1 << 20).unwrap();
        write(&*log, 7, vec![LogOp::Append(entries.clone()), LogOp::State(state)]);
        assert_eq!(log.entries(7, 6, 16, usize::MAX).unwrap(), entries);
    }
    let log = EngineLog::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(log.span(7), Some((6, 15)));
    assert_eq!(log.raft_state(7).unwrap(), Some(state));
    assert_eq!(log.entries(7, 6, 16, usize::MAX).unwrap(), entries);
    assert_eq!(log.entries(7, 8, 16, 1).unwrap(), entries[2..3]);
    assert!(log.entries(7, 3, 8, usize::MAX).is_err());
    assert_eq!(log.span(8), None);
    assert_eq!(log.raft_state(8).unwrap(), None);
}

#[test]
fn an_append_overwrites_the_tail_and_a_clean_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let log = EngineLog::open(dir.path(), 1 << 20).unwrap();
    write(&*log, 1, vec![LogOp::Append((6..10).map(|i| entry(i, 5, "a")).collect())]);
    write(&*log, 1, vec![LogOp::Append(vec![entry(8, 6, "b")])]);
    assert_eq!(log.span(1), Some((6, 8)));
    write(&*log, 1, vec![LogOp::Compact(8)]);
    assert_eq!(log.span(1), Some((8, 8)));
    let state = RaftState { peer_id: 1, term: 9, vote: 0, commit: 100 };
    write(&*log, 1, vec![LogOp::Clean, LogOp::Append(vec![entry(101, 9, "c")]), LogOp::State(state)]);
    assert_eq!(log.span(1), Some((101, 101)));
    assert_eq!(log.raft_state(1).unwrap(), Some(state));
    assert_eq!(log.entries(1, 101, 102, usize::MAX).unwrap()[0].data, "c");
}

#[test]
fn a_thread_that_reads_two_logs_gets_the_entries_of_each() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let logs = dirs.each_ref().map(|dir| EngineLog::open(dir.path(), 1 << 20).unwrap());
    // The same size at the same place of the same file.
    for (log, data) in logs.iter().zip(["left", "rite"]) {
        write(&**log, 1, vec![LogOp::Append(vec![entry(6, 5, data)])]);
    }
    for _ in 0..2 {
        for (log, data) in logs.iter().zip(["left", "rite"]) {
            assert_eq!(log.entries(1, 6, 7, usize::MAX).unwrap()[0].data, data);
        }
    }
}
