//! The watchdog's registers and its clock.
//!
//! ```text
//!            RUNNING := 1                pause
//!  Stopped ───────────────▶ Running ◀───────────▶ Paused
//!     ▲  └─── RUNNING := 0 ──┤        resume
//!     └─────── expired ──────┘
//! ```
//! Invariant: the timer is set exactly while the clock is running.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::persist::WatchdogState;
use crate::micro::acpi::wdat::{COUNTDOWN, FIRED, LEFT, MAX_COUNT, MIN_COUNT, PERIOD, RUNNING};
use crate::micro::bus::{Region, Shared};
use crate::micro::notice::{Notice, Notices};

/// What Linux's `wdat_wdt` sets before it starts the watchdog: 30 s.
const FIRST_COUNT: u32 = 300;

/// The watchdog cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the watchdog's timer")]
pub(crate) struct WatchdogError(#[source] pub(super) io::Error);

/// The watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog {
    clock: Clock,
    /// Periods that it is given from the next start or reload on.
    countdown: u32,
    fired: bool,
    timer: OwnedFd,
    notices: Notices,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Stopped,
    Running { until: Instant },
    Paused { left: Duration },
}

impl Watchdog {
    /// The watchdog of a VM that has not run yet, or as it was saved; [`Watchdog::resume`] then
    /// starts its clock.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn new(
        notices: Notices,
        saved: Option<&WatchdogState>,
    ) -> Result<Shared<Self>, WatchdogError> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| WatchdogError(error.into()))?;
        let left = saved.and_then(|saved| saved.left_ms);
        let clock = left.map_or(Clock::Stopped, |left| Clock::Paused {
            left: Duration::from_millis(left).min(PERIOD * MAX_COUNT),
        });
        let countdown = saved.map_or(FIRST_COUNT, |saved| saved.countdown);
        Ok(Arc::new(Mutex::new(Self {
            clock,
            countdown: countdown.clamp(MIN_COUNT, MAX_COUNT),
            fired: saved.is_some_and(|saved| saved.fired),
            timer,
            notices,
        })))
    }

    /// The VM stands still.
    pub(crate) fn pause(&mut self) {
        if let Clock::Running { .. } = self.clock {
            let left = self.left();
            self.set(Clock::Paused { left });
        }
    }

    /// The VM runs, or runs again.
    pub(crate) fn resume(&mut self) {
        if let Clock::Paused { left } = self.clock {
            let until = Instant::now() + left;
            self.set(Clock::Running { until });
        }
    }

    /// The registers and what time is left.
    pub(crate) fn save(&self) -> WatchdogState {
        let running = self.clock != Clock::Stopped;
        // Of an hour at most.
        let left = u64::try_from(self.left().as_millis()).unwrap_or(u64::MAX);
        WatchdogState {
            left_ms: running.then_some(left),
            countdown: self.countdown,
            fired: self.fired,
        }
    }

    /// What the next watchdog knows after the guest was reset: who did it.
    pub(crate) fn after_reset(&self) -> WatchdogState {
        WatchdogState {
            left_ms: None,
            countdown: FIRST_COUNT,
            fired: self.fired,
        }
    }

    /// Readable when [`Watchdog::expire`] is due.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// The timer fired: resets the guest, unless it has said in the meantime that it is well.
    pub(super) fn expire(&mut self, now: Instant) {
        match self.clock {
            Clock::Running { until } if until <= now => {
                tracing::warn!("the guest's watchdog expired: the guest is reset");
                self.fired = true;
                self.set(Clock::Stopped);
                self.notices.tell(Notice::Reset);
            }
            // Setting the timer again makes it unreadable.
            clock => self.set(clock),
        }
    }

    fn left(&self) -> Duration {
        match self.clock {
            Clock::Stopped => Duration::ZERO,
            Clock::Running { until } => until.saturating_duration_since(Instant::now()),
            Clock::Paused { left } => left,
        }
    }

    fn start(&mut self) {
        let until = Instant::now() + PERIOD * self.countdown;
        self.set(Clock::Running { until });
    }

    fn set(&mut self, clock: Clock) {
        self.clock = clock;
        let wait = match clock {
            // One that is over already fires at once; zero would never.
            Clock::Running { .. } => self.left().max(Duration::from_nanos(1)),
            Clock::Stopped | Clock::Paused { .. } => Duration::ZERO,
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: wait.as_secs().cast_signed(),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            tracing::error!(%error, "cannot set the watchdog's timer");
        }
    }

    /// Periods that are left, of which one that has begun is one.
    fn periods_left(&self) -> u32 {
        let periods = self.left().as_millis().div_ceil(PERIOD.as_millis());
        u32::try_from(periods).unwrap_or(u32::MAX)
    }
}

