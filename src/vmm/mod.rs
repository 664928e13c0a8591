//! The port to the engines, and the process that hosts one.
//!
//! ```text
//! cocoon vm run ──launch──▶ cocoon __vmm <spec.json>   own session, in the VM's netns, holds alive.lock
//!       │ ◀── one Report ──── stdout, a pipe
//!       │                     ├── engine threads
//!       └──control.sock─────▶ └── control server        length-bounded JSON messages
//! ```
//!
//! Invariant: nothing here believes a pid in a file. Liveness is `alive.lock`; a process is
//! signalled through a pidfd taken from its socket.

pub mod client;
pub mod engine;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod launch;
pub mod logging;
pub mod protocol;
pub mod server;

pub use client::Client;
pub use engine::{Engine, Machine};
