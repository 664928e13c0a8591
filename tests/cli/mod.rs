//! What users type, and what they read.

mod mistakes;
mod output;
mod snapshot;
