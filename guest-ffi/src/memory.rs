//! Memory: what the caller allocated, wherever it lies.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use hostblob_capset::{Cache, MemoryType};
use hostblob_protocol::request::{
    Access, BindClientId, CacheMode, Flush, Free, Invalidate, Map, MemoryRange, Unmap, request_bit,
};
use hostblob_protocol::virtio_gpu::blob_mem;
use hostblob_protocol::{Request, Status};
use parking_lot::RwLock;

use crate::blob::Blob;
use crate::error::{Error, Result};
use crate::options::MapInfo;
use crate::pool::Piece;
use crate::region::Mapping;
use crate::session::{Session, check};
use crate::transport::BlobSpec;

/// `VK_MEMORY_PROPERTY_HOST_COHERENT_BIT`.
pub(crate) const HOST_COHERENT: u32 = 0x4;
/// As a length: up to the end (`VK_WHOLE_SIZE`).
pub const WHOLE_SIZE: u64 = u64::MAX;

/// Memory of the host. Freed on drop (on a render node the kernel does so some time later); keeps the connection alive.
///
/// Callable from any thread. The caller orders accesses to the bytes, between its own threads and with host GPU work, as a Vulkan
/// application does; work that uses the memory is done before it is dropped.
#[derive(Debug)]
pub struct Memory {
    size: u64,
    backing: Backing,
}

#[derive(Debug)]
pub(crate) enum Backing {
    /// A piece of a block.
    Piece(Piece),
    /// A blob of its own.
    Own(Box<Own>),
}

/// Memory with a name of its own at the host.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) session: Arc<Session>,
    /// 0 where the host knows no name: an imported dma-buf, unless `extra_name`.
    pub(crate) client_id: u64,
    pub(crate) memory_type: Option<u32>,
    pub(crate) host_visible: bool,
    pub(crate) shareable: bool,
    pub(crate) bytes: u64,
    /// The name was given to a blob that was there (IMPORT_RESOURCE): it ends by FREE, just before the blob does.
    pub(crate) extra_name: bool,
    pub(crate) life: Life,
}

/// How it came to be, and so how it ends.
#[derive(Debug)]
pub(crate) enum Life {
    /// It belongs to its blob and dies with it: created with MAP_DIRECTLY, imported as a dma-buf, or of guest pages.
    WithBlob(Blob),
    /// Created alone, or imported by its UUID; bound to a blob while it is mapped or exported, freed by its name.
    Named(RwLock<Option<Blob>>),
}

impl Drop for Own {
    fn drop(&mut self) {
        match &mut self.life {
            Life::Named(blob) => drop(blob.get_mut().take()),
            Life::WithBlob(_) if self.extra_name => {}
            Life::WithBlob(_) => return,
        }
        let free = Free {
            client_id: self.client_id,
        };
        self.session.tell(&[free.into()]);
    }
}

impl Own {
    /// Runs `with` on the blob, which is made first where there is none.
    fn with_blob<T>(&self, with: impl FnOnce(&Blob) -> Result<T>) -> Result<T> {
        let slot = match &self.life {
            Life::WithBlob(blob) => return with(blob),
            Life::Named(slot) => slot,
        };
        if let Some(blob) = &*slot.read() {
            return with(blob);
        }
        let mut slot = slot.write();
        if slot.is_none() {
            *slot = Some(self.bind()?);
        }
        match &*slot {
            Some(blob) => with(blob),
            None => Err(Error::Internal("a bound memory has no blob".to_owned())),
        }
    }

    fn bind(&self) -> Result<Blob> {
        self.session
            .needs(request_bit::BIND_CLIENT_ID, "bind memory to a blob")?;
        let bind = Request::from(BindClientId {
            client_id: self.client_id,
        });
        let spec = BlobSpec {
            blob_mem: blob_mem::HOST3D,
            blob_id: self.client_id,
            size: self.bytes,
            mappable: self.host_visible,
            shareable: self.shareable,
            command: &[],
        };
        let what = "bind memory to a blob";
        let attempt = || {
            // The end of the memory's last blob may be on its way to the host, and until it is there the memory is bound. So the request
            // goes alone, and the creation after it: one that the host refuses is a line in the guest's kernel log.
            let busy = Status::AlreadyBound;
            let requests = match self.session.ask_behind_refunds(bind, busy, what)? {
                true => &[],
                false => slice::from_ref(&bind),
            };
            self.session.create_blob(spec, requests, None, what)
        };
        let (raw, mapping, _) = self.session.with_refunds(attempt)?;
        Ok(Blob::new(self.session.clone(), raw, mapping))
    }
}

impl Memory {
    pub(crate) fn from_piece(piece: Piece, size: u64) -> Self {
        Self {
            size,
            backing: Backing::Piece(piece),
        }
    }

