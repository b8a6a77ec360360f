//! Why something did not work.

use std::path::PathBuf;

use hostblob_protocol::Status;
use hostblob_protocol::export::{Outcome, VERSION};
use thiserror::Error;

use crate::stream::StreamError;

/// What every call here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something did not work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens there, or not for us.
    #[error("{path}: {error}")]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The daemon ended, or does not talk to us: it serves processes of its own user alone, and drops those that do not read.
    #[error("the daemon hung up")]
    HungUp,
    /// Nothing came for so long that nothing will.
    #[error("the daemon does not answer")]
    NoAnswer,
    /// What came is not what the protocol says.
    #[error("the daemon breaks the protocol: {0}")]
    Protocol(&'static str),
    /// The connection failed.
    #[error(transparent)]
    Stream(StreamError),
    /// The daemon is of another time.
    #[error("the daemon's export socket speaks version {0}, this library {VERSION}")]
    Version(u32),
    /// The daemon says no.
    #[error("{0}")]
    Outcome(Outcome),
    /// The guest's side of the daemon has no descriptor for us.
    #[error("no descriptor: {0}")]
    Refused(Status),
    /// Memory cannot be mapped or looked at.
    #[error("{0}: {1}")]
    System(&'static str, rustix::io::Errno),
    /// Bytes that are not there.
    #[error("{length} bytes at {offset:#x} do not lie in {size} bytes")]
    OutOfRange {
        /// From where.
        offset: u64,
        /// How many.
        length: u64,
        /// What is there.
        size: u64,
    },
}

impl From<StreamError> for Error {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Closed => Error::HungUp,
            other => Error::Stream(other),
        }
    }
}
