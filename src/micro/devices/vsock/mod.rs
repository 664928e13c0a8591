//! virtio-vsock (virtio 1.2, 5.10): sockets between guest and host, which are Unix sockets there.
//!
//! ```text
//!            queue (rings) ── Header, payload ──▶ Muxer ── Ports ──▶ Connection ◀──▶ host's socket
//! guest ◀──▶ 0: to guest  ◀─── Header, payload ──   │                  Credit         <path>_<port>
//!            1: from it                             ├── Caller ◀─ CONNECT <port> ──── <path>
//!            2: events: TRANSPORT_RESET             └── epoll in the lane's epoll
//! ```
//! Invariants: at most [`muxer::CONNECTIONS_MAX`] connections, each with a bounded buffer; a guest
//! that does not take its answers is not listened to. A saved guest's connections are not saved: it
//! is told so when it is restored. Packets of the guest that make no sense are answered by a reset;
//! rings that make none are a fault.

pub(crate) mod caller;
pub(crate) mod connection;
pub(crate) mod credit;
pub(crate) mod device;
pub(crate) mod muxer;
pub(crate) mod packet;
pub(crate) mod queue;
pub(crate) mod socket;
