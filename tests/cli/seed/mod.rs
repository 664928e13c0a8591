//! The sections of the first README that say what can be typed: which test drives which of their lines, and
//! sees what it does.
//!
//! | section | lines | |
//! |---|---|---|
//! | CLI Commands | `image pull list rm inspect` | [`images`] |
//! | | `image pull` of a cloud image's URL | `tests/cli/disk_images.rs` |
//! | | `vm create run clone start stop list inspect rm restore` | [`vms`] |
//! | | `vm console` | [`console`] |
//! | | `vm debug` | `tests/cli/debug.rs` |
//! | | `snapshot save list inspect rm` | [`snapshots`] |
//! | | `gc` | [`gc`] |
//! | | `version` | [`version`] |
//! | | `completion` | `tests/cli/completion.rs` |
//! | Global Flags | all but the next | [`global_flags`] |
//! | | `--root-password` `COCOON_DEFAULT_ROOT_PASSWORD` | `tests/cli/disk_images.rs` |
//! | VM Flags | all, for `vm create`, `vm run`, `vm debug` | [`vm_flags`] |
//! | Debug-only Flags | `--max-cpu` `--balloon` `--cow` | `tests/cli/debug.rs` |
//! | | `--ch`, which micro refuses | there, and `src/ops/debug/script.rs` |
//! | Console Flags | `--escape-char` | [`console`] |
//! | List Flags | `--format` `-o` `--vm` | [`lists`] |
//! | Garbage Collection | all | [`gc`] |
//!
//! What a guest's own kernel sees of all this is in `tests/lab/`.

mod console;
mod gc;
mod global_flags;
mod images;
mod lists;
mod snapshots;
mod version;
mod vm_flags;
mod vms;
