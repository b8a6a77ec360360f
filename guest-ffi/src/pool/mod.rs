//! Small requests, served from large blobs without asking the host.
//!
//! | module | answers the question |
//! |---|---|
//! | [`book`] | which bytes of which block are taken? |
//! | [`recent`] | which were freed a moment ago? |
//! | this one | which list does a thread use, and where do blocks come from? |
//!
//! Each memory type has several lists (shards), each behind its own lock. All threads begin on the first; one that keeps finding a
//! list locked moves on to the next, so a program with one thread has one list, and threads that compete get one each. A
//! block is made with no list locked: frees and other threads' requests go on meanwhile.

pub(crate) mod book;
mod recent;

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::Arc;

use hostblob_protocol::Status;
use hostblob_protocol::request::{CacheMode, Create, CreateFlags, MemorySelector};
use hostblob_protocol::virtio_gpu::blob_mem;
use parking_lot::Mutex;

use crate::blob::Blob;
use crate::error::{Error, Result};
use crate::options::{BLOCK_GRANULE, PoolOptions, Statistics};
use crate::region::Mapping;
use crate::session::Session;
use crate::transport::BlobSpec;
use book::{Book, Place, UNIT};

/// A list grows by such a part of what it holds: as much lies idle in its last block, at most, once it is past its first blocks.
const GROWTH: u64 = 16;
/// Most lists per memory type.
const MOST_SHARDS: usize = 8;
/// A thread that has found its list locked this often moves on.
const PATIENCE: u32 = 16;

thread_local! {
    /// This thread's list, and how often it found it locked.
    static HOME: Cell<(usize, u32)> = const { Cell::new((0, 0)) };
}

/// A blob that is cut in pieces.
#[derive(Debug)]
pub(crate) struct Block {
    client_id: u64,
    mapping: Mapping,
    /// Owns the bytes; `mapping` is into it.
    _blob: Blob,
}

/// One list of blocks. Keeps the session alive, and is kept alive by the memories from it.
pub(crate) struct Shard {
    session: Arc<Session>,
    memory_type: u32,
    /// In boxes: what may be a block is given back by each free.
    book: Mutex<Book<Box<Block>>>,
    /// Bytes of a block: at least, at most.
    block: RangeInclusive<u64>,
    /// Held while a block is made.
    growing: Mutex<()>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("memory_type", &self.memory_type)
            .finish_non_exhaustive()
    }
}

/// A piece of a block. Given back on drop.
#[derive(Debug)]
pub(crate) struct Piece {
    shard: Arc<Shard>,
    place: Place,
    client_id: u64,
    address: NonNull<u8>,
}

// SAFETY: `address` is an address in memory that belongs to no thread, and is only given out, never dereferenced here.
unsafe impl Send for Piece {}
// SAFETY: as above; nothing of a `Piece` changes while it lives.
unsafe impl Sync for Piece {}

impl Piece {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.shard.session
    }

    pub(crate) fn memory_type(&self) -> u32 {
        self.shard.memory_type
    }

    pub(crate) fn client_id(&self) -> u64 {
        self.client_id
    }

    /// In the block's memory.
    pub(crate) fn offset(&self) -> u64 {
        self.place.offset()
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// The block's mapping, in which this piece starts at [`Piece::offset`].
    pub(crate) fn block_mapping(&self) -> Result<Mapping> {
        let book = self.shard.book.lock();
        let block = book.payload(&self.place);
        block
            .map(|block| block.mapping.clone())
            .ok_or_else(|| Error::Internal("a live piece has no block".to_owned()))
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let unused = self.shard.book.lock().free(self.place);
        // Destroyed with the list unlocked: it talks to the device.
        drop(unused);
    }
}

impl Shard {
    #[inline(always)]
    fn piece(
        self: &Arc<Self>,
        book: &mut Book<Box<Block>>,
        size: u64,
        alignment: u64,
    ) -> Option<Piece> {
        let (place, block) = book.allocate(size, alignment)?;
        let client_id = block.client_id;
        let Some(address) = block.mapping.address_of(place.offset()) else {
            book.free(place);
            return None;
        };
        Some(Piece {
            shard: self.clone(),
            place,
            client_id,
            address,
        })
    }

    /// Gives empty blocks back; whether there were any.
    pub(crate) fn trim(&self) -> bool {
        let blocks = self.book.lock().trim();
        // Dropped with the list unlocked, for it talks to the device.
        !blocks.is_empty()
    }

