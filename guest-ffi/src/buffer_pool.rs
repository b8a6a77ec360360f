//! Buffers cut out of one shareable memory, so that a host process opens one dma-buf and sees them all.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use hostblob_capset::MEMORY_PROPERTY_HOST_VISIBLE;
use hostblob_protocol::Status;
use hostblob_protocol::request::{Withdraw, request_bit};
use parking_lot::Mutex;

use crate::buffer::BufferInfo;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::{HOST_COHERENT, Memory};
use crate::options::AllocateInfo;
use crate::pool::book::{self, Book, Place};

/// Rows start at multiples of it, in bytes: what GPUs ask of linear images that they scan out or import.
pub const STRIDE_ALIGNMENT: u32 = 64;

/// One shareable memory, and the buffers in it. Buffers keep it alive. Callable from any thread.
///
/// ```no_run
/// use hostblob_guest::{BufferPool, Device, OpenOptions};
///
/// const DRM_FORMAT_XRGB8888: u32 = 0x3432_5258;
/// # fn main() -> hostblob_guest::Result<()> {
/// # let (width, height, pixels) = (1920, 1080, vec![0; 1920 * 1080 * 4]);
/// let device = Device::open(&OpenOptions::default())?;
/// let pool = BufferPool::new(&device, 2 * 1920 * 1080 * 4)?;
/// let front = pool.allocate(width, height, 4, DRM_FORMAT_XRGB8888)?;
/// let back = pool.allocate(width, height, 4, DRM_FORMAT_XRGB8888)?;
/// for buffer in [&front, &back].into_iter().cycle() {
///     buffer.wait_released(None)?;
///     buffer.write(0, &pixels)?;
///     buffer.present()?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct BufferPool {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Memory,
    page: u64,
    /// Its one block is the memory.
    book: Mutex<Book<()>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl BufferPool {
    /// Allocates and maps memory for buffers of `size` bytes together, each rounded up to pages. The memory is an eighth larger, which
    /// is what rounding costs at worst.
    ///
    /// Host-visible memory, coherent where the host has it. Errors are those of [`Device::allocate`] and of
    /// [`Memory::publish`]: [`Status::Unsupported`] where the host takes no buffers.
    pub fn new(device: &Device, size: u64) -> Result<Self> {
        let what = "a pool of buffers";
        device
            .session()
            .needs(request_bit::PUBLISH | request_bit::WITHDRAW, what)?;
        let capset = device.capabilities();
        let coherent = MEMORY_PROPERTY_HOST_VISIBLE | HOST_COHERENT;
        let properties = match capset.find_type(coherent) {
            Some(_) => coherent,
            None => MEMORY_PROPERTY_HOST_VISIBLE,
        };
        let page = device.session().blob_size(1)?;
        let too_large = || Error::status_of(Status::OutOfHostMemory, what);
        let bytes = size
            .checked_add(size / 8)
            .and_then(|size| size.checked_next_multiple_of(page))
            .ok_or_else(too_large)?;
        let info = AllocateInfo::new(bytes).properties(properties);
        let memory = device.allocate(&info.shareable().name("hostblob buffers"))?;
        memory.map()?;
        let mut book = Book::default();
        book.add(bytes, ()).ok_or_else(too_large)?;
        Ok(Self {
            inner: Arc::new(Inner {
                memory,
                page,
                book: Mutex::new(book),
            }),
        })
    }

    /// The memory, for fill, copy, export and share.
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// Cuts out a buffer and publishes it. Its rows are `width * bytes_per_pixel` bytes, rounded up to [`STRIDE_ALIGNMENT`]; it starts at a
    /// page. `fourcc` is a `DRM_FORMAT_*`, or 0; the modifier is `DRM_FORMAT_MOD_LINEAR`.
    ///
    /// Its bytes are those of an earlier buffer of the pool, or zeros. [`Status::OutOfHostMemory`] where the pool has no room,
    /// [`Status::InvalidArgument`] where a number is 0 or a row too long.
    pub fn allocate(
        &self,
        width: u32,
        height: u32,
        bytes_per_pixel: u32,
        fourcc: u32,
    ) -> Result<PoolBuffer> {
        let stride = width
            .checked_mul(bytes_per_pixel)
            .and_then(|row| row.checked_next_multiple_of(STRIDE_ALIGNMENT));
        let stride = stride
            .ok_or_else(|| Error::invalid(format!("a row of {width} x {bytes_per_pixel} bytes")))?;
        let mut info = BufferInfo {
            offset: 0,
            width,
            height,
            stride,
            fourcc,
            modifier: 0,
        };
        if info.size() == 0 {
            return Err(Error::invalid(format!(
                "a buffer of {width} x {height} pixels of {bytes_per_pixel} bytes"
            )));
        }
        let inner = &self.inner;
        let full = || Error::status_of(Status::OutOfHostMemory, "a buffer of the pool");
        // With all of its room, the same buffer fits where one has been freed. The room of pages is pages, so every offset is a page's.
        let pages = info.size().checked_next_multiple_of(inner.page);
        let bytes = pages.and_then(book::room).ok_or_else(full)?;
        let place = {
            let mut book = inner.book.lock();
            let taken = book.allocate(bytes, inner.page);
            taken.map(|(place, ())| place).ok_or_else(full)?
        };
        info.offset = place.offset();
        if let Err(error) = inner.memory.publish(&info) {
            inner.book.lock().free(place);
            return Err(error);
        }
        Ok(PoolBuffer {
            pool: inner.clone(),
            place,
            info,
        })
    }
}

