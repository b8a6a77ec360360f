//! Wakes a guest when a time has come.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::Waker;

/// A thread with a clock, started when it is first needed: most guests never wait for a host process.
pub(super) struct Alarm {
    waker: Waker,
    deadlines: Option<Sender<Instant>>,
}

impl Alarm {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            waker,
            deadlines: None,
        }
    }

    /// The waker is called at `deadline`, or soon after. Where the host gives no thread, whatever wakes the guest next is late.
    pub(super) fn wake_at(&mut self, deadline: Instant) {
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

fn run(deadlines: &Receiver<Instant>, waker: &Waker) {
    let mut ahead = BinaryHeap::new();
    loop {
        let next = match ahead.peek() {
            Some(&Reverse(first)) => deadlines.recv_deadline(first),
            None => deadlines.recv().map_err(RecvTimeoutError::from),
        };
        match next {
            Ok(deadline) => ahead.push(Reverse(deadline)),
            Err(RecvTimeoutError::Timeout) => {
                ahead.pop();
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
    fn it_wakes_once_for_each_deadline_in_their_order() {
        let (sender, woken) = crossbeam_channel::unbounded();
        let mut alarm = Alarm::new(Arc::new(move || {
            let _ = sender.send(Instant::now());
        }));
        let start = Instant::now();
        for milliseconds in [30, 0, 10] {
            alarm.wake_at(start + Duration::from_millis(milliseconds));
        }
        for milliseconds in [0, 10, 30] {
            let when = woken.recv_timeout(Duration::from_secs(60)).unwrap();
            assert!(when >= start + Duration::from_millis(milliseconds));
        }
        drop(alarm);
        assert!(woken.recv_timeout(Duration::from_secs(60)).is_err());
    }
}