    /// Makes a block and takes a piece of it, unless another thread has made one meanwhile.
    fn grow(self: &Arc<Self>, size: u64, alignment: u64) -> Result<Piece> {
        let _growing = self.growing.lock();
        let held = {
            let mut book = self.book.lock();
            if let Some(piece) = self.piece(&mut book, size, alignment) {
                return Ok(piece);
            }
            book.blocks().1
        };
        let least = book::room(size)
            .and_then(|room| room.checked_next_multiple_of(BLOCK_GRANULE))
            .ok_or_else(|| Error::status_of(Status::OutOfHostMemory, "allocate"))?;
        let mut bytes = (held / GROWTH)
            .next_multiple_of(BLOCK_GRANULE)
            .min(*self.block.end())
            .max(*self.block.start())
            .max(least);
        let block = loop {
            match self.make_block(bytes) {
                Ok(block) => break block,
                // The context may not have, or the window not hold, a block as large as we would like.
                Err(error) if bytes > least && error.is_shortage() => {
                    bytes = (bytes / 2).next_multiple_of(BLOCK_GRANULE).max(least);
                }
                Err(error) => return Err(error),
            }
        };
        let mut book = self.book.lock();
        let piece = book
            .add(bytes, block)
            .and_then(|()| self.piece(&mut book, size, alignment));
        piece.ok_or_else(|| {
            // A block that nothing was taken from would stay for nothing, one more with each try.
            let unused = book.trim();
            drop(book);
            // With the list unlocked, for it talks to the device.
            drop(unused);
            Error::Internal(format!("{size} bytes do not fit {bytes}"))
        })
    }

    fn make_block(&self, size: u64) -> Result<Box<Block>> {
        let client_id = self.session.reserve_client_id();
        let create = Create {
            client_id,
            size,
            memory: MemorySelector::Index(self.memory_type),
            flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
            alignment: 0,
            expected_cache: CacheMode::Any,
        };
        let spec = BlobSpec {
            blob_mem: blob_mem::HOST3D,
            blob_id: client_id,
            size,
            mappable: true,
            shareable: false,
            command: &[],
        };
        let what = "allocation of a block";
        let (raw, mapping, _) =
            self.session
                .create_blob(spec, &[create.into()], Some("hostblob block"), what)?;
        let blob = Blob::new(self.session.clone(), raw, mapping);
        Ok(Box::new(Block {
            client_id,
            mapping: blob.mapping()?,
            _blob: blob,
        }))
    }
}

/// The lists of one memory type.
#[derive(Debug)]
pub(crate) struct Pool {
    shards: Vec<Arc<Shard>>,
    /// `nonCoherentAtomSize`: a power of two.
    atom: u64,
}

impl Pool {
    pub(crate) fn new(session: &Arc<Session>, memory_type: u32, options: &PoolOptions) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let count = if options.shards == 0 {
            processors
        } else {
            options.shards
        };
        let most = session.capset().limits.max_blob_size / BLOCK_GRANULE * BLOCK_GRANULE;
        let block = |size: u64| {
            let size = size
                .max(1)
                .checked_next_multiple_of(BLOCK_GRANULE)
                .unwrap_or(most);
            size.min(most.max(BLOCK_GRANULE))
        };
        let shard = |_| {
            Arc::new(Shard {
                session: session.clone(),
                memory_type,
                book: Mutex::default(),
                block: block(options.first_block)..=block(options.largest_block),
                growing: Mutex::new(()),
            })
        };
        let atom = u64::from(session.capset().non_coherent_atom_size.max(1));
        Self {
            atom: atom.next_power_of_two(),
            shards: (0..count.clamp(1, MOST_SHARDS)).map(shard).collect(),
        }
    }

    /// Memory of `size` bytes at a multiple of `alignment`, a power of two.
    #[inline]
    pub(crate) fn allocate(&self, size: u64, alignment: u64) -> Result<Piece> {
        // Neighbours never share an atom: flushing one must not write back stale bytes of the other.
        let size = size
            .checked_add(self.atom - 1)
            .map(|size| size & !(self.atom - 1))
            .ok_or_else(|| Error::status_of(Status::OutOfHostMemory, "allocate"))?;
        let alignment = alignment.max(UNIT).max(self.atom);
        let (home, locked) = HOME.get();
        let shard = self
            .shards
            .get(home % self.shards.len().max(1))
            .ok_or_else(|| Error::Internal("a pool without lists".to_owned()))?;
        let book = shard.book.try_lock();
        if book.is_none() {
            HOME.set(if locked < PATIENCE {
                (home, locked + 1)
            } else {
                (home + 1, 0)
            });
        }
        let mut book = book.unwrap_or_else(|| shard.book.lock());
        if let Some(piece) = shard.piece(&mut book, size, alignment) {
            return Ok(piece);
        }
        let is_new = book.blocks().0 == 0;
        drop(book);
        // A list without blocks was chosen to get some; one with blocks makes more only when the others are full too.
        if !is_new && let Some(piece) = self.take_from_any(size, alignment) {
            return Ok(piece);
        }
        shard
            .grow(size, alignment)
            .or_else(|error| match error.is_shortage() {
                true => self.take_from_any(size, alignment).ok_or(error),
                false => Err(error),
            })
    }

    fn take_from_any(&self, size: u64, alignment: u64) -> Option<Piece> {
        self.shards
            .iter()
            .find_map(|shard| shard.piece(&mut shard.book.lock(), size, alignment))
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = &Arc<Shard>> {
        self.shards.iter()
    }

    pub(crate) fn count(&self, into: &mut Statistics) {
        for shard in &self.shards {
            let book = shard.book.lock();
            let ((blocks, block_bytes), (live, live_bytes)) = (book.blocks(), book.live());
            into.blocks += blocks;
            into.block_bytes += block_bytes;
            into.suballocations += live;
            into.suballocated_bytes += live_bytes;
        }
    }
}

#[cfg(test)]
mod tests;