/// A dma-buf with a buffer in it.
#[derive(Debug)]
pub struct BufferDmaBuf {
    /// Of the whole memory.
    pub fd: OwnedFd,
    /// First byte of the buffer.
    pub offset: u64,
    /// Bytes from one row to the next.
    pub stride: u32,
}

/// A published buffer of a [`BufferPool`]. Drop withdraws it and gives its bytes to the next one: whoever must not see those waits
/// for its release first.
#[derive(Debug)]
pub struct PoolBuffer {
    pool: Arc<Inner>,
    place: Place,
    info: BufferInfo,
}

impl PoolBuffer {
    /// What host processes know of it.
    pub fn info(&self) -> &BufferInfo {
        &self.info
    }

    /// First byte in the memory of the pool.
    pub fn offset(&self) -> u64 {
        self.info.offset
    }

    /// Bytes from one row to the next.
    pub fn stride(&self) -> u32 {
        self.info.stride
    }

    /// Bytes of all rows.
    pub fn size(&self) -> u64 {
        self.info.size()
    }

    /// The memory of the pool.
    pub fn memory(&self) -> &Memory {
        &self.pool.memory
    }

    /// Where its [`PoolBuffer::size`] bytes are: the same address as long as it lives, if nobody unmaps the pool's memory.
    pub fn map(&self) -> Result<NonNull<u8>> {
        self.pool.memory.address_of(self.info.offset)
    }

    /// Copies `into.len()` bytes from `offset` of the buffer on out of it.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let offset = self.within(offset, into.len() as u64, "read of a buffer")?;
        self.pool.memory.read(offset, into)
    }

    /// Copies bytes into the buffer.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let offset = self.within(offset, bytes.len() as u64, "write of a buffer")?;
        self.pool.memory.write(offset, bytes)
    }

    /// The offset in the pool's memory, where the range lies inside the buffer.
    fn within(&self, offset: u64, length: u64, what: &str) -> Result<u64> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size() => Ok(self.info.offset + offset),
            _ => Err(Error::status_of(Status::OutOfRange, what)),
        }
    }

    /// A dma-buf of the pool's memory, and where in it the buffer is. [`Status::Unsupported`] over the socket.
    pub fn export_dma_buf(&self) -> Result<BufferDmaBuf> {
        Ok(BufferDmaBuf {
            fd: self.pool.memory.export_dma_buf()?,
            offset: self.info.offset,
            stride: self.info.stride,
        })
    }

    /// [`Memory::present`] of it.
    pub fn present(&self) -> Result<()> {
        self.pool.memory.present(self.info.offset)
    }

    /// [`Memory::wait_released`] of it.
    pub fn wait_released(&self, timeout: Option<Duration>) -> Result<()> {
        self.pool.memory.wait_released(self.info.offset, timeout)
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        let withdraw = Withdraw {
            client_id: self.pool.memory.client_id(),
            offset: self.info.offset,
        };
        // Before the place is free: the next buffer there is published after it.
        self.pool.memory.session().tell(&[withdraw.into()]);
        self.pool.book.lock().free(self.place);
    }
}
