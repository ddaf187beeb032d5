//! Raft snapshots as files: making them for followers that the log cannot reach any more, and taking them in.
//!
//! **Making.** One RocksDB snapshot holds the apply state, the region and the data of one instant, because they are
//! written in one batch; so a helper thread can make a raft snapshot without stopping anybody. The data goes to SST
//! files, one or more for each of the machine's data ranges.
//!
//! **Taking in.** Four steps, each durable before the next; after a crash the start-up finds how far it came and does
//! the rest again, which changes nothing where it was done before:
//!
//! | step                  | after it, a crash finds                      | redo                               |
//! |-----------------------|----------------------------------------------|------------------------------------|
//! | [`write_intent`]      | "applying"; log of the old life              | clean the log, then steps 3 and 4  |
//! | log cleaned (worker)  | "applying"; log at the snapshot              | steps 3 and 4                      |
//! | [`replace_data`]      | "applying"; data there, files still there    | steps 3 and 4                      |
//! | [`write_normal`]      | "normal"                                     | files removed                      |

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use braid_proto::pb::{Peer, Region, SnapshotFile, SnapshotManifest};
use crossbeam_channel::Receiver;
use prost::Message as _;
use raft::eraftpb::Snapshot;
use rocksdb::{DB, IngestExternalFileOptions, Options, ReadOptions, SstFileWriter, WriteBatch, WriteOptions};

use crate::absorb::Absorbed;
use crate::apply::{ApplyTask, Delegate};
use crate::change::conf_state;
use crate::error::fatal;
use crate::host::Core;
use crate::mail::Note;
use crate::meta::{ApplyState, CF_HOST, Key, PeerState, RegionState};
use crate::pace::Pace;
use crate::peer::Install;
use crate::storage::SnapshotFiles;
use crate::{DataRange, PeerHandle, RegionMachine, StateMachine};

/// Raft snapshots of a host that are made or on their way at once.
const SNAPSHOTS_MAX: usize = 2;
/// Bytes of a file that go to the disk at once: the raft log is on the same one, and its next write waits behind them.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes after which the next file begins.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Work of the helper threads.
pub(crate) enum HelperTask {
    Generate {
        region: u64,
        peer: u64,
        to: u64,
        permit: Permit,
    },
    Install(Box<Install>),
    /// Delete what a destroyed peer held.
    Clear {
        region: Box<Region>,
        own: Peer,
    },
    Stop,
}

