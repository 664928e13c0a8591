//! # cocoon: a daemonless MicroVM engine
//!
//! ```text
//!   cocoon vm run IMAGE
//!        │ cli      what the user typed, what the user reads
//!        ▼
//!       ops        one file a use case: order of steps, undo, locks
//!        ├── image     registry or archive → tar → EROFS blobs, boot files; or a disk image → qcow2
//!        ├── installed the kernel on a disk, as its own boot loader would choose it
//!        ├── cidata    what cloud-init in a guest reads at its first boot
//!        ├── cidata    NoCloud volume of a cloud image
//!        ├── installed a disk's own kernel, initrd and command line
//!        ├── network   CNI → netns, TAP, redirect
//!        ├── snapshot  saved VMs: manifest, archive, records
//!        ├── console   relay, history
//!        ├── agent     commands and files in a running guest
//!        └── vmm       the port: spawns `cocoon __vmm`, speaks its protocol
//!                       │
//!                       ▼  one process per VM, which links the engine
//!                 cocoon __vmm ── Engine::boot ──▶ Machine
//! ```
//!
//! ## Layers
//! A module uses only rows below its own; siblings never use each other. `tests/architecture.rs`
//! holds them to it.
//! ```text
//! 7 cli
//! 6 ops            the only place where siblings meet: order of steps, undo, locks across stores
//! 5 micro          implements the port; vmm-glue (Cloud Hypervisor) does, too, in a package of its own
//! 4 image | installed | cidata | network | snapshot | console | agent | vmm
//! 3 vm
//! 2 store | config | disk
//! 1 units | sys
//! ```
//!
//! ## Invariants
//! - **Reserve first.** A VM's row, name, pins and network plan are in the store before anything is
//!   made outside of it; so whatever a crash leaves is known, and `gc` finishes or undoes it.
//! - **Liveness is a lock.** No VM runs whose process does not hold `alive.lock`, whatever its record says;
//!   no pid in a file is ever believed.
//! - **One writer of a VM.** Whoever changes a VM holds its operation lock, as a value.
//! - **Disks of strangers.** `disk` looks at an image before anything opens it, and no file is opened that an image
//!   only names; what boots from a disk is found by reading it, never by mounting it.
//! - **Killed anywhere.** Each step of a verb has a name (`sys::failpoint`), and a test that ends the program
//!   there by `kill -9` (`tests/cli/killed.rs`): nothing is lost, `gc` leaves nothing, the verb then succeeds.
//! - **The library returns, the CLI speaks.** Only `cli` prints, exits, reads argv and environment.
//!
//! ## Where to start
//! `ops/create.rs` and `ops/start.rs` tell the main story; `vm/spec.rs` is what an engine is given;
//! `vmm/engine.rs` is what an engine must do.

pub mod agent;
pub mod cidata;
pub mod cli;
pub mod config;
pub mod console;
pub mod disk;
pub mod image;
pub mod installed;
pub mod micro;
pub mod network;
pub mod ops;
pub mod snapshot;
pub mod store;
pub mod sys;
pub mod units;
pub mod vm;
pub mod vmm;
