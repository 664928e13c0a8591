//! The port to the engines, and the process that hosts one.
//!
//! ```text
//! cocoon vm run ──spawn──▶ cocoon __vmm <spec.json>   setsid, own log, in the VM's netns, holds alive.lock
//!       │                    ├── engine threads
//!       └──control.sock────▶ ├── control server        (length-bounded JSON messages)
//!                            └── console hub           on console.sock
//! ```

pub mod engine;

pub use engine::{Engine, Machine};
