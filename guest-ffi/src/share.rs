//! Memory that is not this context's alone: shared by UUID, passed on as a dma-buf, or made of the guest's own pages.

use std::os::fd::BorrowedFd;

use hostblob_capset::BlobMem;
use hostblob_protocol::Status;
use hostblob_protocol::answers::Answer;
use hostblob_protocol::request::{Import, ImportResource, Share, request_bit};
use hostblob_protocol::virtio_gpu::blob_mem;
use parking_lot::RwLock;

use crate::blob::Blob;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::{Life, Memory, Own};
use crate::session::{Session, check};
use crate::transport::{BlobSpec, TransportKind};

impl Memory {
    /// The UUID under which other contexts of this guest can import the memory ([`Device::import`]): random, so that only who is told
    /// can, and the same each time.
    ///
    /// The memory has been allocated shareable ([`Status::NotShareable`]). It lives until its last name is gone.
    pub fn share(&self) -> Result<[u8; 16]> {
        let what = "share";
        let own = self.shareable(what)?;
        own.session.needs(request_bit::SHARE, what)?;
        let share = Share {
            client_id: own.client_id,
        };
        let answer = own.session.ask(&[share.into()], None)?;
        check(&answer, what)?;
        let [low, high] = answer.details.map(u64::to_le_bytes);
        let mut uuid = [0; 16];
        for (to, from) in uuid.iter_mut().zip(low.into_iter().chain(high)) {
            *to = from;
        }
        Ok(uuid)
    }
}

/// What the answer to an import says: memory type and bytes.
fn imported(session: &Session, answer: &Answer, what: &str) -> Result<(u32, u64)> {
    let [memory_type, bytes] = answer.details;
    let known = u32::try_from(memory_type)
        .ok()
        .filter(|&index| (index as usize) < session.capset().types.len());
    match known {
        Some(index) if bytes != 0 => Ok((index, bytes)),
        _ => Err(Error::Incompatible(format!(
            "{what}: the host names memory type {memory_type} and {bytes} bytes"
        ))),
    }
}

impl Device {
    /// Names memory that another context of this guest shares ([`Memory::share`]), or that a host process handed in.
    ///
    /// [`Status::UnknownUuid`] where there is none, [`Status::Unsupported`] where the host does not serve it. Host GPU work can use it
    /// at once. Mapping it makes a blob for it; where another context has one already, that is [`Status::AlreadyBound`]: pass a
    /// dma-buf on instead.
    pub fn import(&self, uuid: [u8; 16]) -> Result<Memory> {
        let (session, what) = (self.session().clone(), "import");
        session.needs(request_bit::IMPORT, what)?;
        let client_id = session.reserve_client_id();
        let answer = session.ask(&[Import { client_id, uuid }.into()], None)?;
        check(&answer, what)?;
        // Owned before the answer is looked at: the name is given up on an error.
        let mut own = Own {
            client_id,
            memory_type: None,
            host_visible: false,
            shareable: true,
            bytes: 0,
            extra_name: false,
            life: Life::Named(RwLock::new(None)),
            session,
        };
        let (index, bytes) = imported(&own.session, &answer, what)?;
        own.memory_type = Some(index);
        own.bytes = bytes;
        let types = &own.session.capset().types;
        own.host_visible = types
            .get(index as usize)
            .is_some_and(hostblob_capset::MemoryType::is_host_visible);
        Ok(Memory::from_own(own, bytes))
    }

    /// Takes in memory that another process of this guest exported from the same device. [`Status::Unsupported`] over the socket.
    ///
    /// It can be mapped. Where the host serves IMPORT_RESOURCE and knows the memory by a name, host GPU work can use it too, and it can
    /// be shared on; otherwise its [`Memory::client_id`] is 0.
    pub fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<Memory> {
        let session = self.session().clone();
        let raw = session.transport().import_dma_buf(fd)?;
        let bytes = raw.size;
        let blob = Blob::foreign(session.clone(), raw);
        let mut own = Own {
            client_id: 0,
            memory_type: None,
            host_visible: true,
            shareable: true,
            bytes,
            extra_name: false,
            life: Life::WithBlob(blob),
            session,
        };
        if own.session.needs(request_bit::IMPORT_RESOURCE, "").is_ok() {
            match own.name_blob("import of a dma-buf") {
                // A blob without memory of ours (of another capset, or a dumb buffer) can be mapped all the same.
                Err(Error::Status { status, .. }) => log::info!("dma-buf without a name: {status}"),
                other => other?,
            }
        }
        Ok(Memory::from_own(own, bytes))
    }

    /// Memory in the guest's own pages (`VIRTIO_GPU_BLOB_MEM_GUEST`): zeros at first, shareable, mapped by the guest's kernel, and outside
    /// the window. Host GPU work can use it. `size` is in bytes, not 0.
    ///
    /// [`Status::Unsupported`] where the host does not serve such blobs, and over the socket, which reaches no guest pages.
    pub fn allocate_guest(&self, size: u64) -> Result<Memory> {
        let (session, what) = (self.session().clone(), "allocation of guest pages");
        if size == 0 {
            return Err(Error::invalid("size is 0"));
        }
        if session.transport().kind() == TransportKind::Socket {
            let why = format!("{what}: a socket reaches no guest pages");
            return Err(Error::status_of(Status::Unsupported, why));
        }
        if !session.capset().blob_mem.contains(BlobMem::GUEST) {
            return Err(Error::status_of(Status::Unsupported, what));
        }
        session.needs(request_bit::IMPORT_RESOURCE, what)?;
        let bytes = session.blob_size(size)?;
        // Linux refuses a blob id and a command for guest pages, and creates the blob in no context: making the handle attaches it to ours.
        let spec = BlobSpec {
            blob_mem: blob_mem::GUEST,
            blob_id: 0,
            size: bytes,
            mappable: true,
            shareable: true,
            command: &[],
        };
        session.with_refunds(|| {
            let (raw, mapping, _) = session.create_blob(spec, &[], None, what)?;
            let mut own = Own {
                client_id: 0,
                memory_type: None,
                host_visible: true,
                shareable: true,
                bytes,
                extra_name: false,
                life: Life::WithBlob(Blob::new(session.clone(), raw, mapping)),
                session: session.clone(),
            };
            // Creation and attachment are on the control queue before it; a host that refused them refuses this.
            own.name_blob(what)?;
            Ok(Memory::from_own(own, size))
        })
    }
}

impl Own {
    /// Gives the memory of a blob that is attached to this context a client id.
    fn name_blob(&mut self, what: &str) -> Result<()> {
        let Life::WithBlob(blob) = &self.life else {
            return Err(Error::Internal(format!("{what}: no blob to name")));
        };
        let import = ImportResource {
            client_id: self.session.reserve_client_id(),
            resource_id: blob.resource_id(),
        };
        let answer = self.session.ask(&[import.into()], None)?;
        check(&answer, what)?;
        self.client_id = import.client_id;
        self.extra_name = true;
        let (index, bytes) = imported(&self.session, &answer, what)?;
        if bytes < self.bytes {
            return Err(Error::Incompatible(format!(
                "{what}: {} bytes in the guest, {bytes} at the host",
                self.bytes
            )));
        }
        self.memory_type = Some(index);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
