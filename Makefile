# make build    the program: with both engines where Cloud Hypervisor's source can be fetched, else with micro
# make demo     build it and watch it work
# make test     all tests, one closing line a tier
# make bench    the engines side by side: boot, restore, memory, disk, network (bench/run)
# make lint     clippy and rustfmt, as CI has them
# make fmt      format the code
# make fuzz     give it what a hostile guest, image or file would, SECONDS=600 a target (fuzz/README.md)
# make man      a man page for each command, in target/man
# make install  put the program into $(DESTDIR)$(PREFIX)/bin, and the man pages into share/man/man1

PREFIX ?= /usr/local
TARGET := x86_64-unknown-linux-gnu
export COCOON_REVISION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# Of the commit, not of the build: the same source gives the same program, and nothing is built twice.
export COCOON_BUILT := $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)

.PHONY: build demo test bench lint fmt fuzz man install clean
.NOTPARALLEL:

build:
	@tools/prepare
	@if why=$$(tools/full-build-possible); then \
		echo "building the full program: Cloud Hypervisor linked in"; \
		cargo build --release --locked --manifest-path vmm-glue/Cargo.toml --bin cocoon; \
		install -D vmm-glue/target/$(TARGET)/release/cocoon target/cocoon; \
	else \
		echo "SKIPPED: the full build: $$why; building the root program, which links the engine micro alone"; \
		cargo build --release --locked --bin cocoon; \
		install -D target/$(TARGET)/release/cocoon target/cocoon; \
	fi
	@ls -l target/cocoon

demo: build
	@demo/run target/cocoon

test:
	@tools/prepare
	@tests/all

bench:
	@tools/prepare
	@bench/run

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if why=$$(tools/full-build-possible); then \
		cargo fmt --manifest-path vmm-glue/Cargo.toml --check && \
		cargo clippy --locked --manifest-path vmm-glue/Cargo.toml --all-targets -- -D warnings; \
	else echo "SKIPPED: linting vmm-glue: $$why"; fi

fmt:
	cargo fmt --all
	cargo fmt --manifest-path vmm-glue/Cargo.toml

SECONDS := 600
FUZZ := state transport block net balloon rng vsock \
	reference documents layer conflist cni_result config frames tree control \
	disk installed grub

fuzz:
	@cargo fuzz --version >/dev/null || { echo "fuzz/README.md says how to install cargo-fuzz"; exit 1; }
	@fuzz/seeds
	@for target in $(FUZZ); do \
		TMPDIR=/dev/shm RUSTC_BOOTSTRAP=1 cargo fuzz run --debug-assertions $$target -- \
			-max_total_time=$(SECONDS) -print_final_stats=1 || exit 1; \
	done

man:
	@tools/prepare
	@rm -rf target/man
	cargo run --quiet --locked --example man -- target/man
	@echo "$$(ls target/man | wc -l) pages in target/man; to read one: man target/man/cocoon.1"

install: build man
	install -D -m 0755 target/cocoon $(DESTDIR)$(PREFIX)/bin/cocoon
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 target/man/*.1

clean:
	cargo clean
	cargo clean --manifest-path vmm-glue/Cargo.toml
