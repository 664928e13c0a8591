//! # cocoon-agent: cocoon's hands inside a guest
//!
//! ```text
//!   host                                                  guest
//!   cocoon vm exec, cp, ... ── virtio socket, PORT ──▶ cocoon-agent
//!      protocol, frame, tree                              server: hello identity grow exec files shutdown
//! ```
//! The library holds what both sides share, and the agent's side of it; the program only listens.
//!
//! Invariants: a connection carries one request; every length is bounded before anything is kept
//! ([`frame`]); a tree of files that comes in has no way to name a place outside of its folder
//! ([`tree`]). The agent believes its host, which rules it anyway; the host believes no guest.

pub mod frame;
pub mod protocol;
pub mod server;
pub mod tree;
