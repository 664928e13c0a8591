//! What is saved of the watchdog.

use serde::{Deserialize, Serialize};

/// Its registers; the device keeps them within their limits when it is made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WatchdogState {
    /// Time that was left, if it ran.
    pub(super) left_ms: Option<u64>,
    /// Periods from the next start or reload on.
    pub(super) countdown: u32,
    /// The last reset was its own.
    pub(super) fired: bool,
}