impl Region for Watchdog {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            RUNNING => u32::from(self.clock != Clock::Stopped),
            COUNTDOWN => self.countdown,
            LEFT => self.periods_left(),
            FIRED => u32::from(self.fired),
            _ => u32::MAX,
        };
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = value.to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        match (offset, u32::from_le_bytes(word)) {
            (RUNNING, 0) => self.set(Clock::Stopped),
            (RUNNING, 1) => self.start(),
            (COUNTDOWN, count) => self.countdown = count.clamp(MIN_COUNT, MAX_COUNT),
            (LEFT, _) if self.clock != Clock::Stopped => self.start(),
            (FIRED, _) => self.fired = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro::bus::lock;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::sync::mpsc::{Receiver, channel};

    fn watchdog(saved: Option<&WatchdogState>) -> (Shared<Watchdog>, Receiver<Notice>) {
        let (sender, told) = channel();
        (Watchdog::new(Notices::new(sender), saved).unwrap(), told)
    }

    fn get(watchdog: &Shared<Watchdog>, register: u64) -> u32 {
        let mut word = [0; 4];
        lock(watchdog).read(register, &mut word);
        u32::from_le_bytes(word)
    }

    fn put(watchdog: &Shared<Watchdog>, register: u64, value: u32) {
        lock(watchdog).write(register, &value.to_le_bytes());
    }

    /// Whether the timer is readable within `patience`.
    fn fires(watchdog: &Shared<Watchdog>, patience: Duration) -> bool {
        let timer = lock(watchdog).timer().try_clone_to_owned().unwrap();
        let patience = Timespec {
            tv_sec: patience.as_secs().cast_signed(),
            tv_nsec: patience.subsec_nanos().into(),
        };
        poll(&mut [PollFd::new(&timer, PollFlags::IN)], Some(&patience)).unwrap() > 0
    }

    #[test]
    fn the_registers_say_what_the_table_says_of_them() {
        let (watchdog, _told) = watchdog(None);
        assert_eq!(
            [RUNNING, COUNTDOWN, LEFT, FIRED].map(|at| get(&watchdog, at)),
            [0, 300, 0, 0]
        );
        for (set, expected) in [
            (0, 1),
            (1, 1),
            (10, 10),
            (600, 600),
            (36_001, 36_000),
            (u32::MAX, 36_000),
        ] {
            put(&watchdog, COUNTDOWN, set);
            assert_eq!(get(&watchdog, COUNTDOWN), expected, "{set}");
        }
        // A reload starts nothing.
        put(&watchdog, LEFT, 1);
        assert_eq!(get(&watchdog, RUNNING), 0);
        put(&watchdog, RUNNING, 1);
        assert_eq!(get(&watchdog, RUNNING), 1);
        put(&watchdog, COUNTDOWN, 500);
        let left = get(&watchdog, LEFT);
        assert!((35_900..=36_000).contains(&left), "{left}");
        put(&watchdog, LEFT, 0);
        let left = get(&watchdog, LEFT);
        assert!((400..=500).contains(&left), "{left}");
        put(&watchdog, RUNNING, 2);
        assert_eq!(get(&watchdog, RUNNING), 1);
        put(&watchdog, RUNNING, 0);
        assert_eq!([RUNNING, LEFT].map(|at| get(&watchdog, at)), [0, 0]);
    }

    #[test]
    fn accesses_that_are_no_whole_word_are_ignored() {
        let (watchdog, _told) = watchdog(None);
        lock(&watchdog).write(RUNNING, &[1]);
        lock(&watchdog).write(RUNNING, &[1, 0, 0, 0, 0, 0, 0, 0]);
        lock(&watchdog).write(RUNNING + 1, &[1, 0, 0, 0]);
        assert_eq!(get(&watchdog, RUNNING), 0);
        for (offset, length) in [(RUNNING, 1), (RUNNING, 8), (COUNTDOWN + 2, 4)] {
            let mut data = vec![0; length];
            lock(&watchdog).read(offset, &mut data);
            assert_eq!(data, vec![0xff; length]);
        }
    }

    #[test]
    fn a_guest_that_says_nothing_is_reset_once_and_its_successor_knows() {
        let (watchdog, told) = watchdog(None);
        put(&watchdog, COUNTDOWN, MIN_COUNT);
        put(&watchdog, RUNNING, 1);
        assert!(fires(&watchdog, Duration::from_secs(20)));
        lock(&watchdog).expire(Instant::now());
        assert!(matches!(told.try_recv(), Ok(Notice::Reset)));
        assert!(!fires(&watchdog, Duration::ZERO));
        lock(&watchdog).expire(Instant::now());
        assert!(told.try_recv().is_err());

        let (next, _told) = self::watchdog(Some(&lock(&watchdog).after_reset()));
        assert_eq!(
            [RUNNING, COUNTDOWN, LEFT, FIRED].map(|at| get(&next, at)),
            [0, 300, 0, 1]
        );
        put(&next, FIRED, 0);
        assert_eq!(get(&next, FIRED), 0);
    }

    #[test]
    fn a_guest_that_speaks_at_the_last_moment_is_not_reset() {
        let (watchdog, told) = watchdog(None);
        put(&watchdog, RUNNING, 1);
        let due = Instant::now() + PERIOD * 301;
        put(&watchdog, COUNTDOWN, 600);
        put(&watchdog, LEFT, 1);
        lock(&watchdog).expire(due);
        assert!(told.try_recv().is_err());
        assert_eq!(get(&watchdog, RUNNING), 1);
        lock(&watchdog).expire(due + PERIOD * 600);
        assert!(matches!(told.try_recv(), Ok(Notice::Reset)));
    }

    #[test]
    fn a_vm_that_stands_still_has_all_the_time_there_is() {
        let (watchdog, told) = watchdog(None);
        put(&watchdog, COUNTDOWN, MIN_COUNT);
        put(&watchdog, RUNNING, 1);
        lock(&watchdog).pause();
        let left = lock(&watchdog).left();
        lock(&watchdog).expire(Instant::now() + Duration::from_secs(100));
        assert!(told.try_recv().is_err());
        assert!(!fires(&watchdog, Duration::from_millis(1100)));
        assert_eq!(lock(&watchdog).left(), left);
        lock(&watchdog).resume();
        assert!(fires(&watchdog, Duration::from_secs(20)));
    }

    #[test]
    fn a_restored_watchdog_goes_on_with_what_was_left_once_the_vm_runs() {
        let (old, _told) = watchdog(None);
        put(&old, COUNTDOWN, 50);
        put(&old, RUNNING, 1);
        put(&old, COUNTDOWN, 70);
        lock(&old).pause();
        let saved = lock(&old).save();
        let bytes = postcard::to_stdvec(&saved).unwrap();
        let saved: WatchdogState = postcard::from_bytes(&bytes).unwrap();
        let (new, _told) = watchdog(Some(&saved));
        assert_eq!(lock(&new).save(), saved);
        assert_eq!([RUNNING, COUNTDOWN].map(|at| get(&new, at)), [1, 70]);
        assert!(!fires(&new, Duration::ZERO));
        lock(&new).resume();
        let left = get(&new, LEFT);
        assert!((1..=50).contains(&left), "{left}");
        // One that had stopped does not start.
        put(&old, RUNNING, 0);
        let (new, _told) = watchdog(Some(&lock(&old).save()));
        lock(&new).resume();
        assert_eq!(get(&new, RUNNING), 0);
    }

    #[test]
    fn a_saved_state_cannot_exceed_the_limits() {
        let saved = WatchdogState {
            left_ms: Some(u64::MAX),
            countdown: u32::MAX,
            fired: false,
        };
        let (watchdog, _told) = watchdog(Some(&saved));
        lock(&watchdog).resume();
        assert_eq!(get(&watchdog, COUNTDOWN), MAX_COUNT);
        assert!(get(&watchdog, LEFT) <= MAX_COUNT);
    }
}
