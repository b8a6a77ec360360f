//! Decodes the commands of virtio 1.3, 5.7.6.8 to 5.7.6.10, and executes them: one match, each arm one call.

use hostblob_allocator::text::printable;
use hostblob_allocator::{BlobSpec, Fence, Mapping, Transfer};
use hostblob_capset::WindowMode;
use hostblob_protocol::virtio_gpu::{
    CapsetInfo, CmdSubmit, CtrlHdr, CtxCreate, DisplayOne, F_BLOB_ALIGNMENT, F_CONTEXT_INIT,
    F_RESOURCE_BLOB, F_RESOURCE_UUID, F_VIRGL, FLAG_INFO_RING_IDX, GetCapset, GetCapsetInfo,
    MAX_RINGS, MAX_SCANOUTS, MapInfo, ResourceAttachBacking, ResourceCreateBlob, ResourceMapBlob,
    ResourceOnly, ResourceUuid, TransferHost3d, cmd, resp,
};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, FromZeros};

use super::backing::{self, GuestPages};
use super::fault::Fault;
use super::response::Response;
use super::{Gpu, WindowChange};

/// The feature bits that the handlers below serve.
pub(super) const FEATURES: u64 = 1 << F_VIRGL
    | 1 << F_RESOURCE_UUID
    | 1 << F_RESOURCE_BLOB
    | 1 << F_CONTEXT_INIT
    | 1 << F_BLOB_ALIGNMENT;

/// Low byte of `virtio_gpu_ctx_create.context_init`.
const CONTEXT_INIT_CAPSET_ID_MASK: u32 = 0xff;

/// Mask of the one version of our capset.
const CAPSET_MAX_VERSION: u32 = hostblob_capset::VERSION;

/// Reads a command's structure; what follows it comes back too.
fn body<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), Fault> {
    T::read_from_prefix(bytes).map_err(|_| Fault::Truncated {
        needed: size_of::<T>(),
        available: bytes.len(),
    })
}

fn resource_id(bytes: &[u8]) -> Result<u32, Fault> {
    Ok(body::<ResourceOnly>(bytes)?.0.resource_id.get())
}

impl Gpu {
    /// Executes a command. What its response waits for, asked or not, is joined to `until`.
    pub(super) fn run(
        &mut self,
        header: &CtrlHdr,
        bytes: &[u8],
        pages: &dyn GuestPages,
        until: &mut Fence,
    ) -> Result<Response, Fault> {
        let context = header.ctx_id.get();
        let done = || Response::new(header, resp::OK_NODATA, &());
        match header.cmd_type.get() {
            cmd::GET_DISPLAY_INFO => Ok(display_info(header)),
            cmd::GET_CAPSET_INFO => self.capset_info(header, bytes),
            cmd::GET_CAPSET => self.capset(header, bytes),
            cmd::CTX_CREATE => self.create_context(context, bytes).map(|()| done()),
            cmd::CTX_DESTROY => Ok(self.guest.destroy_context(context).map(|()| done())?),
            cmd::CTX_ATTACH_RESOURCE => Ok(self
                .guest
                .attach_resource(context, resource_id(bytes)?)
                .map(|()| done())?),
            cmd::CTX_DETACH_RESOURCE => Ok(self
                .guest
                .detach_resource(context, resource_id(bytes)?)
                .map(|()| done())?),
            cmd::SUBMIT_3D => self.submit(header, bytes).map(|()| done()),
            cmd::RESOURCE_CREATE_BLOB => self.create_blob(context, bytes, pages).map(|()| done()),
            cmd::RESOURCE_MAP_BLOB => self.map_blob(header, bytes),
            cmd::RESOURCE_UNMAP_BLOB => {
                let resource = resource_id(bytes)?;
                let mapping = self.mapping(resource);
                self.guest.unmap_blob(resource)?;
                self.window_change = mapping.map(WindowChange::Unmap);
                Ok(done())
            }
            cmd::RESOURCE_UNREF => {
                let resource = resource_id(bytes)?;
                let mapping = self.mapping(resource);
                until.join(self.guest.unref(resource)?);
                self.window_change = mapping.map(WindowChange::Unmap);
                self.backings.remove(resource);
                Ok(done())
            }
            cmd::RESOURCE_ATTACH_BACKING => self.attach_backing(bytes, pages).map(|()| done()),
            cmd::RESOURCE_DETACH_BACKING => {
                let resource = resource_id(bytes)?;
                until.join(self.guest.detach_backing(resource)?);
                self.backings.remove(resource);
                Ok(done())
            }
            cmd::TRANSFER_TO_HOST_3D | cmd::TRANSFER_FROM_HOST_3D => {
                self.transfer(header, bytes).map(|()| done())
            }
            cmd::RESOURCE_ASSIGN_UUID => self.assign_uuid(header, bytes),
            cmd::RESOURCE_FLUSH | cmd::TRANSFER_TO_HOST_2D => {
                Err(self.not_on_a_blob(header, bytes))
            }
            cmd::SET_SCANOUT | cmd::SET_SCANOUT_BLOB => Err(scanout(bytes, 16)),
            cmd::UPDATE_CURSOR | cmd::MOVE_CURSOR => Err(scanout(bytes, 0)),
            _ => Err(Fault::NotServed),
        }
    }

