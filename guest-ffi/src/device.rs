//! The device: where memory comes from and work goes to.

use std::sync::Arc;

use hostblob_capset::{Agreed, Capset};
use hostblob_protocol::answers::Answer;
use hostblob_protocol::request::{Create, CreateFlags, MemorySelector, QueryBudget, request_bit};
use hostblob_protocol::virtio_gpu::blob_mem;
use hostblob_protocol::{Request, Status};

use crate::blob::Blob;
use crate::error::{Error, Result};
use crate::memory::{Life, Memory, Own, agrees};
use crate::options::{AllocateInfo, BlobInfo, Budget, OpenOptions, PoolOptions, Statistics};
use crate::pool::Pool;
use crate::session::{Session, check};
use crate::transport::{BlobSpec, TransportKind};

/// A hostblob device, opened by this process: one context at the host.
///
/// Clones are the same device. Callable from any thread. The connection ends when the last clone, memory, blob and fence is gone;
/// the host then frees whatever is left.
#[derive(Debug, Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Arc<Session>,
    /// By memory type; `None` where it is not host-visible.
    pools: Vec<Option<Pool>>,
    dedicated_above: u64,
}

impl Device {
    /// Finds a device, opens a context on it and agrees with the host on what to speak.
    ///
    /// [`Error::NoDevice`] where there is none, [`Error::Incompatible`] where there is one that speaks differently.
    pub fn open(options: &OpenOptions) -> Result<Self> {
        Ok(Self::over(Session::open(options)?, &options.pool))
    }

    pub(crate) fn over(session: Session, options: &PoolOptions) -> Self {
        let session = Arc::new(session);
        let pool = |(index, t): (u32, &hostblob_capset::MemoryType)| {
            t.is_host_visible()
                .then(|| Pool::new(&session, index, options))
        };
        let pools: Vec<_> = (0..).zip(&session.capset().types).map(pool).collect();
        session.set_shards(pools.iter().flatten().flat_map(Pool::shards));
        let dedicated_above = options.dedicated_above;
        Self {
            inner: Arc::new(Inner {
                session,
                pools,
                dedicated_above,
            }),
        }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.inner.session
    }

    /// What the host said of itself.
    pub fn capabilities(&self) -> &Capset {
        self.session().capset()
    }

    /// What both sides speak.
    pub fn agreed(&self) -> &Agreed {
        self.session().agreed()
    }

    /// How the host is reached.
    pub fn transport(&self) -> TransportKind {
        self.session().transport().kind()
    }

