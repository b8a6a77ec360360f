//! How much: what is charged to a context and to its device, refunded by drop; and a share of it that each context has for sure.
//!
//! A context is charged to its device with what it uses, or with its share where that is more. So what others do never takes a context's share
//! away, and what is not anybody's share goes to whoever comes first.

use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

/// A number of things that may be held, and how many are.
#[derive(Debug)]
pub struct Quota {
    what: &'static str,
    limit: u64,
    /// None for the device as a whole.
    device: Option<Arc<Quota>>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    used: u64,
    share: u64,
}

impl State {
    /// What the device is charged with.
    fn charged(self) -> u64 {
        self.used.max(self.share)
    }
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
#[error("{asked} {what} asked, {used} of {limit} in use: the {} limit", match level { Level::Context => "context", Level::Device => "device" })]
pub struct Exceeded {
    /// Whose limit.
    pub level: Level,
    /// What is counted: `bytes`.
    pub what: &'static str,
    /// How many were asked for.
    pub asked: u64,
    /// How many are in use.
    pub used: u64,
    /// How many may be.
    pub limit: u64,
}

impl Quota {
    /// A device that nothing is charged to. `what` is counted, in the plural.
    pub fn device(what: &'static str, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            what,
            limit,
            device: None,
            state: Mutex::default(),
        })
    }

    /// A context of a device.
    pub fn context(device: &Arc<Self>, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            what: device.what,
            limit,
            device: Some(Arc::clone(device)),
            state: Mutex::default(),
        })
    }

    /// A context that has a share, or all of its limit where that is less, from now on.
    ///
    /// # Errors
    /// Where the device has not so much left.
    pub fn with_share(device: &Arc<Self>, limit: u64, share: u64) -> Result<Arc<Self>, Exceeded> {
        let share = share.min(limit);
        device.take(share)?;
        let context = Self::context(device, limit);
        context.state.lock().share = share;
        Ok(context)
    }

    /// How many are in use.
    pub fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// How many may be in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many more may be.
    pub fn left(&self) -> u64 {
        let state = *self.state.lock();
        let mine = self.limit.saturating_sub(state.used);
        match &self.device {
            None => mine,
            Some(device) => {
                let of_share = state.charged() - state.used;
                device.left().saturating_add(of_share).min(mine)
            }
        }
    }

    /// The context has ended: what is left of its share is for others. What is in use stays charged.
    pub fn end_share(&self) {
        let mut state = self.state.lock();
        let before = state.charged();
        state.share = 0;
        self.refund(before - state.charged());
    }

    fn take(&self, number: u64) -> Result<(), Exceeded> {
        let mut state = self.state.lock();
        let used = state.used.checked_add(number);
        let used = used.filter(|sum| *sum <= self.limit).ok_or(Exceeded {
            level: match self.device {
                None => Level::Device,
                Some(_) => Level::Context,
            },
            what: self.what,
            asked: number,
            used: state.used,
            limit: self.limit,
        })?;
        let after = State { used, ..*state };
        if let Some(device) = &self.device {
            device.take(after.charged() - state.charged())?;
        }
        *state = after;
        Ok(())
    }

    fn give_back(&self, number: u64) {
        let mut state = self.state.lock();
        let before = state.charged();
        state.used = state.used.saturating_sub(number);
        self.refund(before - state.charged());
    }

    fn refund(&self, number: u64) {
        if let Some(device) = &self.device {
            device.give_back(number);
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.end_share();
    }
}

/// What is charged to a context and to its device until this drops.
#[derive(Debug)]
pub struct Charge {
    context: Arc<Quota>,
    number: u64,
}

impl Charge {
    /// Charges both, or neither.
    ///
    /// # Errors
    /// Where it would go beyond a limit of either.
    pub fn new(context: &Arc<Quota>, number: u64) -> Result<Self, Exceeded> {
        context.take(number)?;
        Ok(Self {
            context: Arc::clone(context),
            number,
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.context.give_back(self.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_or_neither_and_refunded() {
        let device = Quota::device("bytes", 100);
        let context = Quota::context(&device, 60);
        let first = Charge::new(&context, 60).unwrap();
        let refused = Charge::new(&context, 1).unwrap_err();
        assert_eq!(
            refused,
            Exceeded {
                level: Level::Context,
                what: "bytes",
                asked: 1,
                used: 60,
                limit: 60
            }
        );
        assert!(refused.to_string().contains("context limit"));
        let other = Quota::context(&device, 60);
        let refused = Charge::new(&other, 41).unwrap_err();
        assert_eq!(
            (refused.level, other.used(), device.used()),
            (Level::Device, 0, 60)
        );
        let second = Charge::new(&other, 40).unwrap();
        assert!(Charge::new(&other, u64::MAX).is_err());
        drop((first, second));
        assert_eq!((context.used(), other.used(), device.used()), (0, 0, 0));
    }

    #[test]
    fn a_share_is_there_whatever_others_take() {
        let device = Quota::device("bytes", 100);
        let quiet = Quota::with_share(&device, 50, 20).unwrap();
        let greedy = Quota::with_share(&device, 100, 20).unwrap();
        assert_eq!((quiet.left(), greedy.left()), (50, 80));
        let all = Charge::new(&greedy, 80).unwrap();
        assert!(Charge::new(&greedy, 1).is_err());
        assert_eq!((quiet.left(), greedy.left()), (20, 0));
        let one_more = Quota::with_share(&device, 50, 1).unwrap_err();
        assert_eq!(one_more.level, Level::Device);
        let share = Charge::new(&quiet, 20).unwrap();
        assert!(Charge::new(&quiet, 1).is_err());
        drop((all, share));
        assert_eq!(device.used(), 40, "the shares");
        quiet.end_share();
        drop(greedy);
        assert_eq!(device.used(), 0);
    }

    proptest! {
        /// Against a list of charges: the device has what each context uses or its share, whatever comes and goes in which order.
        #[test]
        fn adds_up(steps in proptest::collection::vec((0..4_usize, 0..40_u64, any::<bool>()), 1..60)) {
            const LIMIT: u64 = 100;
            let device = Quota::device("things", LIMIT);
            let mut contexts: Vec<(Arc<Quota>, u64, Vec<Charge>)> = Vec::new();
            for (at, number, ends) in steps {
                let charged = |contexts: &[(Arc<Quota>, u64, Vec<Charge>)]| contexts
                    .iter()
                    .map(|(_, share, charges)| charges.iter().map(|it| it.number).sum::<u64>().max(*share))
                    .sum::<u64>();
                let before = charged(&contexts);
                match contexts.get_mut(at) {
                    None => if let Ok(context) = Quota::with_share(&device, 60, number) {
                        contexts.push((context, number, Vec::new()));
                    } else {
                        prop_assert!(before + number > LIMIT);
                    }
                    Some((_, _, charges)) if ends && !charges.is_empty() => drop(charges.remove(0)),
                    Some((context, share, charges)) => {
                        let used: u64 = charges.iter().map(|it| it.number).sum();
                        let more = (used + number).max(*share) - used.max(*share);
                        let fits = used + number <= 60 && before + more <= LIMIT;
                        prop_assert_eq!(number <= context.left(), fits);
                        let charge = Charge::new(context, number);
                        prop_assert_eq!(charge.is_ok(), fits);
                        charges.extend(charge);
                    }
                }
                prop_assert_eq!(device.used(), charged(&contexts));
            }
            drop(contexts);
            prop_assert_eq!(device.used(), 0);
        }
    }
}
