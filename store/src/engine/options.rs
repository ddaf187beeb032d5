//! How the column families are set up, and where a region's data lies in them.

use braid_host::DataRange;
use braid_proto::pb::Region;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DataBlockIndexType, Options, SliceTransform,
};

use super::boundary::Boundary;
use super::key::{self, ATTACHED, EVENTS, HISTORY, LATEST, LEASES, LOCKS};

/// Bits of bloom filter for each key: about one false positive in a hundred lookups of an absent key.
const BLOOM_BITS: f64 = 10.0;
/// Block of live records. A point read unpacks a whole block; smaller ones make the index larger.
const LATEST_BLOCK_BYTES: usize = 4 << 10;
/// Live records for each slot of the hash index that a block has beside its sorted keys, for point reads.
const LATEST_HASH_RATIO: f64 = 0.75;
/// Block of rows that are read in runs.
const RUN_BLOCK_BYTES: usize = 16 << 10;
/// Files of history and events: small, so that a pass over them can be made in small steps.
const HISTORY_FILE_BYTES: u64 = 16 << 20;
/// Part of a memtable that a bloom filter in front of it takes.
const MEMTABLE_BLOOM_RATIO: f64 = 0.05;
/// Deletes among so many neighbouring rows of a new file that call for its compaction: a scan over keys that were deleted
/// steps over every one of them until then.
const DELETES_COMPACTED: (usize, usize) = (4_096, 2_048);
/// Files in level 0 at which RocksDB slows writes down, and at which it takes none: a last resort behind flow control, which
/// slows puts down before (`pressure`).
const LEVEL0_BRAKES: (i32, i32) = (48, 64);
/// Memtables of one column family, the active one included.
const MEMTABLES_MAX: i32 = 3;

/// Memory that the column families may use.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Block cache that all column families share; filters and indexes of files live in it too.
    pub block_cache_bytes: usize,
    /// Size of a memtable of live records or history; at most three each. The others take a quarter.
    pub memtable_bytes: usize,
}