    /// Allocates memory.
    ///
    /// Small host-visible requests come out of blocks and cost no command; their bytes are those of earlier memory of this process,
    /// while a fresh blob reads as zeros. See [`AllocateInfo`] for what makes memory dedicated.
    pub fn allocate(&self, info: &AllocateInfo<'_>) -> Result<Memory> {
        let capset = self.capabilities();
        let what = "allocate";
        if info.size == 0 {
            return Err(Error::invalid("size is 0"));
        }
        let page = u64::from(capset.page_size);
        if info.alignment != 0 && !info.alignment.is_power_of_two() || info.alignment > page {
            return Err(Error::invalid(format!(
                "alignment {} is not a power of two up to {page}",
                info.alignment
            )));
        }
        let index = match info.memory {
            MemorySelector::Index(index) => Some(index),
            MemorySelector::Properties(properties) => capset.find_type(properties),
        };
        let memory_type = index.and_then(|index| capset.types.get(usize::try_from(index).ok()?));
        let (Some(index), Some(memory_type)) = (index, memory_type) else {
            return Err(Error::status_of(Status::InvalidMemoryType, what));
        };
        let own = info.dedicated
            || info.shareable
            || !info.map_directly
            || info.size > self.inner.dedicated_above
            || !memory_type.is_host_visible();
        let allocate_own = || {
            let attempt = || self.allocate_own(info, index, memory_type.is_host_visible());
            self.session().with_refunds(attempt)
        };
        if own {
            return allocate_own();
        }
        if !agrees(memory_type.cache, info.expected_cache) {
            return Err(Error::status_of(Status::CacheModeMismatch, what));
        }
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| self.inner.pools.get(index));
        let pool = slot
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::status_of(Status::InvalidMemoryType, what))?;
        match pool.allocate(info.size, info.alignment) {
            Ok(piece) => Ok(Memory::from_piece(piece, info.size)),
            // Where no block is to be had, the little that was asked for may be.
            Err(Error::Status { .. }) => allocate_own(),
            Err(error) => Err(error),
        }
    }

    fn allocate_own(
        &self,
        info: &AllocateInfo<'_>,
        index: u32,
        host_visible: bool,
    ) -> Result<Memory> {
        let session = self.session();
        let what = "allocate";
        let direct = info.map_directly && host_visible;
        let mut flags = CreateFlags::empty();
        flags.set(CreateFlags::HOST_VISIBLE, host_visible);
        flags.set(CreateFlags::SHAREABLE, info.shareable);
        flags.set(CreateFlags::MAP_DIRECTLY, direct);
        if !session.agreed().create_flags.contains(flags) {
            return Err(Error::status_of(Status::Unsupported, what));
        }
        let client_id = session.reserve_client_id();
        let bytes = session.blob_size(info.size)?;
        let create = Create {
            client_id,
            size: bytes,
            memory: info.memory,
            flags,
            alignment: info.alignment,
            expected_cache: info.expected_cache,
        };
        let life = if direct {
            let spec = BlobSpec {
                blob_mem: blob_mem::HOST3D,
                blob_id: client_id,
                size: bytes,
                mappable: true,
                shareable: info.shareable,
                command: &[],
            };
            let (raw, mapping, _) = session.create_blob(spec, &[create.into()], info.name, what)?;
            Life::WithBlob(Blob::new(session.clone(), raw, mapping))
        } else {
            check(&session.ask(&[create.into()], info.name)?, what)?;
            Life::Named(parking_lot::RwLock::new(None))
        };
        let own = Own {
            session: session.clone(),
            client_id,
            memory_type: Some(index),
            host_visible,
            shareable: info.shareable,
            bytes,
            extra_name: false,
            life,
        };
        Ok(Memory::from_own(own, info.size))
    }

    /// What a heap has for this context now.
    pub fn budget(&self, heap: u32) -> Result<Budget> {
        let what = "budget";
        if usize::try_from(heap).is_ok_and(|heap| heap >= self.capabilities().heaps.len()) {
            return Err(Error::invalid(format!("there is no heap {heap}")));
        }
        self.session().needs(request_bit::QUERY_BUDGET, what)?;
        let answer = self.session().ask(&[QueryBudget { heap }.into()], None)?;
        check(&answer, what)?;
        let [budget, usage] = answer.details;
        Ok(Budget { budget, usage })
    }

    /// What this device has done and holds.
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics {
            commands: self.session().commands(),
            ..Statistics::default()
        };
        for pool in self.inner.pools.iter().flatten() {
            pool.count(&mut statistics);
        }
        statistics
    }

    /// A mappable blob of plain host memory (`blob_id` 0): no request, no name, no GPU.
    pub fn create_plain_blob(&self, size: u64) -> Result<Blob> {
        let info = BlobInfo {
            blob_id: 0,
            size,
            mappable: true,
            shareable: false,
            requests: &[],
        };
        self.create_blob(&info)
    }

    /// A blob exactly as described: for tests and tools. Where `requests` do not succeed, their status is the error.
    pub fn create_blob(&self, info: &BlobInfo<'_>) -> Result<Blob> {
        let spec = BlobSpec {
            blob_mem: blob_mem::HOST3D,
            blob_id: info.blob_id,
            size: info.size,
            mappable: info.mappable,
            shareable: info.shareable,
            command: &[],
        };
        let (raw, mapping, _) =
            self.session()
                .create_blob(spec, info.requests, None, "create a blob")?;
        Ok(Blob::new(self.session().clone(), raw, mapping))
    }

    /// Sends requests as they are, in one envelope, and returns the host's answer, whatever it says: for tests and tools.
    pub fn request(&self, requests: &[Request]) -> Result<Answer> {
        self.session().ask(requests, None)
    }

    /// A client id that this library will not use.
    pub fn reserve_client_id(&self) -> u64 {
        self.session().reserve_client_id()
    }
}
