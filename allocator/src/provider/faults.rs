//! Makes driver calls fail, for tests: software drivers never run out of anything and are never lost.

use parking_lot::Mutex;

/// The calls of a driver that can fail, counted; one of them, or each from one on, is told to.
pub(super) struct Faults<E> {
    /// The error that does not go away again.
    lasting: E,
    /// Calls so far, and which is to fail.
    state: Mutex<(u64, Option<(u64, E)>)>,
}

impl<E: Copy + PartialEq> Faults<E> {
    /// Nothing fails; `lasting` is the error of a lost device.
    pub(super) fn new(lasting: E) -> Self {
        Self {
            lasting,
            state: Mutex::new((0, None)),
        }
    }

    /// Fails the call that is `after` calls away from now; with a lost device, each call from then on.
    pub(super) fn arm(&self, after: u64, error: E) {
        let mut state = self.state.lock();
        let at = state.0 + after;
        state.1 = Some((at, error));
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.state.lock().0
    }

    /// Counts a call, and says whether it fails.
    pub(super) fn next(&self) -> Result<(), E> {
        let mut state = self.state.lock();
        let now = state.0;
        state.0 += 1;
        match state.1 {
            Some((at, error)) if now == at => Err(error),
            Some((at, error)) if now > at && error == self.lasting => Err(error),
            _ => Ok(()),
        }
    }
}