    pub(crate) fn from_own(own: Own, size: u64) -> Self {
        Self {
            size,
            backing: Backing::Own(Box::new(own)),
        }
    }

    /// Bytes, as asked for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Index into the capset's types; `None` for a dma-buf that the host knows no name for.
    pub fn memory_type(&self) -> Option<u32> {
        match &self.backing {
            Backing::Piece(piece) => Some(piece.memory_type()),
            Backing::Own(own) => own.memory_type,
        }
    }

    /// Whether it shares a blob with other memory of this process.
    pub fn is_suballocated(&self) -> bool {
        matches!(self.backing, Backing::Piece(_))
    }

    /// The name that the host knows it by, with others if [`Memory::is_suballocated`]; 0 for a dma-buf that it knows no
    /// name for.
    pub fn client_id(&self) -> u64 {
        match &self.backing {
            Backing::Piece(piece) => piece.client_id(),
            Backing::Own(own) => own.client_id,
        }
    }

    /// Its first byte within what [`Memory::client_id`] names.
    pub fn offset(&self) -> u64 {
        match &self.backing {
            Backing::Piece(piece) => piece.offset(),
            Backing::Own(_) => 0,
        }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        match &self.backing {
            Backing::Piece(piece) => piece.session(),
            Backing::Own(own) => &own.session,
        }
    }

    fn type_info(&self) -> Option<&MemoryType> {
        let index = usize::try_from(self.memory_type()?).ok()?;
        self.session().capset().types.get(index)
    }

    /// Where its bytes are: the same address until [`Memory::unmap`] or drop. Cheap to call again.
    pub fn map(&self) -> Result<NonNull<u8>> {
        match &self.backing {
            Backing::Piece(piece) => Ok(piece.address()),
            Backing::Own(own) => {
                Self::must_be_visible(own)?;
                own.with_blob(Blob::map)
            }
        }
    }

    /// [`Memory::map`], refused where the memory is not what the caller counts on.
    pub fn map_with(&self, info: &MapInfo) -> Result<NonNull<u8>> {
        let what = "map";
        if info.access.is_empty() {
            return Err(Error::invalid("access is empty"));
        }
        if let Some(memory_type) = self.type_info()
            && !agrees(memory_type.cache, info.expected_cache)
        {
            return Err(Error::status_of(Status::CacheModeMismatch, what));
        }
        if let Backing::Own(own) = &self.backing
            && own.client_id != 0
            // The guest's kernel maps those blobs, and the host has no say.
            && !own.extra_name
            && own.session.agreed().requests & request_bit::MAP != 0
        {
            let MapInfo {
                expected_cache,
                access,
            } = *info;
            let map = Map {
                client_id: own.client_id,
                expected_cache,
                access,
            };
            check(&own.session.ask(&[map.into()], None)?, what)?;
        }
        self.map()
    }

    /// Names it for people: in the daemon's log, and for host processes that list shared memory. Up to 64 bytes of the name are kept.
    ///
    /// Only memory that the guest can map, with a blob of its own, has a name; nothing happens to other memory's.
    pub fn set_name(&self, name: &str) {
        let Backing::Own(own) = &self.backing else {
            return;
        };
        let maps = own.session.agreed().requests & request_bit::MAP != 0;
        if own.client_id == 0 || own.extra_name || !own.host_visible || !maps {
            return;
        }
        // A MAP that expects nothing of the memory changes nothing; the envelope's name goes to what it names.
        let map = Map {
            client_id: own.client_id,
            expected_cache: CacheMode::Any,
            access: Access::READ | Access::WRITE,
        };
        own.session.tell_named(&[map.into()], Some(name));
    }

    fn must_be_visible(own: &Own) -> Result<()> {
        if own.host_visible {
            return Ok(());
        }
        Err(Error::status_of(Status::NotMappable, "map"))
    }

    /// Gives the address range back; addresses from [`Memory::map`] end. The contents stay.
    ///
    /// Deferred memory leaves the window too, unless it was exported: a dma-buf keeps its place there. Suballocated memory stays where it
    /// is: this does nothing to it.
    pub fn unmap(&self) {
        let Backing::Own(own) = &self.backing else {
            return;
        };
        match &own.life {
            Life::WithBlob(blob) => blob.unmap(),
            Life::Named(slot) => {
                let mut slot = slot.write();
                if let Some(blob) = slot.as_ref().filter(|blob| blob.was_exported()) {
                    return blob.unmap();
                }
                let blob = slot.take();
                let was_bound = blob.is_some();
                // With the lock held: who binds the memory next finds that a blob is on its way.
                drop(blob);
                drop(slot);
                let said = own.session.agreed().requests & request_bit::UNMAP != 0;
                if was_bound && said {
                    let unmap = Unmap {
                        client_id: own.client_id,
                    };
                    own.session.tell(&[unmap.into()]);
                }
            }
        }
    }

