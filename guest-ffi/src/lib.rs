//! Guest library of hostblob: host-visible GPU memory for drivers in a virtual machine, in Rust and C.
//!
//! ```no_run
//! use hostblob_guest::{AllocateInfo, Device, OpenOptions};
//!
//! # fn main() -> hostblob_guest::Result<()> {
//! let device = Device::open(&OpenOptions::default())?;
//! println!("{}", device.capabilities().device_name);
//! let a = device.allocate(&AllocateInfo::new(1 << 20))?;
//! let b = device.allocate(&AllocateInfo::new(1 << 20).dedicated().name("readback"))?;
//! a.write(0, b"written by the guest")?;
//! device.copy(&a, 0, &b, 0, 1 << 20)?.wait(None)?;
//! let mut bytes = [0; 20];
//! b.read(0, &mut bytes)?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | answers the question |
//! |---|---|
//! | `device`, `memory`, `transfer`, `fence`, `blob` | what can a driver call? |
//! | `share` | how does memory come from, and go to, other processes of the guest? |
//! | `buffer`, `buffer_pool` | how do host processes look at it, and when are they done? |
//! | `pool` | how do small requests cost no command? |
//! | `session`, `ledger`, `waits` | how is the host asked, and where does it answer? |
//! | `transport` | how do commands get there: render node, or a socket without a VM? |
//! | `region` | who touches mapped bytes? |
//! | [`ffi`] | the same in C: `hostblob_guest.h` |
//!
//! Environment: [`ENV_SOCKET`] picks a socket, [`ENV_RENDER_NODE`] a node, [`ENV_CAPSET_ID`] a capset id; [`ENV_LOG`] makes the C library, and
//! whoever calls [`log_to_stderr`], log there.
//!
//! `unsafe` is in `region` (mapped memory), `transport::drm` (ioctls), `pool` (an address that crosses threads) and `ffi`.

// The fake daemon of the tests, for tests of what no integration test reaches.
#[cfg(test)]
extern crate self as hostblob_guest;
#[cfg(test)]
#[path = "../tests/fake/mod.rs"]
mod fake;

mod blob;
mod buffer;
mod buffer_pool;
mod device;
mod error;
mod fence;
pub mod ffi;
mod ledger;
mod logger;
mod memory;
mod options;
mod pool;
mod region;
mod session;
mod share;
mod transfer;
mod transport;
mod waits;

pub use hostblob_capset as capset;
pub use hostblob_protocol as protocol;

pub use blob::Blob;
pub use buffer::BufferInfo;
pub use buffer_pool::{BufferDmaBuf, BufferPool, PoolBuffer, STRIDE_ALIGNMENT};
pub use device::Device;
pub use error::{Error, Result};
pub use fence::Fence;
pub use hostblob_capset::{Agreed, Capset};
pub use hostblob_protocol::answers::Answer;
pub use hostblob_protocol::request::{
    ALL_BUFFERS, Access, CacheMode, CreateFlags, MemoryRange, MemorySelector,
};
pub use hostblob_protocol::{Request, Status};
pub use logger::log_to_stderr;
pub use memory::{Memory, WHOLE_SIZE};
pub use options::{
    AllocateInfo, BLOCK_GRANULE, BlobInfo, Budget, DEDICATED_ABOVE, ENV_CAPSET_ID, ENV_LOG,
    ENV_RENDER_NODE, ENV_SOCKET, Endpoint, MapInfo, OpenOptions, PoolOptions, Statistics,
};
pub use transfer::{MOST_TRANSFERS, Transfer};
pub use transport::TransportKind;
pub use waits::MOST_WAITS;
