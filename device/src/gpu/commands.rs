//! Decodes the commands of virtio 1.3, 5.7.6.8 to 5.7.6.10, and executes them: one match, each arm one call.

use hostblob_allocator::text::printable;
use hostblob_allocator::{BlobSpec, Fence, Transfer};
use hostblob_protocol::virtio_gpu::{
    CapsetInfo, CmdSubmit, CtrlHdr, CtxCreate, F_BLOB_ALIGNMENT, F_CONTEXT_INIT, F_RESOURCE_BLOB,
    F_RESOURCE_UUID, F_VIRGL, FLAG_INFO_RING_IDX, GetCapset, GetCapsetInfo, MAX_RINGS, MapInfo,
    ResourceAttachBacking, ResourceCreate2d, ResourceCreate3d, ResourceCreateBlob, ResourceFlush,
    ResourceMapBlob, ResourceOnly, ResourceUuid, SetScanout, TransferHost3d, TransferToHost2d, cmd,
    resp,
};
use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::U32;

use super::backing::{self, GuestPages};
use super::fault::Fault;
use super::renderers::{Capset, Renderer};
use super::response::Response;
use super::{Gpu, WindowChange};

/// The feature bits that the handlers below serve.
pub(super) const FEATURES: u64 = 1 << F_VIRGL
    | 1 << F_RESOURCE_UUID
    | 1 << F_RESOURCE_BLOB
    | 1 << F_CONTEXT_INIT
    | 1 << F_BLOB_ALIGNMENT;

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
            cmd::GET_DISPLAY_INFO => {
                let modes = self.images.display_info();
                Ok(Response::new(header, resp::OK_DISPLAY_INFO, &modes))
            }
            cmd::GET_CAPSET_INFO => self.capset_info(header, bytes),
            cmd::GET_CAPSET => self.capset(header, bytes),
            cmd::CTX_CREATE => self.create_context(context, bytes).map(|()| done()),
            cmd::CTX_DESTROY => self.destroy_context(context).map(|()| done()),
            cmd::CTX_ATTACH_RESOURCE => self
                .attach_resource(context, resource_id(bytes)?)
                .map(|()| done()),
            cmd::CTX_DETACH_RESOURCE => self
                .detach_resource(context, resource_id(bytes)?)
                .map(|()| done()),
            cmd::SUBMIT_3D => self.submit(header, bytes).map(|()| done()),
            cmd::RESOURCE_CREATE_2D => self.create_2d(bytes).map(|()| done()),
            cmd::RESOURCE_CREATE_3D => self.create_3d(bytes).map(|()| done()),
            cmd::RESOURCE_CREATE_BLOB => self.create_blob(context, bytes, pages).map(|()| done()),
            cmd::RESOURCE_MAP_BLOB => self.map_blob(header, bytes),
            cmd::RESOURCE_UNMAP_BLOB => {
                let resource = resource_id(bytes)?;
                let mapping = self.mapping(resource);
                self.unmap_resource(resource)?;
                self.window_change = mapping.map(WindowChange::Unmap);
                Ok(done())
            }
            cmd::RESOURCE_UNREF => {
                let resource = resource_id(bytes)?;
                let mapping = self.mapping(resource);
                until.join(self.unref(resource)?);
                self.window_change = mapping.map(WindowChange::Unmap);
                Ok(done())
            }
            cmd::RESOURCE_ATTACH_BACKING => self.attach_backing(bytes, pages).map(|()| done()),
            cmd::RESOURCE_DETACH_BACKING => {
                until.join(self.detach_backing(resource_id(bytes)?)?);
                Ok(done())
            }
            cmd::TRANSFER_TO_HOST_3D | cmd::TRANSFER_FROM_HOST_3D => {
                self.transfer(header, bytes).map(|()| done())
            }
            cmd::RESOURCE_ASSIGN_UUID => self.assign_uuid(header, bytes),
            cmd::TRANSFER_TO_HOST_2D => {
                let (asked, _) = body::<TransferToHost2d>(bytes)?;
                self.check_2d(asked.resource_id.get())?;
                self.images.transfer(&asked).map(|()| done())
            }
            cmd::RESOURCE_FLUSH => {
                let (asked, _) = body::<ResourceFlush>(bytes)?;
                self.check_2d(asked.resource_id.get())?;
                self.images.flush(&asked).map(|()| done())
            }
            cmd::SET_SCANOUT => {
                let (asked, _) = body::<SetScanout>(bytes)?;
                self.images.set_scanout(&asked).map(|()| done())
            }
            cmd::SET_SCANOUT_BLOB => {
                self.images.check_scanout(field(bytes, 16)?)?;
                Err(Fault::NotServed)
            }
            // Who looks at a screen of this device has a pointer of its own.
            cmd::UPDATE_CURSOR | cmd::MOVE_CURSOR => {
                self.images.check_scanout(field(bytes, 0)?).map(|()| done())
            }
            _ => Err(Fault::NotServed),
        }
    }

    /// Ours is the first, then those of other renderers.
    fn capset_info(&self, header: &CtrlHdr, bytes: &[u8]) -> Result<Response, Fault> {
        let index = body::<GetCapsetInfo>(bytes)?.0.capset_index.get();
        let ours = Capset {
            id: self.capset_id,
            max_version: CAPSET_MAX_VERSION,
            max_size: u32::try_from(self.capset.len()).unwrap_or(u32::MAX),
        };
        let others = self.renderer.as_ref().map(Renderer::capsets);
        let mut all = std::iter::once(&ours).chain(others.into_iter().flatten());
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let capset = all.nth(at).ok_or(Fault::Field {
            field: "capset_index",
            value: index.into(),
            expected: "less than num_capsets",
        })?;
        let info = CapsetInfo {
            capset_id: U32::new(capset.id),
            capset_max_version: U32::new(capset.max_version),
            capset_max_size: U32::new(capset.max_size),
            padding: U32::ZERO,
        };
        Ok(Response::new(header, resp::OK_CAPSET_INFO, &info))
    }

    fn capset(&mut self, header: &CtrlHdr, bytes: &[u8]) -> Result<Response, Fault> {
        let (asked, _) = body::<GetCapset>(bytes)?;
        let id = asked.capset_id.get();
        if id == self.capset_id {
            let ours = self.capset.as_slice();
            return Ok(Response::new(header, resp::OK_CAPSET, ours));
        }
        let theirs = self.renderer_of_capset(id).ok_or(Fault::Field {
            field: "capset_id",
            value: id.into(),
            expected: "an id that GET_CAPSET_INFO names",
        })?;
        let theirs = theirs.capset(id, asked.capset_version.get())?;
        Ok(Response::new(header, resp::OK_CAPSET, theirs.as_slice()))
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
        self.make_context(context, asked.context_init.get(), printable(name))
    }

    fn submit(&mut self, header: &CtrlHdr, bytes: &[u8]) -> Result<(), Fault> {
        let data = envelope(bytes)?;
        let (context, ring) = (header.ctx_id.get(), ring(header)?);
        if self.images.has_context(context) {
            return Err(Fault::NotServed);
        }
        match self.renderer_of(context) {
            Some(theirs) => theirs.submit(context, data),
            None => Ok(self.guest.submit(context, ring, data)?),
        }
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
        let count = asked.nr_entries.get();
        let entries = if count == 0 {
            None
        } else {
            Some(backing::entries(rest, count)?)
        };
        self.make_blob(context, &spec, entries, pages)
    }

    fn attach_backing(&mut self, bytes: &[u8], pages: &dyn GuestPages) -> Result<(), Fault> {
        let (asked, rest) = body::<ResourceAttachBacking>(bytes)?;
        let entries = backing::entries(rest, asked.nr_entries.get())?;
        self.attach_pages(asked.resource_id.get(), entries, pages)
    }

    fn transfer(&mut self, header: &CtrlHdr, bytes: &[u8]) -> Result<(), Fault> {
        let (asked, _) = body::<TransferHost3d>(bytes)?;
        let to_host = header.cmd_type.get() == cmd::TRANSFER_TO_HOST_3D;
        let (context, ring) = (header.ctx_id.get(), ring(header)?);
        let resource = asked.resource_id.get();
        if let Some(theirs) = self.renderer_of_resource(resource) {
            return theirs.transfer(context, resource, to_host, transfer_3d(&asked));
        }
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
        let mapped = self.map_resource(resource, asked.offset.get())?;
        self.window_change = self.mapping(resource).map(WindowChange::Map);
        let info = MapInfo {
            map_info: U32::new(mapped.map_info),
            padding: U32::ZERO,
        };
        Ok(Response::new(header, resp::OK_MAP_INFO, &info))
    }

    /// Takes back what a RESOURCE_MAP_BLOB did, which the transport cannot make true. The blob keeps its bytes.
    pub(super) fn take_back_map(&mut self, bytes: &[u8]) {
        if let Ok((asked, _)) = body::<ResourceMapBlob>(bytes) {
            // It was mapped just now.
            let _ = self.unmap_resource(asked.resource_id.get());
        }
    }

    fn create_2d(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let (asked, _) = body::<ResourceCreate2d>(bytes)?;
        self.check_free(asked.resource_id.get())?;
        self.images.create(&asked)
    }

    fn create_3d(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let (asked, _) = body::<ResourceCreate3d>(bytes)?;
        let theirs = self.renderer.as_ref().filter(|theirs| theirs.has_3d());
        theirs.ok_or(Fault::NotServed)?;
        let resource = asked.resource_id.get();
        self.check_free(resource)?;
        let theirs = self.renderer.as_mut();
        let create = rutabaga_gfx::ResourceCreate3D {
            target: asked.target.get(),
            format: asked.format.get(),
            bind: asked.bind.get(),
            width: asked.width.get(),
            height: asked.height.get(),
            depth: asked.depth.get(),
            array_size: asked.array_size.get(),
            last_level: asked.last_level.get(),
            nr_samples: asked.nr_samples.get(),
            flags: asked.flags.get(),
        };
        theirs.ok_or(Fault::NotServed)?.create_3d(resource, create)
    }

    /// TRANSFER_TO_HOST_2D and RESOURCE_FLUSH are for 2D resources, which no blob is.
    fn check_2d(&self, resource: u32) -> Result<(), Fault> {
        if self.images.has(resource) {
            Ok(())
        } else if !self.has_resource(resource) {
            Err(hostblob_allocator::Error::UnknownResource(resource).into())
        } else {
            Err(Fault::Field {
                field: "resource_id",
                value: resource.into(),
                expected: "a 2D resource, which a blob is not",
            })
        }
    }
}

