//! Interrupts: MSI-X vectors as descriptors from the VMM, which source uses which, and the ISR byte.
//!
//! Sources are used by the queue thread, descriptors come from the VMM's messages. The lock is a leaf: nothing is waited for and no other lock is
//! taken under it. A trigger is written to when it is out of the lock: the VMM may have it block.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use parking_lot::Mutex;

use super::layout::{MSIX_PENDING, VECTORS};
use crate::transport::engine::{self, Source};
use crate::transport::line::Line;

/// `VIRTIO_MSI_NO_VECTOR` (virtio 1.3, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR bits (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

#[derive(Debug, Default)]
struct Vector {
    trigger: Option<Line>,
    /// Interrupted while there was no trigger.
    pending: bool,
}

/// All interrupts of the device.
#[derive(Debug)]
pub(super) struct Interrupts {
    vectors: Mutex<[Vector; VECTORS as usize]>,
    /// Vector of the configuration, then of each queue.
    routes: [AtomicU16; 3],
    isr: AtomicU8,
    msix: AtomicBool,
}

impl engine::Signals for Interrupts {
    fn raise(&self, source: Source) {
        Interrupts::raise(self, source);
    }

    fn reset(&self) {
        Interrupts::reset(self);
    }
}

impl Interrupts {
    pub(super) fn new() -> Self {
        Self {
            vectors: Mutex::default(),
            routes: [NO_VECTOR; 3].map(AtomicU16::new),
            isr: AtomicU8::new(0),
            msix: AtomicBool::new(false),
        }
    }

    fn slot(&self, source: Source) -> Option<&AtomicU16> {
        match source {
            Source::Config => self.routes.first(),
            Source::Queue(queue) => self.routes.get(usize::from(queue).checked_add(1)?),
        }
    }

    /// The vector that the driver gave the source.
    pub(super) fn vector(&self, source: Source) -> u16 {
        self.slot(source)
            .map_or(NO_VECTOR, |slot| slot.load(Ordering::SeqCst))
    }

    /// Gives the source a vector. One that does not exist reads back as none (4.1.5.1.2).
    pub(super) fn set_vector(&self, source: Source, vector: u16) {
        if let Some(slot) = self.slot(source) {
            let vector = if vector < VECTORS { vector } else { NO_VECTOR };
            slot.store(vector, Ordering::SeqCst);
        }
    }

    /// Interrupts the guest (4.1.5.1.3 and 4.1.5.1.4).
    pub(super) fn raise(&self, source: Source) {
        if !self.msix.load(Ordering::SeqCst) {
            // There is no interrupt pin: a driver without MSI-X polls this byte.
            let bit = if source == Source::Config {
                ISR_CONFIG
            } else {
                ISR_QUEUE
            };
            self.isr.fetch_or(bit, Ordering::SeqCst);
        }
        let vector = self.vector(source);
        let mut vectors = self.vectors.lock();
        let vector = vectors.get_mut(usize::from(vector));
        let trigger = vector.and_then(Vector::interrupt);
        drop(vectors);
        if let Some(trigger) = trigger {
            trigger.fire();
        }
    }

    /// Reads the ISR byte, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    /// Whether the driver has enabled MSI-X.
    pub(super) fn set_msix(&self, enabled: bool) {
        self.msix.store(enabled, Ordering::SeqCst);
    }

    /// The MSI-X pending bits.
    pub(super) fn pending(&self) -> [u8; MSIX_PENDING.length as usize] {
        let mut bits = 0_u64;
        for (index, vector) in self.vectors.lock().iter().enumerate() {
            bits |= u64::from(vector.pending) << index;
        }
        bits.to_le_bytes()
    }

    /// Sets the triggers of vectors from `start` on, all that were named or none. Only eventfds are taken.
    pub(super) fn connect(&self, start: u32, triggers: Vec<File>) -> io::Result<()> {
        let triggers: Vec<Line> = triggers
            .into_iter()
            .map(Line::new)
            .collect::<io::Result<_>>()?;
        let count = u32::try_from(triggers.len()).unwrap_or(u32::MAX);
        let mut due = Vec::new();
        self.each(start, count, triggers.into_iter(), |vector, trigger| {
            vector.trigger = Some(trigger);
            if std::mem::take(&mut vector.pending) {
                due.extend(vector.interrupt());
            }
        })?;
        due.iter().for_each(Line::fire);
        Ok(())
    }

    /// Takes the triggers of `count` vectors away.
    pub(super) fn disconnect(&self, start: u32, count: u32) -> io::Result<()> {
        self.each(start, count, std::iter::repeat(()), |vector, ()| {
            vector.trigger = None
        })
    }

    /// Takes all triggers away.
    pub(super) fn disconnect_all(&self) {
        *self.vectors.lock() = Default::default();
    }

    /// Fires vectors as the VMM asks (`VFIO_IRQ_SET_DATA_NONE`).
    pub(super) fn fire(&self, start: u32, count: u32) -> io::Result<()> {
        let mut due = Vec::new();
        self.each(start, count, std::iter::repeat(()), |vector, ()| {
            due.extend(vector.interrupt());
        })?;
        due.iter().for_each(Line::fire);
        Ok(())
    }

