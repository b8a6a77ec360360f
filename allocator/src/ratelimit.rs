//! Log lines that a guest can cause, bounded: a burst, then a few a second, and a count of what was left out.

use std::fmt::Arguments;
use std::time::{Duration, Instant};

/// Lines that may come at once.
const BURST: u32 = 20;
/// One more line is allowed each time this has passed.
const REFILL: Duration = Duration::from_millis(500);

/// A token bucket for one device's log lines. A guest that floods the log would hide what others have to say, and fill the disk.
#[derive(Debug)]
pub struct RateLimiter {
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

impl RateLimiter {
    /// A full bucket.
    pub fn new() -> Self {
        Self {
            tokens: BURST,
            refilled: Instant::now(),
            suppressed: 0,
        }
    }

    /// Logs a warning, or counts it.
    pub fn warn(&mut self, line: Arguments<'_>) {
        match self.admit(Instant::now()) {
            None => {}
            Some(0) => log::warn!("{line}"),
            Some(suppressed) => log::warn!("{line} ({suppressed} lines like this were left out)"),
        }
    }

    /// Whether a line may be logged now, and how many were not since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let periods = now.saturating_duration_since(self.refilled).as_millis() / REFILL.as_millis();
        if periods > 0 {
            let added = u32::try_from(periods).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(added).min(BURST);
            self.refilled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_trickle_and_the_rest_is_counted() {
        let mut limiter = RateLimiter::new();
        let start = limiter.refilled;
        for _ in 0..BURST {
            assert_eq!(limiter.admit(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(limiter.admit(start), None);
        }
        assert_eq!(limiter.admit(start + REFILL), Some(7));
        assert_eq!(limiter.admit(start + REFILL), None);
        let later = start + REFILL * 10 * BURST;
        assert_eq!(limiter.admit(later), Some(1));
        for _ in 1..BURST {
            assert_eq!(limiter.admit(later), Some(0));
        }
        assert_eq!(limiter.admit(later), None);
    }
}