/// The column families of region data. Compaction drops what lies below `boundary`.
pub fn column_families(options: &EngineOptions, boundary: &Boundary) -> Vec<ColumnFamilyDescriptor> {
    // Without locks: every point read asks it several times. It estimates the size of an entry by itself (0).
    let cache = Cache::new_hyper_clock_cache(options.block_cache_bytes, 0);
    let common = |memtable_bytes| {
        let mut family = Options::default();
        family.set_compression_type(DBCompressionType::Lz4);
        family.set_write_buffer_size(memtable_bytes);
        family.set_max_write_buffer_number(MEMTABLES_MAX);
        family.set_level_compaction_dynamic_level_bytes(true);
        family.set_level_zero_slowdown_writes_trigger(LEVEL0_BRAKES.0);
        family.set_level_zero_stop_writes_trigger(LEVEL0_BRAKES.1);
        family
    };
    let blocks = |block_bytes| {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&cache);
        blocks.set_block_size(block_bytes);
        // Bounded by the cache, however much data the store holds.
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
        blocks
    };

    let mut latest = common(options.memtable_bytes);
    let mut latest_blocks = blocks(LATEST_BLOCK_BYTES);
    latest_blocks.set_bloom_filter(BLOOM_BITS, false);
    latest_blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    latest_blocks.set_data_block_hash_ratio(LATEST_HASH_RATIO);
    latest.set_block_based_table_factory(&latest_blocks);
    latest.set_memtable_whole_key_filtering(true);
    latest.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
    latest.add_compact_on_deletion_collector_factory(DELETES_COMPACTED.0, DELETES_COMPACTED.1, 0.5);

    let mut history = common(options.memtable_bytes);
    let mut history_blocks = blocks(RUN_BLOCK_BYTES);
    history_blocks.set_bloom_filter(BLOOM_BITS, false);
    // Versions are found by key, never by (key, revision).
    history_blocks.set_whole_key_filtering(false);
    history.set_block_based_table_factory(&history_blocks);
    // Only whole rows have a prefix: a walk from the bound of a range seeks to no key of a row, and must not be answered
    // by a filter that knows only those.
    let by_key = SliceTransform::create("braid.history.key", key::history_prefix, Some(key::is_history_key));
    history.set_prefix_extractor(by_key);
    history.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
    history.set_target_file_size_base(HISTORY_FILE_BYTES);
    history.set_compaction_filter_factory(boundary.filter(HISTORY));

    let mut events = common(options.memtable_bytes / 4);
    events.set_block_based_table_factory(&blocks(RUN_BLOCK_BYTES));
    events.set_target_file_size_base(HISTORY_FILE_BYTES);
    events.set_compaction_filter_factory(boundary.filter(EVENTS));

    let mut locks = common(options.memtable_bytes / 4);
    locks.set_block_based_table_factory(&blocks(LATEST_BLOCK_BYTES));

    let mut leases = common(options.memtable_bytes / 4);
    leases.set_block_based_table_factory(&blocks(LATEST_BLOCK_BYTES));
    // Written down and removed again; a new leader reads all of them, and must not step over those that are gone.
    leases.add_compact_on_deletion_collector_factory(DELETES_COMPACTED.0, DELETES_COMPACTED.1, 0.5);

    // Rows without values, in runs: those of a lease. Nobody looks for a single row, and nobody walks from one lease to the
    // next but a pass over whole files; so the filters hold leases only, and a lease without keys costs no block.
    let mut attached = common(options.memtable_bytes / 4);
    let mut attached_blocks = blocks(RUN_BLOCK_BYTES);
    attached_blocks.set_bloom_filter(BLOOM_BITS, false);
    attached_blocks.set_whole_key_filtering(false);
    attached.set_block_based_table_factory(&attached_blocks);
    attached.set_prefix_extractor(SliceTransform::create_fixed_prefix(key::LEASE_LEN));
    attached.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
    // Every row is deleted once, many at the same moment. A walk over a lease meets the tombstones of that lease only, as it
    // ends where the next begins; files of tombstones are compacted all the same, because nothing else makes room for them.
    attached.add_compact_on_deletion_collector_factory(DELETES_COMPACTED.0, DELETES_COMPACTED.1, 0.5);

    vec![
        ColumnFamilyDescriptor::new(LATEST, latest),
        ColumnFamilyDescriptor::new(HISTORY, history),
        ColumnFamilyDescriptor::new(EVENTS, events),
        ColumnFamilyDescriptor::new(LOCKS, locks),
        ColumnFamilyDescriptor::new(LEASES, leases),
        ColumnFamilyDescriptor::new(ATTACHED, attached),
    ]
}

/// Where the data of `region` lies: what a raft snapshot carries and what destroying a peer deletes. Rows of `attached` lie
/// between those of other regions, and are made from the records instead (`attached`).
pub fn data_ranges(region: &Region) -> Vec<DataRange> {
    let range = region.range();
    let (history_start, history_end) = key::history_range(&range);
    let mut events_end = region.id.to_be_bytes().to_vec();
    // The next id: events of a region follow its id.
    match region.id.checked_add(1) {
        Some(next) => events_end = next.to_be_bytes().to_vec(),
        None => events_end.clear(),
    }
    vec![
        DataRange { cf: LATEST, start: range.start.to_vec(), end: range.end.to_vec() },
        DataRange { cf: HISTORY, start: history_start.clone(), end: history_end.clone() },
        DataRange { cf: EVENTS, start: region.id.to_be_bytes().to_vec(), end: events_end },
        DataRange { cf: LOCKS, start: history_start, end: history_end },
        DataRange { cf: LEASES, start: range.start.to_vec(), end: range.end.to_vec() },
    ]
}

const _: () =
    assert!(super::pressure::LEVEL0_FULL < LEVEL0_BRAKES.0 as u64, "puts are slowed down before all writes are");
