//! Waits for the watchdog's timer, on a lane.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::device::{Watchdog, WatchdogError};
use crate::micro::bus::{Shared, lock};

/// Expires a watchdog whose timer fires. It serves no queues.
#[derive(Debug)]
pub(crate) struct Expiry {
    watchdog: Shared<Watchdog>,
    timer: OwnedFd,
}

impl Expiry {
    /// Of `watchdog`.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn new(watchdog: &Shared<Watchdog>) -> Result<Self, WatchdogError> {
        let timer = lock(watchdog).timer().try_clone_to_owned();
        Ok(Self {
            watchdog: std::sync::Arc::clone(watchdog),
            timer: timer.map_err(WatchdogError)?,
        })
    }
}

impl MutEventSubscriber for Expiry {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.timer.as_raw_fd(), EventSet::IN)) {
            tracing::error!(%error, "the guest's watchdog will not expire");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        lock(&self.watchdog).expire(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro::acpi::wdat::{COUNTDOWN, RUNNING};
    use crate::micro::bus::Region;
    use crate::micro::lane::Lanes;
    use crate::micro::notice::{Notice, Notices};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn a_guest_that_hangs_is_reset_by_the_lane() {
        let (sender, told) = channel();
        let watchdog = Watchdog::new(Notices::new(sender), None).unwrap();
        let lanes = Lanes::start(1, &crate::micro::seccomp::lane().unwrap()).unwrap();
        lanes.watch(0, Expiry::new(&watchdog).unwrap()).unwrap();
        let begun = Instant::now();
        lock(&watchdog).write(COUNTDOWN, &10_u32.to_le_bytes());
        lock(&watchdog).write(RUNNING, &1_u32.to_le_bytes());
        let notice = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(notice, Notice::Reset));
        assert!(begun.elapsed() >= Duration::from_secs(1));
    }
}
