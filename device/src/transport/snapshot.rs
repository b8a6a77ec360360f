//! What a transport adds to a snapshot, and who may ask for one.
//!
//! The VMM saves the queues. What it cannot save are the commands that the device has taken and answered after the VMM stopped the queue:
//! the responses are kept until the queue goes on ([`super::vfio_user`]'s engine), here or in another daemon.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostblob_allocator::snapshot::stream::{
    Fields, FormatError, Payload, Reader, Writer, expect_end,
};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

use super::Device;
use crate::gpu::{RestoreError, SaveError};
use crate::virtqueue::{MAX_DESCRIPTORS, QUEUE_SIZE, QUEUES};

/// What a snapshot begins with.
const MAGIC: [u8; 8] = *b"HBLBSNAP";

const QUEUE: u32 = 1;
const RESPONSE: u32 = 2;

/// Longest time that a transfer waits before it looks whether it still has a point.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// A response to a command that was taken from a queue which has stopped since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldResponse {
    pub(crate) queue: u16,
    pub(crate) head: u16,
    /// Where in guest memory it goes.
    pub(crate) segments: Vec<(u64, u32)>,
    pub(crate) bytes: Vec<u8>,
}

/// What the queues hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Stopped queues, and where each goes on.
    pub(crate) queues: Vec<(u16, u16)>,
    pub(crate) responses: Vec<HeldResponse>,
}

impl Held {
    pub(crate) fn write(&self, sink: &mut dyn Write) -> io::Result<()> {
        let mut writer = Writer::new(sink, MAGIC)?;
        for (index, next) in &self.queues {
            let queue = Payload::new()
                .put(index.to_le_bytes())
                .put(next.to_le_bytes());
            writer.section(QUEUE, queue.bytes())?;
        }
        for response in &self.responses {
            let count = u32::try_from(response.segments.len()).unwrap_or(u32::MAX);
            let mut payload = Payload::new()
                .put(response.queue.to_le_bytes())
                .put(response.head.to_le_bytes())
                .put(count.to_le_bytes());
            for (address, length) in &response.segments {
                payload.push(address.to_le_bytes());
                payload.push(length.to_le_bytes());
            }
            payload.push(&response.bytes);
            writer.section(RESPONSE, payload.bytes())?;
        }
        writer.finish()
    }

    pub(crate) fn read(source: &mut dyn Read) -> Result<Self, FormatError> {
        let mut reader = Reader::new(source, MAGIC)?;
        let mut held = Self::default();
        while let Some((kind, payload)) = reader.next_section()? {
            match kind {
                QUEUE if held.responses.is_empty() => {
                    let mut fields = Fields::new("queue", payload);
                    let (index, next) = (fields.u16()?, fields.u16()?);
                    let twice = held.queues.iter().any(|(other, _)| *other == index);
                    if usize::from(index) >= QUEUES || twice {
                        return Err(fields.wrong("a queue that is not there, or twice"));
                    }
                    fields.end()?;
                    held.queues.push((index, next));
                }
                RESPONSE => held.take_response(payload)?,
                _ => return Err(reader.unexpected(kind)),
            }
        }
        Ok(held)
    }

    fn take_response(&mut self, payload: &[u8]) -> Result<(), FormatError> {
        let mut fields = Fields::new("response", payload);
        let (queue, head) = (fields.u16()?, fields.u16()?);
        let same = |other: &HeldResponse| (other.queue, other.head) == (queue, head);
        if !self.queues.iter().any(|(index, _)| *index == queue)
            || head >= QUEUE_SIZE
            || self.responses.iter().any(same)
        {
            return Err(fields.wrong("a chain that no queue holds"));
        }
        let count = fields.u32()?;
        if usize::try_from(count).is_ok_and(|count| count > MAX_DESCRIPTORS) {
            return Err(fields.wrong("more descriptors than a chain has"));
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((fields.u64()?, fields.u32()?));
        }
        self.responses.push(HeldResponse {
            queue,
            head,
            segments,
            bytes: fields.rest().to_vec(),
        });
        Ok(())
    }
}