/// The bytes that a SUBMIT_3D carries.
fn envelope(bytes: &[u8]) -> Result<&[u8], Fault> {
    let (asked, rest) = body::<CmdSubmit>(bytes)?;
    let size = usize::try_from(asked.size.get()).unwrap_or(usize::MAX);
    rest.get(..size).ok_or(Fault::Truncated {
        needed: size,
        available: rest.len(),
    })
}

/// The context of a SUBMIT_3D, and the bytes that it carries; nothing of other commands.
pub(super) fn submitted(command: &[u8]) -> Option<(u32, &[u8])> {
    let (header, rest) = CtrlHdr::read_from_prefix(command).ok()?;
    let is_submit = header.cmd_type.get() == cmd::SUBMIT_3D;
    let data = is_submit.then(|| envelope(rest))?;
    Some((header.ctx_id.get(), data.ok()?))
}

fn transfer_3d(asked: &TransferHost3d) -> rutabaga_gfx::Transfer3D {
    rutabaga_gfx::Transfer3D {
        x: asked.x.get(),
        y: asked.y.get(),
        z: asked.z.get(),
        w: asked.w.get(),
        h: asked.h.get(),
        d: asked.d.get(),
        level: asked.level.get(),
        stride: asked.stride.get(),
        layer_stride: asked.layer_stride.get(),
        offset: asked.offset.get(),
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
