//! What outlives a command: the layout of the root folder, the database, locks, the one way to write a
//! file, and the log.

pub mod atomic;
pub mod db;
pub mod layout;
pub mod lock;
pub mod log_file;
pub mod pool;
pub mod rows;

pub use db::{Database, DatabaseError, Durability};
pub use layout::Layout;
pub use pool::{Pool, Pooled};
