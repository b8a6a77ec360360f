//! Wakes a guest when a time has come.

use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::Waker;

/// A thread with a clock, started when it is first needed: most guests never wait for a host process.
pub(super) struct Alarm {
    waker: Waker,
    deadlines: Option<Sender<Instant>>,
    /// What is set, if that is not over.
    next: Option<Instant>,
}

impl Alarm {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            waker,
            deadlines: None,
            next: None,
        }
    }

    /// The waker is called at `deadline` or before: whoever is woken sets the next one. Where the host gives no thread, whatever wakes the guest
    /// next is late.
    pub(super) fn wake_at(&mut self, deadline: Instant) {
        let is_set = |next: Instant| next <= deadline && next > Instant::now();
        if self.next.is_some_and(is_set) {
            return;
        }
        self.next = Some(deadline);
        let deadlines = self.deadlines.get_or_insert_with(|| {
            let (sender, receiver) = crossbeam_channel::unbounded();
            let waker = Waker::clone(&self.waker);
            let thread = std::thread::Builder::new().name("hostblob-alarm".into());
            if let Err(error) = thread.spawn(move || run(&receiver, &waker)) {
                log::error!("no thread for deadlines: {error}");
            }
            sender
        });
        // The thread ends with the sender, and not before.
        let _ = deadlines.send(deadline);
    }
}

/// Keeps the earliest deadline alone: a guest may wait as often as it likes.
fn run(deadlines: &Receiver<Instant>, waker: &Waker) {
    let mut earliest: Option<Instant> = None;
    loop {
        let next = match earliest {
            Some(first) => deadlines.recv_deadline(first),
            None => deadlines.recv().map_err(RecvTimeoutError::from),
        };
        match next {
            Ok(deadline) => {
                earliest = Some(earliest.map_or(deadline, |first| first.min(deadline)));
            }
            Err(RecvTimeoutError::Timeout) => {
                earliest = None;
                waker();
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_wakes_at_the_earliest_and_then_at_what_is_set_next() {
        let (sender, woken) = crossbeam_channel::unbounded();
        let mut alarm = Alarm::new(Arc::new(move || {
            let _ = sender.send(Instant::now());
        }));
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for milliseconds in [300_000, 40, 300_000] {
            alarm.wake_at(at(milliseconds));
        }
        for milliseconds in [40, 60] {
            let when = woken.recv_timeout(Duration::from_secs(60)).unwrap();
            assert!(when >= at(milliseconds));
            alarm.wake_at(at(60));
        }
        // It was past when it was set for the last time.
        woken.recv_timeout(Duration::from_secs(60)).unwrap();
        // Many that are later than what is set are not even told to the thread.
        alarm.wake_at(at(500_000));
        for more in 0..1000 {
            alarm.wake_at(at(600_000 + more));
        }
        assert_eq!(alarm.next, Some(at(500_000)));
        drop(alarm);
        assert!(woken.recv_timeout(Duration::from_secs(60)).is_err());
    }
}
