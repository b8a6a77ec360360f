//! Commands: given, fenced, several submissions in flight.
//!
//! GL orders the commands on one buffer object by itself. It knows nothing of two objects over the same pages: where the
//! ranges of two attachments meet in their file, the later command waits for the earlier one here. That is rare
//! (an allocator hands out disjoint ranges), so what is in flight is simply searched.
//!
//! A submission ends with a barrier to the client and a fence, the recipe of GL_ARB_buffer_storage for memory that the CPU
//! sees without mapping it anew; whoever waits for its number sees the bytes. What the CPU wrote before, the submission
//! sees: drivers make the host's writes visible with each batch that they send to the GPU.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::buffer::{GlBytes, size};
use super::context::{Fence, Gl};
use crate::provider::ProviderError;
use crate::provider::desk::At;

/// Submissions in flight. More gain nothing on one context, and each may hold a whole burst.
const MOST_IN_FLIGHT: usize = 16;

/// How long one wait for the GPU takes before it is repeated, with a line in the log.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How often a wait may fail before the context counts as lost.
const MOST_FAILURES: u32 = 100;

/// The pause after a failed wait.
const AFTER_FAILURE: Duration = Duration::from_millis(1);

/// Ranges closer than this count as meeting: a GPU's cache line or two.
const LINE: u64 = 256;

/// The only one that gives commands.
pub(super) struct Commands {
    gl: Rc<Gl>,
    /// The number of the last submission.
    submitted: u64,
    /// All submissions up to this number are finished.
    finished: u64,
    fences: VecDeque<(u64, Fence)>,
    /// Commands were given behind the last fence.
    open: bool,
    /// What the commands in flight reach in files, oldest first.
    touched: VecDeque<(u64, Access)>,
    /// Waits that failed in a row.
    failures: u32,
}

/// A command's reach into a file.
#[derive(Debug, Clone, Copy)]
struct Access {
    buffer: u32,
    file: usize,
    start: u64,
    end: u64,
    writes: bool,
}

impl Access {
    fn new(bytes: &GlBytes, offset: u64, length: u64, writes: bool) -> Option<Self> {
        let (file, start) = bytes.in_file(offset)?;
        Some(Self {
            buffer: bytes.raw(),
            file,
            start: start / LINE * LINE,
            // Inside a file, so far from overflow.
            end: (start + length).next_multiple_of(LINE),
            writes,
        })
    }

    /// Whether the driver does not know that `other` must come after `self`.
    fn conflicts(&self, other: &Self) -> bool {
        self.buffer != other.buffer
            && self.file == other.file
            && self.start < other.end
            && other.start < self.end
            && (self.writes || other.writes)
    }
}

impl Commands {
    pub(super) fn new(gl: &Rc<Gl>) -> Self {
        Self {
            gl: Rc::clone(gl),
            submitted: 0,
            finished: 0,
            fences: VecDeque::new(),
            open: false,
            touched: VecDeque::new(),
            failures: 0,
        }
    }

    /// The number of the last submission.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Gives a fill. The range was checked against the buffer, and is aligned to 4.
    pub(super) fn fill(
        &mut self,
        bytes: &GlBytes,
        offset: u64,
        length: u64,
        value: u32,
    ) -> Result<(), ProviderError> {
        let range = (size(bytes.start() + offset)?, size(length)?);
        let access = Access::new(bytes, offset, length, true);
        self.order(access.as_slice())?;
        // The bytes of the word in memory order are `value`'s little-endian ones; GL writes words in the host's order.
        let value = value.to_le();
        self.gl.call("glClearNamedBufferSubData", |gl| {
            // SAFETY: the buffer is alive, and lives until the submission is done: the desk hands what is released to the
            // answers. The range is inside it; the value is one word, as format and type say, and read at once.
            unsafe {
                (gl.clear_named_buffer_sub_data)(
                    bytes.raw(),
                    glow::R32UI,
                    range.0,
                    range.1,
                    glow::RED_INTEGER,
                    glow::UNSIGNED_INT,
                    (&raw const value).cast(),
                );
            }
        })?;
        self.note(access.as_slice());
        Ok(())
    }

    /// Gives a copy. Ranges were checked against the buffers and do not overlap in memory.
    pub(super) fn copy(
        &mut self,
        source: &At<'_, GlBytes>,
        destination: &At<'_, GlBytes>,
        length: u64,
    ) -> Result<(), ProviderError> {
        // Inside buffers, so far from overflow.
        let start = |at: &At<'_, GlBytes>| size(at.bytes.start() + at.offset);
        let (from, to) = (start(source)?, start(destination)?);
        let bytes = size(length)?;
        let accesses: Vec<Access> = [
            Access::new(source.bytes, source.offset, length, false),
            Access::new(destination.bytes, destination.offset, length, true),
        ]
        .into_iter()
        .flatten()
        .collect();
        self.order(&accesses)?;
        self.gl.call("glCopyNamedBufferSubData", |gl| {
            let (source, destination) = (source.bytes.raw(), destination.bytes.raw());
            // SAFETY: as in `fill`, for both.
            unsafe { (gl.copy_named_buffer_sub_data)(source, destination, from, to, bytes) };
        })?;
        self.note(&accesses);
        Ok(())
    }

