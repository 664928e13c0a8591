//! A request to stop, which long work can both wait for and ask about.
//!
//! Invariant: once cancelled, always cancelled.

use std::sync::Arc;

use tokio::sync::watch;

/// Asks all work that holds a clone of it to stop. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Cancel {
    cancelled: Arc<watch::Sender<bool>>,
}

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        Self {
            cancelled: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Asks the work to stop. Takes a lock, so call it from a thread that waits for signals, not
    /// from a signal handler.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Whether the work has been asked to stop.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Ends when the work is asked to stop.
    pub(crate) async fn cancelled(&self) {
        // An error would mean that the sender is gone; `self` keeps it.
        let _ = self.cancelled.subscribe().wait_for(|set| *set).await;
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}
