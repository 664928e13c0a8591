//! The consoles of VMs: kept, shared, attached to.
//!
//! ```text
//!  cocoon __vmm                                          cocoon vm console
//!  ┌──────────────────────────────────┐                 ┌───────────────────────┐
//!  │ engine ◀─pty─▶ hub ──▶ log       │   console.sock  │ relay ◀─▶ user's       │
//!  │                 ├──▶ history     │ ◀─── frames ──▶ │   └ escape   terminal  │
//!  │                 └──▶ viewers ────┼─────────────────│                       │
//!  └──────────────────────────────────┘                 └───────────────────────┘
//! ```
//! Invariants:
//! - The guest never waits for a viewer or the log.
//! - Whatever a guest or a viewer does, the memory of the hub is bounded.
//! - Bytes pass unchanged both ways; only the user's own escape keys are taken out, and from the
//!   history the questions that the terminal would answer a second time.

pub mod escape;
#[cfg(test)]
mod fixture;
mod history;
pub mod hub;
pub mod log;
pub mod protocol;
mod queries;
pub mod relay;
pub mod signals;
mod socket;
mod switch;
mod terminal;
mod viewer;

pub use escape::EscapeByte;
pub use hub::Hub;
pub use log::ConsoleLog;
pub use relay::{RelayEnd, relay};
pub use socket::{SocketError, connect};
