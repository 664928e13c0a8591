//! The guest agent, as a command of the host sees it.
//!
//! ```text
//!   ops ──▶ Agent ── connect ──▶ vsock.sock: "CONNECT <port>", "OK <n>" ──▶ cocoon-agent in the guest
//!             └─ hello identity grow shutdown get put exec: a connection each
//! ```
//! The protocol and the agent itself are the package `cocoon-agent`. Invariants: nothing of a guest is
//! believed. Lengths are bounded by its frames; every wait has an end and can be interrupted; what it
//! says goes to a terminal only as a command's own output, or as a sentence without control characters;
//! files that it sends stay in their folder.

mod channel;
mod client;
mod error;
mod exec;
#[cfg(test)]
mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;

pub use client::Agent;
pub use error::{AgentError, Nonsense};
pub use exec::{ExecEnd, Session, terminal_size};

#[cfg(test)]
mod tests;
