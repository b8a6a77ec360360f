//! How much: bytes charged to a context and to the device, refunded by drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// A number of bytes that may be held, and how many are.
#[derive(Debug)]
pub struct Quota {
    limit: u64,
    used: AtomicU64,
    level: Level,
}

/// Whose limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// One context's.
    Context,
    /// All contexts' together.
    Device,
}

/// A charge would go beyond a limit; nothing was charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{asked} bytes asked, {used} of {limit} in use: the {} limit", match level { Level::Context => "context", Level::Device => "device" })]
pub struct Exceeded {
    /// Whose limit.
    pub level: Level,
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes allowed.
    pub limit: u64,
}

impl Quota {
    /// Nothing used.
    pub fn new(level: Level, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
            level,
        })
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn refund(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> Result<(), Exceeded> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map(drop)
            .map_err(|used| Exceeded {
                level: self.level,
                asked: bytes,
                used,
                limit: self.limit,
            })
    }
}

/// Bytes charged to a context and to its device until this drops.
#[derive(Debug)]
pub struct Charge {
    context: Arc<Quota>,
    device: Arc<Quota>,
    bytes: u64,
}

impl Charge {
    /// Charges both, or neither.
    pub fn new(context: &Arc<Quota>, device: &Arc<Quota>, bytes: u64) -> Result<Self, Exceeded> {
        context.take(bytes)?;
        device.take(bytes).inspect_err(|_| context.refund(bytes))?;
        Ok(Self {
            context: Arc::clone(context),
            device: Arc::clone(device),
            bytes,
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.context.refund(self.bytes);
        self.device.refund(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_or_neither_and_refunded() {
        let device = Quota::new(Level::Device, 100);
        let context = Quota::new(Level::Context, 60);
        let first = Charge::new(&context, &device, 60).unwrap();
        let refused = Charge::new(&context, &device, 1).unwrap_err();
        assert_eq!(
            refused,
            Exceeded {
                level: Level::Context,
                asked: 1,
                used: 60,
                limit: 60
            }
        );
        assert!(refused.to_string().contains("context limit"));
        let other = Quota::new(Level::Context, 60);
        let refused = Charge::new(&other, &device, 41).unwrap_err();
        assert_eq!(
            (refused.level, other.used(), device.used()),
            (Level::Device, 0, 60)
        );
        let second = Charge::new(&other, &device, 40).unwrap();
        assert!(Charge::new(&other, &device, u64::MAX).is_err());
        drop((first, second));
        assert_eq!((context.used(), other.used(), device.used()), (0, 0, 0));
    }
}