    /// The mapping, and where in it the memory starts.
    fn mapping(&self) -> Result<(Mapping, u64)> {
        match &self.backing {
            Backing::Piece(piece) => Ok((piece.block_mapping()?, piece.offset())),
            Backing::Own(own) => {
                Self::must_be_visible(own)?;
                Ok((own.with_blob(Blob::mapping)?, 0))
            }
        }
    }

    /// The address of byte `offset`.
    pub(crate) fn address_of(&self, offset: u64) -> Result<NonNull<u8>> {
        let (mapping, start) = self.mapping()?;
        mapping
            .address_of(start + offset)
            .ok_or_else(|| Error::status_of(Status::OutOfRange, "map"))
    }

    /// Copies `into.len()` bytes from `offset` on out of the memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.range(offset, into.len() as u64, "read")?;
        let (mapping, start) = self.mapping()?;
        mapping.read(start + offset, into)
    }

    /// Copies bytes into the memory.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.range(offset, bytes.len() as u64, "write")?;
        let (mapping, start) = self.mapping()?;
        mapping.write(start + offset, bytes)
    }

    /// Makes CPU writes visible to the host GPU (`vkFlushMappedMemoryRanges`). Nothing to do on coherent types.
    pub fn flush(&self, offset: u64, length: u64) -> Result<()> {
        match self.atoms(offset, length, request_bit::FLUSH, "flush")? {
            Some(range) => check(
                &self.session().ask(&[Flush { range }.into()], None)?,
                "flush",
            ),
            None => Ok(()),
        }
    }

    /// Makes host GPU writes visible to the CPU (`vkInvalidateMappedMemoryRanges`). Nothing to do on coherent types.
    pub fn invalidate(&self, offset: u64, length: u64) -> Result<()> {
        match self.atoms(offset, length, request_bit::INVALIDATE, "invalidate")? {
            Some(range) => check(
                &self.session().ask(&[Invalidate { range }.into()], None)?,
                "invalidate",
            ),
            None => Ok(()),
        }
    }

    /// The range in whole atoms, for a type that is not coherent.
    fn atoms(
        &self,
        offset: u64,
        length: u64,
        bit: u64,
        what: &'static str,
    ) -> Result<Option<MemoryRange>> {
        let range = self.range(offset, length, what)?;
        let coherent = self
            .type_info()
            .is_none_or(|t| t.property_flags & HOST_COHERENT != 0);
        if coherent || range.length == 0 {
            return Ok(None);
        }
        self.session().needs(bit, what)?;
        // Blocks are cut at atoms and blobs end at pages, so whole atoms lie in what is ours.
        let atom = u64::from(self.session().capset().non_coherent_atom_size.max(1));
        let start = range.offset - range.offset % atom;
        let end = range
            .offset
            .saturating_add(range.length)
            .next_multiple_of(atom);
        Ok(Some(MemoryRange {
            offset: start,
            length: end - start,
            ..range
        }))
    }

    /// The range as the host names it, checked against this memory. [`WHOLE_SIZE`] reaches to the end.
    pub(crate) fn range(&self, offset: u64, length: u64, what: &str) -> Result<MemoryRange> {
        let left = self.size.checked_sub(offset);
        let length = match (length, left) {
            (WHOLE_SIZE, Some(left)) => left,
            _ => length,
        };
        if left.is_none_or(|left| length > left) {
            return Err(Error::status_of(Status::OutOfRange, what));
        }
        Ok(MemoryRange {
            client_id: self.client_id(),
            offset: self.offset() + offset,
            length,
        })
    }

    /// The memory with a shareable name of its own, which requests beyond this context need.
    pub(crate) fn shareable(&self, what: &str) -> Result<&Own> {
        match &self.backing {
            Backing::Own(own) if own.client_id == 0 => Err(Error::status_of(
                Status::Unsupported,
                format!("{what} of imported memory without a name"),
            )),
            Backing::Own(own) if own.shareable => Ok(own),
            _ => Err(Error::status_of(Status::NotShareable, what)),
        }
    }

    /// A dma-buf of the memory, which must have been allocated shareable. [`Status::Unsupported`] over the socket.
    pub fn export_dma_buf(&self) -> Result<OwnedFd> {
        match &self.backing {
            Backing::Own(own) if own.shareable => own.with_blob(Blob::export_dma_buf),
            _ => Err(Error::status_of(
                Status::FlagsMismatch,
                "export of memory not shareable",
            )),
        }
    }
}

/// Whether memory of this cache mode is what was expected.
pub(crate) fn agrees(cache: Cache, expected: CacheMode) -> bool {
    match expected {
        CacheMode::Any => true,
        CacheMode::Cached => cache == Cache::Cached,
        CacheMode::Uncached => cache == Cache::Uncached,
        CacheMode::WriteCombined => cache == Cache::WriteCombined,
    }
}
