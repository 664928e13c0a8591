//! What is saved of a balloon.

use serde::{Deserialize, Serialize};

/// A balloon's size, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// As it is to be.
    pub(super) target: u32,
    /// As the driver said that it is.
    pub(super) actual: u32,
}
