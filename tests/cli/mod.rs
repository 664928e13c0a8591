//! What users type, and what they read.

mod damaged;
mod mistakes;
mod output;
mod snapshot;
