//! What users type, and what they read.

mod completion;
mod damaged;
mod import;
#[cfg(feature = "failpoints")]
mod killed;
mod mistakes;
mod output;
mod snapshot;