    fn capset_info(&self, header: &CtrlHdr, bytes: &[u8]) -> Result<Response, Fault> {
        let (asked, _) = body::<GetCapsetInfo>(bytes)?;
        if asked.capset_index.get() != 0 {
            return Err(Fault::Field {
                field: "capset_index",
                value: asked.capset_index.get().into(),
                expected: "0: there is one capset",
            });
        }
        let size = u32::try_from(self.capset.len()).unwrap_or(u32::MAX);
        let info = CapsetInfo {
            capset_id: U32::new(self.capset_id),
            capset_max_version: U32::new(CAPSET_MAX_VERSION),
            capset_max_size: U32::new(size),
            padding: U32::ZERO,
        };
        Ok(Response::new(header, resp::OK_CAPSET_INFO, &info))
    }

    fn capset(&self, header: &CtrlHdr, bytes: &[u8]) -> Result<Response, Fault> {
        let (asked, _) = body::<GetCapset>(bytes)?;
        if asked.capset_id.get() != self.capset_id {
            return Err(Fault::Field {
                field: "capset_id",
                value: asked.capset_id.get().into(),
                expected: "the id that GET_CAPSET_INFO names",
            });
        }
        Ok(Response::new(
            header,
            resp::OK_CAPSET,
            self.capset.as_slice(),
        ))
    }

    fn create_context(&mut self, context: u32, bytes: &[u8]) -> Result<(), Fault> {
        let (asked, _) = body::<CtxCreate>(bytes)?;
        let name = usize::try_from(asked.nlen.get())
            .ok()
            .and_then(|length| asked.debug_name.0.get(..length))
            .ok_or(Fault::Field {
                field: "nlen",
                value: asked.nlen.get().into(),
                expected: "at most 64",
            })?;
        let capset_id = asked.context_init.get() & CONTEXT_INIT_CAPSET_ID_MASK;
        if capset_id != self.capset_id {
            return Err(Fault::Field {
                field: "context_init",
                value: capset_id.into(),
                expected: "the id of our capset",
            });
        }
        Ok(self.guest.create_context(context, &printable(name))?)
    }

    fn submit(&mut self, header: &CtrlHdr, bytes: &[u8]) -> Result<(), Fault> {
        let (asked, rest) = body::<CmdSubmit>(bytes)?;
        let size = asked.size.get();
        let data = usize::try_from(size)
            .ok()
            .and_then(|size| rest.get(..size))
            .ok_or(Fault::Truncated {
                needed: usize::try_from(size).unwrap_or(usize::MAX),
                available: rest.len(),
            })?;
        let ring = ring(header)?;
        Ok(self.guest.submit(header.ctx_id.get(), ring, data)?)
    }

    fn create_blob(
        &mut self,
        context: u32,
        bytes: &[u8],
        pages: &dyn GuestPages,
    ) -> Result<(), Fault> {
        let (asked, rest) = body::<ResourceCreateBlob>(bytes)?;
        let spec = BlobSpec {
            resource_id: asked.resource_id.get(),
            blob_mem: asked.blob_mem.get(),
            blob_flags: asked.blob_flags.get(),
            blob_id: asked.blob_id.get(),
            size: asked.size.get(),
        };
        if asked.nr_entries.get() == 0 {
            return Ok(self.guest.create_blob(context, &spec, None)?);
        }
        let entries = backing::entries(rest, asked.nr_entries.get())?;
        let backing = backing::pieces(&entries, pages)?;
        self.guest.create_blob(context, &spec, Some(backing))?;
        self.backings.insert(spec.resource_id, entries);
        Ok(())
    }

    fn attach_backing(&mut self, bytes: &[u8], pages: &dyn GuestPages) -> Result<(), Fault> {
        let (asked, rest) = body::<ResourceAttachBacking>(bytes)?;
        let resource = asked.resource_id.get();
        let entries = backing::entries(rest, asked.nr_entries.get())?;
        let backing = backing::pieces(&entries, pages)?;
        self.guest.attach_backing(resource, backing)?;
        self.backings.insert(resource, entries);
        Ok(())
    }

