//! What is saved of the power registers.

use serde::{Deserialize, Serialize};

/// Events that the guest had not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PowerState {
    pub(super) events: u32,
}