    /// Routes and what has happened are forgotten; the VMM's triggers stay (virtio 1.3, 2.4.1; VFIO keeps them too).
    pub(super) fn reset(&self) {
        for route in &self.routes {
            route.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.isr.store(0, Ordering::SeqCst);
        for vector in self.vectors.lock().iter_mut() {
            vector.pending = false;
        }
    }

    fn each<T>(
        &self,
        start: u32,
        count: u32,
        values: impl Iterator<Item = T>,
        mut act: impl FnMut(&mut Vector, T),
    ) -> io::Result<()> {
        let mut vectors = self.vectors.lock();
        let range = usize::try_from(start)
            .ok()
            .zip(
                start
                    .checked_add(count)
                    .and_then(|end| usize::try_from(end).ok()),
            )
            .and_then(|(start, end)| vectors.get_mut(start..end))
            .ok_or(io::ErrorKind::InvalidInput)?;
        for (vector, value) in range.iter_mut().zip(values) {
            act(vector, value);
        }
        Ok(())
    }
}

impl Vector {
    /// What is to be fired, under no lock; without a trigger the interrupt waits for one.
    fn interrupt(&mut self) -> Option<Line> {
        if self.trigger.is_none() {
            self.pending = true;
        }
        self.trigger.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap()
    }

    fn file(fd: &OwnedFd) -> File {
        fd.try_clone().unwrap().into()
    }

    fn count(fd: &OwnedFd) -> u64 {
        let mut value = [0; 8];
        rustix::io::read(fd, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
    }

    #[test]
    fn a_source_fires_the_vector_that_it_was_given() {
        let interrupts = Interrupts::new();
        interrupts.set_msix(true);
        let fds = [eventfd(), eventfd(), eventfd()];
        interrupts
            .connect(0, fds.iter().map(file).collect())
            .unwrap();
        interrupts.set_vector(Source::Queue(0), 2);
        interrupts.raise(Source::Queue(0));
        interrupts.raise(Source::Queue(1));
        interrupts.raise(Source::Config);
        assert_eq!(fds.each_ref().map(count), [0, 0, 1]);
        assert_eq!(
            interrupts.take_isr(),
            0,
            "the byte is for drivers without MSI-X (4.1.4.5)"
        );
        interrupts.set_vector(Source::Queue(0), 3);
        assert_eq!(interrupts.vector(Source::Queue(0)), NO_VECTOR);
        assert_eq!(interrupts.vector(Source::Queue(2)), NO_VECTOR);
    }

    #[test]
    fn without_msix_the_isr_byte_says_what_happened_and_is_cleared_by_reading() {
        let interrupts = Interrupts::new();
        interrupts.raise(Source::Queue(1));
        interrupts.raise(Source::Config);
        assert_eq!(interrupts.take_isr(), 3);
        assert_eq!(interrupts.take_isr(), 0);
    }

    #[test]
    fn an_interrupt_without_a_trigger_waits_for_it() {
        let interrupts = Interrupts::new();
        interrupts.set_vector(Source::Config, 1);
        interrupts.raise(Source::Config);
        assert_eq!(interrupts.pending(), [2, 0, 0, 0, 0, 0, 0, 0]);
        let fd = eventfd();
        interrupts.connect(1, vec![file(&fd)]).unwrap();
        assert_eq!((count(&fd), interrupts.pending()), (1, [0; 8]));
        interrupts.disconnect(1, 1).unwrap();
        interrupts.raise(Source::Config);
        assert_eq!(
            (count(&fd), interrupts.pending()),
            (0, [2, 0, 0, 0, 0, 0, 0, 0])
        );
        interrupts.reset();
        assert_eq!(interrupts.pending(), [0; 8]);
    }

    #[test]
    fn vectors_out_of_range_are_refused_whole() {
        let interrupts = Interrupts::new();
        let fd = eventfd();
        for (start, count) in [(0, 4), (3, 1), (2, 2), (u32::MAX, 2)] {
            assert!(interrupts.fire(start, count).is_err());
            assert!(interrupts.disconnect(start, count).is_err());
            assert!(
                interrupts
                    .connect(start, (0..count).map(|_| file(&fd)).collect())
                    .is_err()
            );
        }
        assert_eq!((count(&fd), interrupts.pending()), (0, [0; 8]));
        interrupts.fire(3, 0).unwrap();
    }

    #[test]
    fn only_eventfds_are_taken_all_or_none_and_a_full_one_holds_nobody_up() {
        let interrupts = Interrupts::new();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let fd = eventfd();
        assert!(
            interrupts
                .connect(0, vec![file(&fd), writer.into()])
                .is_err()
        );
        interrupts.fire(0, 1).unwrap();
        assert_eq!((count(&fd), interrupts.pending()[0]), (0, 1));
        interrupts.connect(0, vec![file(&fd)]).unwrap();
        assert_eq!(count(&fd), 1);
        crate::transport::line::jam(&fd);
        interrupts.set_vector(Source::Queue(0), 0);
        for _ in 0..10 {
            interrupts.fire(0, 1).unwrap();
            interrupts.raise(Source::Queue(0));
        }
        assert_eq!(count(&fd), u64::MAX - 1);
    }
}
