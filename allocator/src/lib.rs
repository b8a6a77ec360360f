//! Host memory that a guest process maps: the core of hostblob, without virtqueues and sockets.
//!
//! One [`Host`] per daemon holds a GPU [`provider`] and the limits. Each VM, or each connection to the local socket, is a
//! [`Guest`] with a [`window`] of its own: contexts, memories and blobs. A VMM that embeds hostblob drives a `Guest` directly.
//!
//! | folder | answers the question |
//! |---|---|
//! | [`window`] | where does the guest see bytes? |
//! | [`provider`] | what attaches a GPU to them? |
//! | `blob` | what does the guest own, and which state changes are legal? |
//! | `context` | who asks for what? |
//! | [`quota`] | how much? |
//! | [`exports`] | which host processes look? |
//! | [`ratelimit`], [`text`] | what may a guest write into our log? what does an operator mean? |
//!
//! A `Guest` belongs to one thread; GPU completion and cleaning of freed spans run on others and meet it through channels.

mod blob;
mod context;
mod error;
pub mod exports;
mod guest;
mod host;
pub mod provider;
pub mod quota;
pub mod ratelimit;
pub mod text;
pub mod window;
mod work;

pub use context::MAX_CONTEXTS;
pub use error::Error;
pub use guest::snapshot;
pub use guest::{
    BlobSpec, Fence, Guest, MAX_GUEST_PIECES, MAX_PIECES, MAX_RESOURCES, MAX_TRANSFER_ROWS, Mapped,
    Mapping, Transfer, Waker,
};
pub use host::{Config, ConfigError, Host, MAX_CONTEXT_OBJECTS, Outside};
pub use work::GPU_TIMEOUT;
