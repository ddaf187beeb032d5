#!/bin/sh
# Keeps one compiled RocksDB for all builds: $BRAID_CACHE/rocksdb/librocksdb.a, which the Makefile hands to cargo as
# ROCKSDB_LIB_DIR. The file `key` beside it names what it was made of; another version or compiler makes it anew.
# The place has no version in its name, because cargo would compile everything above RocksDB again when it changed.
set -eu
cd "$(dirname "$0")/.."

dry_run=
[ "${1:-}" != --dry-run ] || dry_run=yes
: "${CARGO:=cargo}"
: "${BRAID_CACHE:=$HOME/.cache/braid}"
place=$BRAID_CACHE/rocksdb

crate=$(awk '/^name = "librocksdb-sys"/ { getline; gsub(/version = |"/, ""); print }' Cargo.lock)
[ -n "$crate" ] || { echo "setup: Cargo.lock has no librocksdb-sys" >&2; exit 1; }
compiler=${CXX:-g++}
key="librocksdb-sys $crate, $compiler $("$compiler" -dumpfullversion 2>/dev/null || echo '(not installed yet)') on $(uname -m)"

if [ -f "$place/librocksdb.a" ] && [ "$(cat "$place/key" 2>/dev/null)" = "$key" ]; then
    exit 0
fi
if [ -n "$dry_run" ]; then
    echo "setup: would build $key into $place"
    exit 0
fi

echo "setup: building $key once (about ten minutes on two cores)"
mkdir -p "$place"
# One builder at a time; the others wait and then find it done.
exec 9>"$place/lock"
flock 9
[ "$(cat "$place/key" 2>/dev/null)" = "$key" ] && [ -f "$place/librocksdb.a" ] && exit 0

build=$BRAID_CACHE/rocksdb-build
# Without the variables that would make it use the archive; without debug information, which is twenty times as big.
env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_PROFILE_RELEASE_DEBUG=false \
    "$CARGO" build --locked --release --package librocksdb-sys --target-dir "$build"
set -- "$build"/release/build/librocksdb-sys-*/out/librocksdb.a
[ $# -eq 1 ] && [ -f "$1" ] || { echo "setup: cannot find the archive below $build" >&2; exit 1; }
rm -f "$place/key"
cp "$1" "$place/librocksdb.a.tmp"
mv "$place/librocksdb.a.tmp" "$place/librocksdb.a"
printf '%s\n' "$key" >"$place/key"
rm -rf "$build"
