//! What is saved of a disk: what the guest believes of it that only its file tells.

use serde::{Deserialize, Serialize};

/// A saved disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Its size in sectors of 512 bytes: a smaller file is another disk, a larger one has grown.
    pub(crate) sectors: u64,
}
