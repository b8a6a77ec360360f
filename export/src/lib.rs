//! Memory that a guest of hostblob shares, in a process of the host: a compositor, an encoder, a test.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use hostblob_export::{Client, Event, Mapping};
//!
//! let mut client = Client::connect("/run/user/1000/hostblob-export.sock")?;
//! for blob in client.list()? {
//!     println!("{} {:?}: {} buffers", blob.id, blob.name, blob.buffers.len());
//!     let opened = client.open(blob.id)?;
//!     let mapping = Mapping::new(&opened.descriptor, opened.size)?;
//!     while let Some(event) = client.next_event(Duration::from_secs(1))? {
//!         if let Event::Presented { blob: id, offset, .. } = event {
//!             let mut first = [0; 4];
//!             mapping.read(offset, &mut first)?;
//!             client.release(id, offset)?;
//!         }
//!     }
//!     client.close(blob.id)?;
//! }
//! # Ok::<(), hostblob_export::Error>(())
//! ```
//!
//! Calls wait for the daemon's answer, which takes it no time, but for [`Client::open`]: there the guest's side is asked, for 5 s at
//! most. There is no thread. Whoever does not call [`Client::next_event`] for long, while the guest does much, loses the
//! connection: the daemon keeps 16384 events for us.
//!
//! `docs/export.md` has the messages, for clients in other languages; [`stream`] is their transport, and the daemon uses it too.

mod client;
mod error;
mod mapping;
pub mod stream;
mod types;

pub use client::Client;
pub use error::{Error, Result};
pub use hostblob_protocol::export::{Layout, Outcome};
pub use mapping::Mapping;
pub use types::{Blob, BlobId, Buffer, Event, Exported, Token};