    /// Waits for what the driver would not put in order.
    fn order(&mut self, accesses: &[Access]) -> Result<(), ProviderError> {
        let conflicts = |before: &Access| accesses.iter().any(|after| before.conflicts(after));
        let last = self
            .touched
            .iter()
            .rev()
            .find(|(_, before)| conflicts(before));
        let Some((number, _)) = last.copied() else {
            return Ok(());
        };
        if number > self.submitted {
            self.submit()?;
        }
        self.wait(number)
    }

    fn note(&mut self, accesses: &[Access]) {
        self.open = true;
        let number = self.submitted + 1;
        self.touched
            .extend(accesses.iter().map(|access| (number, *access)));
    }

    /// Fences what was given; the number to wait for. It fails only when the context is lost.
    pub(super) fn submit(&mut self) -> Result<u64, ProviderError> {
        if !self.open {
            return Ok(self.submitted);
        }
        if let Some(lost) = self.gl.lost() {
            return Err(lost);
        }
        let barriers = glow::CLIENT_MAPPED_BUFFER_BARRIER_BIT | glow::BUFFER_UPDATE_BARRIER_BIT;
        // SAFETY: both bits exist in 4.5. A refusal changes nothing: the fence stands for the same on every driver known.
        let barrier = self.gl.call("glMemoryBarrier", |gl| unsafe {
            (gl.memory_barrier)(barriers);
        });
        if let Err(error) = barrier {
            log::warn!("{error}");
        }
        let fence = self.gl.fence();
        if let Some(lost) = self.gl.lost() {
            return Err(lost);
        }
        let number = self.submitted + 1;
        match fence {
            Ok(fence) => {
                self.fences.push_back((number, fence));
                self.open = false;
                self.submitted = number;
            }
            Err(error) => {
                // What was given runs all the same; without a fence there is one way to know when it has.
                log::warn!("{error}");
                self.finish()?;
            }
        }
        while self.fences.len() > MOST_IN_FLIGHT {
            let Some(oldest) = self.fences.front().map(|(number, _)| *number) else {
                break;
            };
            self.wait(oldest)?;
        }
        Ok(number)
    }

    fn finish(&mut self) -> Result<(), ProviderError> {
        while let Err(error) = self.gl.finish() {
            self.failed(&error)?;
        }
        self.failures = 0;
        self.gl.check_reset()?;
        self.open = false;
        self.submitted += 1;
        self.fences.clear();
        self.note_finished(self.submitted);
        Ok(())
    }

    /// Whether a submission is done, after waiting for `timeout` at most; an error when the context is lost.
    pub(super) fn reached(
        &mut self,
        number: u64,
        timeout: Duration,
    ) -> Result<bool, ProviderError> {
        while self.finished < number {
            if let Some(lost) = self.gl.lost() {
                return Err(lost);
            }
            let Some((next, fence)) = self.fences.front() else {
                return Ok(true);
            };
            let next = *next;
            match fence.wait(timeout) {
                Ok(true) => {
                    self.failures = 0;
                    // A lost context signals its fences, done or not.
                    self.gl.check_reset()?;
                    self.fences.pop_front();
                    self.note_finished(next);
                }
                Ok(false) => return Ok(false),
                Err(error) => {
                    self.failed(&error)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// A wait that fails says nothing about the work, so it is tried again; a driver that keeps failing is as good as
    /// lost.
    fn failed(&mut self, error: &ProviderError) -> Result<(), ProviderError> {
        self.failures += 1;
        if self.failures >= MOST_FAILURES {
            self.gl.set_lost(&error.to_string());
        }
        if let Some(lost) = self.gl.lost() {
            return Err(lost);
        }
        std::thread::sleep(AFTER_FAILURE);
        Ok(())
    }

    fn note_finished(&mut self, number: u64) {
        self.finished = number;
        while self.touched.front().is_some_and(|(at, _)| *at <= number) {
            self.touched.pop_front();
        }
    }

    /// Waits for a submission, however long it takes; an error when the context is lost.
    pub(super) fn wait(&mut self, number: u64) -> Result<(), ProviderError> {
        while !self.reached(number, PATIENCE)? {
            log::warn!("the GPU has not finished submission {number}, still waiting");
        }
        Ok(())
    }

    /// Whether nothing is under way any more, once the context is lost.
    pub(super) fn is_settled(&self) -> bool {
        self.gl.is_settled()
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        let ended = self.submit().and_then(|number| self.wait(number));
        if let Err(error) = ended {
            log::warn!("at the end: {error}");
            if !self.is_settled() {
                // What may still be under way must not lose its objects: the context stays.
                std::mem::forget(Rc::clone(&self.gl));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_buffers_over_the_same_bytes_conflict_when_one_writes() {
        let access = |buffer, start, end, writes| Access {
            buffer,
            file: 1,
            start,
            end,
            writes,
        };
        let write = access(1, 0, 4096, true);
        assert!(write.conflicts(&access(2, 0, 256, false)));
        assert!(access(2, 0, 256, false).conflicts(&write));
        assert!(write.conflicts(&access(2, 3840, 8192, true)));
        // The driver orders what is on one buffer, and reads need no order.
        assert!(!write.conflicts(&access(1, 0, 256, true)));
        assert!(!access(2, 0, 256, false).conflicts(&access(3, 0, 256, false)));
        assert!(!write.conflicts(&access(2, 4096, 8192, true)));
        let elsewhere = Access { file: 2, ..write };
        assert!(!write.conflicts(&Access {
            buffer: 2,
            ..elsewhere
        }));
    }
}