    fn transfer(&mut self, header: &CtrlHdr, bytes: &[u8]) -> Result<(), Fault> {
        let (asked, _) = body::<TransferHost3d>(bytes)?;
        if asked.level.get() != 0 {
            return Err(Fault::Field {
                field: "level",
                value: asked.level.get().into(),
                expected: "0: a blob has one",
            });
        }
        let transfer = Transfer {
            x: asked.x.get().into(),
            y: asked.y.get().into(),
            z: asked.z.get().into(),
            width: asked.w.get().into(),
            height: asked.h.get().into(),
            depth: asked.d.get().into(),
            offset: asked.offset.get(),
            stride: asked.stride.get().into(),
            layer_stride: asked.layer_stride.get().into(),
        };
        let to_host = header.cmd_type.get() == cmd::TRANSFER_TO_HOST_3D;
        let (context, ring) = (header.ctx_id.get(), ring(header)?);
        let resource = asked.resource_id.get();
        Ok(self
            .guest
            .transfer(context, ring, resource, to_host, &transfer)?)
    }

    fn assign_uuid(&mut self, header: &CtrlHdr, bytes: &[u8]) -> Result<Response, Fault> {
        let uuid = self.guest.assign_uuid(resource_id(bytes)?)?;
        let body = ResourceUuid {
            uuid: uuid.into_bytes(),
        };
        Ok(Response::new(header, resp::OK_RESOURCE_UUID, &body))
    }

    fn map_blob(&mut self, header: &CtrlHdr, bytes: &[u8]) -> Result<Response, Fault> {
        let (asked, _) = body::<ResourceMapBlob>(bytes)?;
        if !self.window_mapped {
            return Err(Fault::NoWindow);
        }
        let resource = asked.resource_id.get();
        let mapped = self.guest.map_blob(resource, asked.offset.get())?;
        self.window_change = self.mapping(resource).map(WindowChange::Map);
        let info = MapInfo {
            map_info: U32::new(mapped.map_info),
            padding: U32::ZERO,
        };
        Ok(Response::new(header, resp::OK_MAP_INFO, &info))
    }

    /// What the guest reaches where a blob is mapped, if somebody has to know.
    fn mapping(&self, resource: u32) -> Option<Mapping> {
        match self.window_mode {
            WindowMode::Premapped => None,
            WindowMode::OnDemand => self.guest.mapping(resource),
        }
    }

    /// Takes back what a RESOURCE_MAP_BLOB did, which the transport cannot make true. The blob keeps its bytes.
    pub(super) fn take_back_map(&mut self, bytes: &[u8]) {
        if let Ok((asked, _)) = body::<ResourceMapBlob>(bytes) {
            // It was mapped just now.
            let _ = self.guest.unmap_blob(asked.resource_id.get());
        }
    }

    /// Commands on 2D resources and scanouts, which no blob is. All begin with a rectangle and have a resource id after it.
    fn not_on_a_blob(&self, header: &CtrlHdr, bytes: &[u8]) -> Fault {
        let at = match header.cmd_type.get() {
            cmd::TRANSFER_TO_HOST_2D => 24,
            _ => 16,
        };
        match field(bytes, at) {
            Err(fault) => fault,
            Ok(id) if !self.guest.has_resource(id) => {
                hostblob_allocator::Error::UnknownResource(id).into()
            }
            Ok(id) => Fault::Field {
                field: "resource_id",
                value: id.into(),
                expected: "a 2D resource, which a blob is not",
            },
        }
    }
}

/// The ring whose timeline a command is on.
fn ring(header: &CtrlHdr) -> Result<u8, Fault> {
    if header.flags.get() & FLAG_INFO_RING_IDX == 0 {
        return Ok(0);
    }
    if u32::from(header.ring_idx) >= MAX_RINGS {
        return Err(Fault::Field {
            field: "ring_idx",
            value: header.ring_idx.into(),
            expected: "less than 64",
        });
    }
    Ok(header.ring_idx)
}

/// The 32-bit field at `at`.
fn field(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    let truncated = Fault::Truncated {
        needed: at + size_of::<U32>(),
        available: bytes.len(),
    };
    let (value, _) =
        U32::read_from_prefix(bytes.get(at..).unwrap_or_default()).map_err(|_| truncated)?;
    Ok(value.get())
}

fn scanout(bytes: &[u8], at: usize) -> Fault {
    field(bytes, at).map_or_else(|fault| fault, Fault::NoScanout)
}

fn display_info(header: &CtrlHdr) -> Response {
    let modes = <[DisplayOne; MAX_SCANOUTS]>::new_zeroed();
    Response::new(header, resp::OK_DISPLAY_INFO, &modes)
}
