//! Log lines that a guest can cause, bounded: a burst, then a few a second, and a count of what was left out.

use std::collections::HashMap;
use std::fmt::Arguments;
use std::time::{Duration, Instant};

/// Lines that may come at once from one source.
const BURST: u32 = 20;
/// One more line is allowed each time this has passed.
const REFILL: Duration = Duration::from_millis(500);

/// Lines that may come at once from all sources of a device together.
const DEVICE_BURST: u32 = 200;
/// One more line of theirs is allowed each time this has passed.
const DEVICE_REFILL: Duration = Duration::from_millis(50);

/// A token bucket for log lines. A guest that floods the log would hide what others have to say, and fill the disk.
#[derive(Debug)]
pub struct RateLimiter {
    burst: u32,
    refill: Duration,
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

impl RateLimiter {
    /// A full bucket, for one source.
    pub fn new() -> Self {
        Self::with(BURST, REFILL)
    }

    fn with(burst: u32, refill: Duration) -> Self {
        Self {
            burst,
            refill,
            tokens: burst,
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
        let passed = now.saturating_duration_since(self.refilled);
        let periods = passed.as_millis() / self.refill.as_millis();
        if periods > 0 {
            let added = u32::try_from(periods).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(added).min(self.burst);
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

/// Log lines of a device: each context has a bucket of its own, so that one that floods the log does not silence the others.
#[derive(Debug)]
pub struct ContextLimiter {
    device: RateLimiter,
    /// What no context is to blame for.
    nobody: RateLimiter,
    contexts: HashMap<u32, RateLimiter>,
}

impl ContextLimiter {
    /// Full buckets.
    pub fn new() -> Self {
        Self {
            device: RateLimiter::with(DEVICE_BURST, DEVICE_REFILL),
            nobody: RateLimiter::new(),
            contexts: HashMap::new(),
        }
    }

    /// Logs a warning on a context that exists, or on none; or counts it.
    pub fn warn(&mut self, context: Option<u32>, line: Arguments<'_>) {
        let bucket = match context {
            Some(context) => self.contexts.entry(context).or_default(),
            None => &mut self.nobody,
        };
        if let Some(suppressed) = bucket.admit(Instant::now()) {
            // What is left out here is counted with what comes later, whoever it is from.
            self.device.suppressed += suppressed;
            self.device.warn(line);
        }
    }

    /// The context has ended.
    pub fn forget(&mut self, context: u32) {
        self.contexts.remove(&context);
    }

    /// All contexts have ended.
    pub fn forget_all(&mut self) {
        self.contexts.clear();
    }
}

impl Default for ContextLimiter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_floods_the_log_does_not_silence_another() {
        let mut limiter = ContextLimiter::new();
        for _ in 0..1000 {
            limiter.warn(Some(1), format_args!("flood"));
        }
        assert_eq!(limiter.contexts[&1].tokens, 0);
        let left = limiter.device.tokens;
        assert!(left >= DEVICE_BURST - BURST - 1, "{left}");
        limiter.warn(Some(2), format_args!("one line"));
        limiter.warn(None, format_args!("and another"));
        assert_eq!(limiter.contexts[&2].tokens, BURST - 1);
        assert!(limiter.device.tokens < left, "both were logged");
        // A flood of contexts: all together have a limit, and nothing is left of those that are gone.
        for context in 3..5000 {
            limiter.warn(Some(context), format_args!("flood"));
            limiter.forget(context);
        }
        assert_eq!(limiter.contexts.len(), 2);
        assert!(limiter.device.suppressed > 1000, "{:?}", limiter.device);
    }

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
