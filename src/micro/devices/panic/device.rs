//! The register. It remembers nothing, so nothing of it is saved.

use crate::micro::bus::Region;
use crate::micro::notice::{Notice, Notices};

/// Ports from `layout::PANIC_PORT` on.
pub(crate) const PORTS: u64 = 1;

/// The kernel panicked.
const PANICKED: u8 = 1;

/// The register.
#[derive(Debug)]
pub(crate) struct Panic {
    /// Until the guest has panicked: one that goes on saying so fills no queue.
    notices: Option<Notices>,
}

impl Panic {
    /// The register.
    pub(crate) fn new(notices: Notices) -> Self {
        Self {
            notices: Some(notices),
        }
    }
}

impl Region for Panic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [first, ..] = data {
            *first = PANICKED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|byte| byte & PANICKED != 0)
            && let Some(notices) = self.notices.take()
        {
            notices.tell(Notice::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_panic_is_told_once_and_other_events_never() {
        let (sender, told) = channel();
        let mut panic = Panic::new(Notices::new(sender));
        let mut byte = [0xff];
        panic.read(0, &mut byte);
        assert_eq!(byte, [PANICKED]);
        panic.write(0, &[]);
        panic.write(0, &[2]);
        assert!(told.try_recv().is_err());
        panic.write(0, &[3]);
        panic.write(0, &[1]);
        assert!(matches!(told.try_recv(), Ok(Notice::Panicked)));
        assert!(told.try_recv().is_err());
    }
}