/// One of the raft snapshots that may be made or on their way; given back when dropped.
pub struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// A permit, if there is one left.
    pub(crate) fn take(running: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = running.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < SNAPSHOTS_MAX).then_some(n + 1));
        taken.is_ok().then(|| Self(Arc::clone(running)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A helper thread's body.
pub(crate) fn run(core: &Arc<Core>, tasks: &Receiver<HelperTask>) {
    while let Ok(task) = tasks.recv() {
        match task {
            HelperTask::Stop => return,
            HelperTask::Generate { region, peer, to, permit } => {
                let result = generate(core, region, permit);
                core.note(region, Note::Generated { region, peer, to, result });
            }
            HelperTask::Install(install) => take_in(core, *install),
            HelperTask::Clear { region, own } => crate::destroy::clear_away(core, &region, own),
        }
    }
}

fn generate(core: &Core, region: u64, permit: Permit) -> Result<(Box<Snapshot>, SnapshotFiles), String> {
    let number = core.snapshot_number.fetch_add(1, Ordering::Relaxed);
    let dir = core.snap_dir.join(format!("out-r{region}-{number}"));
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut files = SnapshotFiles { dir: dir.clone(), files: Vec::new(), _permit: permit };
    let engine = core.db.snapshot();
    let read = |key: Key| engine.get_cf(core.cf_host(), key.encode()).map_err(|error| error.to_string());
    let state = read(Key::RegionState(region))?.ok_or("the region is gone")?;
    let state = RegionState::decode(&*state).map_err(|error| error.to_string())?;
    if state.state() != PeerState::Normal {
        return Err("the region's own data is not complete".to_owned());
    }
    if state.frozen.is_some() {
        return Err("the region is frozen".to_owned());
    }
    let apply = read(Key::ApplyState(region))?.and_then(|bytes| ApplyState::decode(&bytes));
    let apply = apply.ok_or("the apply state cannot be read")?;
    let region = state.region.ok_or("the region state is empty")?;
    let mut manifest =
        SnapshotManifest { region: Some(region.clone()), absorbed: state.absorbed, ..Default::default() };
    for range in core.machine.data_ranges(&region) {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_iterate_lower_bound(range.start.clone());
        if !range.end.is_empty() {
            options.set_iterate_upper_bound(range.end.clone());
        }
        let cf = core.db.cf_handle(range.cf).ok_or_else(|| format!("no column family {}", range.cf))?;
        let mut rows = engine.raw_iterator_cf_opt(cf, options);
        rows.seek_to_first();
        while rows.valid() {
            let path = dir.join(format!("{}.sst", files.files.len()));
            let bytes = write_file(&path, &mut rows, &core.snapshot_pace)?;
            let crc32 = checksum(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            manifest.files.push(SnapshotFile { cf: range.cf.to_owned(), bytes, crc32 });
            files.files.push(path);
        }
        rows.status().map_err(|error| error.to_string())?;
    }
    manifest.mark = core.machine.snapshot_mark();
    let mut snapshot = Snapshot { data: manifest.encode_to_vec().into(), ..Snapshot::default() };
    let meta = snapshot.mut_metadata();
    meta.index = apply.applied_index;
    meta.term = apply.applied_term;
    meta.set_conf_state(conf_state(&region.peers));
    Ok((Box::new(snapshot), files))
}

/// Writes rows up to a file's size, at the pace of the host; leaves the iterator on the first row of the next file.
fn write_file(path: &Path, rows: &mut rocksdb::DBRawIterator<'_>, pace: &Pace) -> Result<u64, String> {
    let mut options = Options::default();
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_bytes_per_sync(PIECE_BYTES);
    let mut file = SstFileWriter::create(&options);
    let wrong = |error: rocksdb::Error| format!("{}: {error}", path.display());
    file.open(path).map_err(wrong)?;
    let mut paid = 0;
    while let Some((key, value)) = rows.item() {
        file.put(key, value).map_err(wrong)?;
        rows.next();
        let bytes = file.file_size();
        if bytes >= paid + PIECE_BYTES {
            if !pace.take_blocking((bytes - paid) as usize) {
                return Err("the host stops".to_owned());
            }
            paid = bytes;
        }
        if bytes >= FILE_BYTES_MAX {
            break;
        }
    }
    file.finish().map_err(wrong)?;
    drop(file);
    fs::metadata(path).map(|meta| meta.len()).map_err(|error| format!("{}: {error}", path.display()))
}

/// CRC-32 of a file's bytes.
pub fn checksum(path: &Path) -> std::io::Result<u32> {
    let mut file = fs::File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Makes what is in `dir` survive a power failure: the names, not the bytes.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Step 1: the decision to replace the region's data, durable; with it end peers of regions that it has taken in.
pub(crate) fn write_intent(core: &Core, install: &Install, ended: &[Absorbed]) -> Result<(), String> {
    let dir = install.dir.0.as_ref().expect("the folder is held until it is installed");
    let name = dir.strip_prefix(&core.snap_dir).ok().and_then(Path::to_str);
    let name = name.ok_or_else(|| format!("{} is not below {}", dir.display(), core.snap_dir.display()))?;
    let named = |error: std::io::Error| format!("{}: {error}", dir.display());
    sync_dir(dir).map_err(named)?;
    sync_dir(&core.snap_dir).map_err(named)?;
    put_intent(&core.db, install, name, ended).map_err(|error| error.to_string())
}

/// Writes the intent; `name` is the folder below `snap/`.
pub(crate) fn put_intent(db: &DB, install: &Install, name: &str, ended: &[Absorbed]) -> Result<(), rocksdb::Error> {
    let id = install.region.id;
    let cf = db.cf_handle(CF_HOST).expect("opened with the database");
    let state = RegionState {
        region: Some(install.region.clone()),
        state: PeerState::Applying as i32,
        snapshot_dir: name.to_owned(),
        manifest: Some(install.manifest.clone()),
        replaced: install.replaced.clone(),
        ..RegionState::default()
    };
    let mut batch = WriteBatch::new();
    for Absorbed { region, own, rest } in ended {
        let mut tombstone = RegionState::tombstone((**region).clone(), *own, false);
        tombstone.replaced.clone_from(rest);
        batch.put_cf(cf, Key::RegionState(region.id).encode(), tombstone.encode_to_vec());
        batch.delete_cf(cf, Key::ApplyState(region.id).encode());
    }
    batch.put_cf(cf, Key::RegionState(id).encode(), state.encode_to_vec());
    batch.put_cf(cf, Key::ApplyState(id).encode(), install.apply.encode());
    batch.put_cf(cf, Key::SnapshotRaftState(id).encode(), install.raft_state.encode());
    write_synced(db, batch)
}

fn write_synced(db: &DB, batch: WriteBatch) -> Result<(), rocksdb::Error> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options)
}

/// Steps 3 and 4, and the peer's way back to work.
fn take_in(core: &Arc<Core>, install: Install) {
    let Install { handle, region, replaced, manifest, dir, apply, .. } = install;
    let dir = dir.take();
    let id = region.id;
    handle.0.replacements.fetch_add(1, Ordering::SeqCst);
    if let Err(why) = replace_data(&core.db, &*core.machine, replaced.as_ref(), &region, &manifest, &dir) {
        fatal(format_args!("the raft snapshot of r{id} cannot be taken in: {why}"));
    }
    // CRASH: data is complete, the region still says "applying". Safe: the files are still there, steps 3 and 4 again.
    if let Err(error) = write_normal(&core.db, &region, &manifest.absorbed) {
        fatal(format_args!("the raft snapshot of r{id} cannot be finished: {error}"));
    }
    if let Err(error) = fs::remove_dir_all(&dir) {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove an installed snapshot; the next start will");
    }
    let machine = reopen(core, &handle, region, manifest.absorbed, apply);
    handle.0.replacements.fetch_add(1, Ordering::SeqCst);
    core.note(id, Note::Installed { region: id, peer: handle.peer().id, machine, apply });
}

/// Step 3: deletes what the region held and holds, takes the files in, and has the machine make what follows from them. May
/// be repeated. What it has written is durable with the synced write of step 4.
pub(crate) fn replace_data(
    db: &DB,
    machine: &dyn StateMachine,
    replaced: Option<&Region>,
    region: &Region,
    manifest: &SnapshotManifest,
    dir: &Path,
) -> Result<(), String> {
    machine.on_snapshot_mark(manifest.mark)?;
    for old in replaced.into_iter().chain([region]) {
        machine.before_clear(db, old)?;
        for range in machine.data_ranges(old) {
            clear(db, &range)?;
        }
    }
    let links = dir.join("links");
    let named = |error: std::io::Error| format!("{}: {error}", dir.display());
    if links.exists() {
        fs::remove_dir_all(&links).map_err(named)?;
    }
    fs::create_dir(&links).map_err(named)?;
    for (cf, numbers) in by_column_family(manifest) {
        let handle = db.cf_handle(cf).ok_or_else(|| format!("no column family {cf}"))?;
        let mut paths: Vec<PathBuf> = Vec::new();
        for number in numbers {
            // The engine moves what it takes in; the original stays for a repetition.
            let link = links.join(format!("{number}.sst"));
            fs::hard_link(dir.join(format!("{number}.sst")), &link).map_err(named)?;
            paths.push(link);
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        db.ingest_external_file_cf_opts(handle, &options, paths).map_err(|error| error.to_string())?;
    }
    fs::remove_dir_all(&links).map_err(named)?;
    // CRASH: the files are in, what follows from them is not. Safe: the region still says "applying", step 3 again.
    machine.on_snapshot(db, region)
}

fn by_column_family(manifest: &SnapshotManifest) -> Vec<(&str, Vec<usize>)> {
    let mut families: Vec<(&str, Vec<usize>)> = Vec::new();
    for (number, file) in manifest.files.iter().enumerate() {
        match families.iter_mut().find(|(cf, _)| *cf == file.cf) {
            Some((_, numbers)) => numbers.push(number),
            None => families.push((&file.cf, vec![number])),
        }
    }
    families
}

/// Deletes a range, if anything is in it. Tombstones, not files: readers of older engine snapshots keep what they see.
pub(crate) fn clear(db: &DB, range: &DataRange) -> Result<(), String> {
    let cf = db.cf_handle(range.cf).ok_or_else(|| format!("no column family {}", range.cf))?;
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(range.start.clone());
    if !range.end.is_empty() {
        options.set_iterate_upper_bound(range.end.clone());
    }
    let mut rows = db.raw_iterator_cf_opt(cf, options);
    rows.seek_to_last();
    rows.status().map_err(|error| error.to_string())?;
    let Some(last) = rows.key() else { return Ok(()) };
    let mut end = last.to_vec();
    end.push(0);
    let mut batch = WriteBatch::new();
    batch.delete_range_cf(cf, range.start.clone(), end);
    db.write(batch).map_err(|error| error.to_string())
}

/// Step 4: the region takes part again, durable.
pub(crate) fn write_normal(db: &DB, region: &Region, absorbed: &[u64]) -> Result<(), rocksdb::Error> {
    let cf = db.cf_handle(CF_HOST).expect("opened with the database");
    let mut batch = WriteBatch::new();
    let state = RegionState::normal(region.clone(), absorbed);
    batch.put_cf(cf, Key::RegionState(region.id).encode(), state.encode_to_vec());
    batch.delete_cf(cf, Key::SnapshotRaftState(region.id).encode());
    write_synced(db, batch)
}

/// Opens the machine on installed data. The apply thread learns of it before the worker does, so before anything else of
/// the region is handed over.
fn reopen(
    core: &Core,
    handle: &PeerHandle,
    region: Region,
    absorbed: Vec<u64>,
    apply: ApplyState,
) -> Arc<dyn RegionMachine> {
    let shared = &handle.0;
    {
        let mut table = core.table.lock();
        shared.region.store(Arc::new(region.clone()));
        // No raft snapshot is made of a frozen region.
        shared.frozen.store(None);
        shared.set_absorbed(absorbed);
        let id = region.id;
        table.put(region, handle.clone());
        table.release(id);
    }
    core.table_changed.notify_all();
    shared.applied_index.set(apply.applied_index);
    shared.applied_term.store(apply.applied_term, Ordering::Release);
    core.refresh_neighbours();
    let machine = core.machine.open_region(Arc::clone(&core.db), handle.clone());
    let delegate = Delegate { handle: handle.clone(), machine: Arc::clone(&machine), state: apply };
    core.apply_later(ApplyTask::Register(Box::new(delegate)));
    machine
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_file_is_written_no_faster_than_it_may_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let db = DB::open_default(dir.path().join("db")).expect("a database");
        // Bytes that do not pack.
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        for key in 0..4_096_u32 {
            let value: Vec<u8> = (0..1_024).map(|_| random()).collect();
            db.put(key.to_be_bytes(), value).expect("written");
        }
        let mut rows = db.raw_iterator();
        rows.seek_to_first();
        let begun = Instant::now();
        let bytes = write_file(&dir.path().join("0.sst"), &mut rows, &Pace::new(8 << 20)).expect("a file");
        assert!(bytes > 4 << 20 && !rows.valid());
        // The first of four pieces goes at once, and nothing is paid for after the last.
        assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    }
}
