//! A scratch file to try a way of attaching on: what a driver really does, as opposed to what it says.
//!
//! Two ranges are written through the file, copied by the GPU, read back through the file, and compared; then the same
//! again with other bytes (a driver that copies at import, or a stale cache, is caught here), and filled by the GPU and
//! read. The file is reached by `pread` and `pwrite`, not by the mapping that was attached: it is the pages that must be
//! shared, as a VMM sees them by a mapping of its own.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::ProviderError;
use super::mapping::{SharedFile, sealed_memfd};

/// What came of trying a way of attaching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// Bytes went both ways.
    Works,
    /// Bytes went both ways, but the type is not host-visible and coherent, or is one of a special kind: not offered.
    WorksButUnfit,
    /// The strategy is not there: the extension or the device node.
    NotOffered(String),
    /// The driver refused.
    Refused(String),
    /// The driver accepted, and the bytes were not there.
    WrongBytes(String),
}

impl fmt::Display for ProbeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("works"),
            Self::WorksButUnfit => f.write_str("works, not offered: not host-visible and coherent"),
            Self::NotOffered(why) => write!(f, "not offered: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::WrongBytes(what) => write!(f, "WRONG BYTES: {what}"),
        }
    }
}

impl From<ProviderError> for ProbeOutcome {
    fn from(error: ProviderError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// What a trial asks of the GPU; each call returns when the work is done.
pub(super) trait Trial {
    /// Copies the range at [`Scratch::source`] to the one at [`Scratch::destination`].
    fn copy(&mut self) -> Result<(), ProviderError>;
    /// Fills the range at [`Scratch::source`].
    fn fill(&mut self, value: u32) -> Result<(), ProviderError>;
}

/// The scratch file: a range to write, one to copy to, and one before them so that offsets are not 0.
pub(super) struct Scratch {
    pub(super) file: Arc<SharedFile>,
    reader: OwnedFd,
    grain: u64,
}

impl Scratch {
    /// A file of ranges of `grain` bytes.
    pub(super) fn new(grain: u64) -> Result<Self, ProviderError> {
        let host = |error: rustix::io::Errno| {
            ProviderError::OutOfHostMemory(format!("scratch file: {error}"))
        };
        let descriptor = sealed_memfd("hostblob-probe", 3 * grain).map_err(host)?;
        let reader = rustix::io::fcntl_dupfd_cloexec(&descriptor, 0).map_err(host)?;
        Ok(Self {
            file: Arc::new(SharedFile::new(descriptor, 3 * grain)?),
            reader,
            grain,
        })
    }

    /// Where the first range begins.
    pub(super) fn source(&self) -> u64 {
        self.grain
    }

    /// Where the second range begins.
    pub(super) fn destination(&self) -> u64 {
        2 * self.grain
    }

    /// Tries it.
    pub(super) fn exercise(&self, trial: &mut impl Trial) -> Result<(), ProbeOutcome> {
        for round in 0..2_u8 {
            let pattern = self.pattern(round);
            self.write(&pattern)?;
            trial.copy()?;
            let found = self.read(self.destination())?;
            compare("a copy by the GPU", &pattern, &found)?;
        }
        let value = 0x5AC3_1E7F_u32;
        trial.fill(value)?;
        let expected: Vec<u8> = value
            .to_le_bytes()
            .into_iter()
            .cycle()
            .take(self.pattern(0).len())
            .collect();
        compare("a fill by the GPU", &expected, &self.read(self.source())?)
    }

    /// Bytes that differ from round to round and have no short period.
    fn pattern(&self, round: u8) -> Vec<u8> {
        let mut word = 0x9E37_79B9_u32.wrapping_add(u32::from(round));
        (0..self.grain)
            .map(|_| {
                word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                word.to_be_bytes()[0]
            })
            .collect()
    }

    fn read(&self, offset: u64) -> Result<Vec<u8>, ProbeOutcome> {
        let mut bytes = vec![0; self.pattern(0).len()];
        match rustix::io::pread(self.reader.as_fd(), &mut bytes[..], offset) {
            Ok(count) if count == bytes.len() => Ok(bytes),
            other => Err(ProbeOutcome::Refused(format!("pread: {other:?}"))),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), ProbeOutcome> {
        match rustix::io::pwrite(&self.reader, bytes, self.source()) {
            Ok(count) if count == bytes.len() => Ok(()),
            other => Err(ProbeOutcome::Refused(format!("pwrite: {other:?}"))),
        }
    }
}

fn compare(what: &str, expected: &[u8], found: &[u8]) -> Result<(), ProbeOutcome> {
    let wrong = expected.iter().zip(found).filter(|(e, f)| e != f).count();
    if wrong == 0 && expected.len() == found.len() {
        return Ok(());
    }
    Err(ProbeOutcome::WrongBytes(format!(
        "after {what}, {wrong} of {} bytes differ",
        expected.len()
    )))
}

#[cfg(test)]
mod tests;