/// Restores a new device from all of `source`; what belongs to its queues comes back.
pub fn restore<D: Device>(device: &mut D, source: &mut dyn Read) -> Result<Held, RestoreError> {
    let held = Held::read(source)?;
    device.restore(source)?;
    if let Err(error) = expect_end(source) {
        device.reset();
        return Err(error.into());
    }
    Ok(held)
}

/// Restores a new device from a file.
pub fn restore_file<D: Device>(device: &mut D, path: &Path) -> Result<Held, RestoreError> {
    let file = File::open(path).map_err(FormatError::from)?;
    restore(device, &mut BufReader::new(file))
}

/// A device that can be saved between commands.
pub(super) trait Saves: Send + Sync {
    /// Writes the snapshot.
    fn save(&self, sink: &mut dyn Write) -> Result<(), SaveError>;
}

/// What the daemon and its transport know of snapshots: the device of the connection there is, and what the queues of the next one hold.
#[derive(Default)]
pub struct Snapshots {
    current: Mutex<Option<Arc<dyn Saves>>>,
    held: Mutex<Option<Held>>,
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").finish_non_exhaustive()
    }
}

/// A device that can be saved until this drops.
pub(super) struct Registered<'a>(&'a Snapshots);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.current.lock().take();
    }
}

impl Snapshots {
    /// Nothing is restored.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next device was restored, with this.
    pub fn set_held(&self, held: Held) {
        *self.held.lock() = Some(held);
    }

    pub(super) fn take_held(&self) -> Option<Held> {
        self.held.lock().take()
    }

    pub(super) fn register(&self, device: Arc<dyn Saves>) -> Registered<'_> {
        *self.current.lock() = Some(device);
        Registered(self)
    }

    /// Saves the device of the connection there is to a file, which appears when it is whole, and takes the place of one that was there.
    /// Returns its bytes.
    pub fn save_file(&self, path: &Path) -> Result<u64, SaveError> {
        let device = self.current.lock().clone().ok_or(SaveError::NoDevice)?;
        let unready = Unready::new(path)?;
        let mut sink = BufWriter::with_capacity(1 << 20, &unready.file);
        device.save(&mut sink)?;
        sink.flush()?;
        drop(sink);
        Ok(unready.finish(path)?)
    }
}

/// A file under another name, until it is whole.
struct Unready {
    path: PathBuf,
    file: File,
}

impl Unready {
    fn new(target: &Path) -> io::Result<Self> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{}", std::process::id()));
        let path = target.with_file_name(name);
        let file = File::create(&path)?;
        Ok(Self { path, file })
    }

    fn finish(self, target: &Path) -> io::Result<u64> {
        let bytes = self.file.metadata()?.len();
        self.file.sync_all()?;
        std::fs::rename(&self.path, target)?;
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()?;
        Ok(bytes)
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        // Fails where it has its name.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A VMM's descriptor, which may be a pipe that nobody reads or writes: waits for it only while `goes_on`.
///
/// The VMM shares its flags and may take O_NONBLOCK away, so a thread that uses one is ended by [`super::threads::end`]: a call that is interrupted
/// is not tried again when it does not go on.
pub(super) struct Patient<F> {
    file: File,
    goes_on: F,
}

impl<F: Fn() -> bool> Patient<F> {
    pub(super) fn new(file: File, goes_on: F) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        Ok(Self { file, goes_on })
    }

    fn when_ready<R>(
        &mut self,
        flags: PollFlags,
        mut step: impl FnMut(&mut File) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            if !(self.goes_on)() {
                return Err(io::Error::other("the transfer was given up"));
            }
            match step(&mut self.file) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let mut poll = [PollFd::new(&self.file, flags)];
            // Interrupted: one step too many.
            let _ = rustix::event::poll(&mut poll, Some(&PATIENCE));
        }
    }
}

impl<F: Fn() -> bool> Read for Patient<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::IN, |file| file.read(buffer))
    }
}

impl<F: Fn() -> bool> Write for Patient<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::OUT, |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
