//! When a failed request is repeated, and how long to wait first. Pure.

use std::time::Duration;

/// Bytes that a connection must bring to count as progress. Fewer, and a server that breaks off
/// after every packet would never be given up.
pub(super) const PROGRESS: u64 = 64 << 10;

/// How often and how patiently requests are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Repetitions without progress before the error is final.
    pub attempts: u32,
    /// Wait before the first repetition; each further wait is twice as long.
    pub first_delay: Duration,
    /// The longest wait of our own choosing.
    pub max_delay: Duration,
    /// The longest wait that a server may ask for; if it asks for more, the error is final.
    pub max_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            // 0.5 + 1 + 2 + 4 + 8 s: a registry or router that restarts is back by then.
            attempts: 5,
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(10),
            // Rate limits of a minute are common; whoever must wait longer should be told so.
            max_retry_after: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// The wait before repetition number `attempt` (from 0), or none if there shall be no more.
    pub fn delay(&self, attempt: u32, retry_after: Option<Duration>) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX);
        let own = self.first_delay.saturating_mul(factor).min(self.max_delay);
        match retry_after {
            Some(asked) if asked > self.max_retry_after => None,
            Some(asked) => Some(asked.max(own)),
            None => Some(own),
        }
    }
}

/// Reads a `Retry-After` header: seconds, or a date (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(header: &str, now: jiff::Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(header).ok()?.timestamp();
    // A date in the past asks for no wait.
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_end() {
        let policy = RetryPolicy {
            attempts: 4,
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_millis(350),
            max_retry_after: Duration::from_secs(5),
        };
        let ms = |n| Some(Duration::from_millis(n));
        for (attempt, asked, delay) in [
            (0, None, ms(100)),
            (1, None, ms(200)),
            (2, None, ms(350)),
            (3, None, ms(350)),
            (4, None, None),
            (u32::MAX, None, None),
            (0, ms(2000), ms(2000)),
            (0, ms(1), ms(100)),
            (0, ms(5001), None),
            (4, ms(1), None),
        ] {
            assert_eq!(policy.delay(attempt, asked), delay, "{attempt} {asked:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "2015-10-21T07:27:30Z".parse().unwrap();
        for (header, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(retry_after(header, now), expected, "{header:?}");
        }
    }
}
