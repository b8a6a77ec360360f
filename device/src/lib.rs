//! The virtio-gpu device of hostblob.
//!
//! [`gpu::Gpu`] is the device: commands in, responses out. A [`transport`] carries commands to it and the window to the guest.
//! `hostblobd` (`main.rs`) puts a provider, a transport and limits together for one VM.
//!
//! | module | answers the question |
//! |---|---|
//! | [`gpu`] | what does each command do? |
//! | [`transport`] | how do commands get here? |
//! | [`export`] | how do host processes get at what guests share? |
//! | [`virtqueue`] | how are they read from guest memory? |
//! | [`shutdown`] | how does everything end? |
//! | [`cli`], [`daemon`], [`info`] | what does `hostblobd` do with its flags? |
//! | [`launcher`], [`sandbox`] | what may its processes do, and who starts them? |

pub mod cli;
pub mod daemon;
pub mod export;
pub mod gpu;
pub mod info;
pub mod launcher;
pub mod sandbox;
pub mod shutdown;
pub mod transport;
pub mod virtqueue;

pub use hostblob_allocator::ratelimit;
