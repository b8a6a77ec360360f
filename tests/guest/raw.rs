//! The kernel's virtio-gpu ioctls and nothing else: what a program that knows no library of ours can do.
//!
//! Written from include/uapi/drm/virtgpu_drm.h, apart from `hostblob_guest`, so that a mistake there does not hide here.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags};

/// hostblob's capset id.
pub const CAPSET_ID: u64 = hostblob_guest::protocol::DEFAULT_CAPSET_ID as u64;

/// `VIRTGPU_BLOB_MEM_GUEST`.
pub const BLOB_MEM_GUEST: u32 = 1;
/// `VIRTGPU_BLOB_MEM_HOST3D`.
pub const BLOB_MEM_HOST3D: u32 = 2;
const BLOB_MEM_HOST3D_GUEST: u32 = 3;
/// `VIRTGPU_BLOB_FLAG_USE_MAPPABLE`.
pub const USE_MAPPABLE: u32 = 1;
/// `VIRTGPU_BLOB_FLAG_USE_SHAREABLE`.
pub const USE_SHAREABLE: u32 = 2;

/// `VIRTGPU_CONTEXT_PARAM_CAPSET_ID`.
pub const PARAM_CAPSET_ID: u64 = 1;
/// `VIRTGPU_CONTEXT_PARAM_NUM_RINGS`.
pub const PARAM_NUM_RINGS: u64 = 2;
/// `VIRTGPU_CONTEXT_PARAM_POLL_RINGS_MASK`.
pub const PARAM_POLL_RINGS_MASK: u64 = 3;

#[derive(Debug, Default)]
#[repr(C)]
struct CreateBlob {
    blob_mem: u32,
    blob_flags: u32,
    bo_handle: u32,
    res_handle: u32,
    size: u64,
    pad: u32,
    cmd_size: u32,
    cmd: u64,
    blob_id: u64,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Map {
    offset: u64,
    handle: u32,
    pad: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct GemClose {
    handle: u32,
    pad: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct SetParam {
    param: u64,
    value: u64,
}

#[derive(Debug, Default)]
#[repr(C)]
struct ContextInit {
    num_params: u32,
    pad: u32,
    params: u64,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Wait {
    handle: u32,
    flags: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Execute {
    flags: u32,
    size: u32,
    command: u64,
    bo_handles: u64,
    num_bo_handles: u32,
    fence_fd: i32,
    ring_idx: u32,
    syncobj_stride: u32,
    num_in_syncobjs: u32,
    num_out_syncobjs: u32,
    in_syncobjs: u64,
    out_syncobjs: u64,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Transfer {
    handle: u32,
    /// `x`, `y`, `z`, `w`, `h`, `d`.
    region: [u32; 6],
    level: u32,
    offset: u32,
    stride: u32,
    layer_stride: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Prime {
    handle: u32,
    flags: u32,
    fd: i32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct ResourceInfo {
    bo_handle: u32,
    res_handle: u32,
    size: u32,
    blob_mem: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct GetCaps {
    cap_set_id: u32,
    cap_set_ver: u32,
    addr: u64,
    size: u32,
    pad: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Create3d {
    target: u32,
    format: u32,
    bind: u32,
    width: u32,
    height: u32,
    depth: u32,
    array_size: u32,
    last_level: u32,
    nr_samples: u32,
    flags: u32,
    bo_handle: u32,
    res_handle: u32,
    size: u32,
    stride: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct CreateDumb {
    height: u32,
    width: u32,
    bpp: u32,
    flags: u32,
    handle: u32,
    pitch: u32,
    size: u64,
}

/// `VIRGL_FORMAT_R8_UNORM` and `VIRGL_BIND_VERTEX_BUFFER`.
const FORMAT_R8_UNORM: u32 = 64;
const BIND_VERTEX_BUFFER: u32 = 1 << 4;

/// `VIRTGPU_EXECBUF_RING_IDX`.
const EXECUTE_ON_RING: u32 = 4;

const EXECBUFFER: Opcode = opcode::read_write::<Execute>(b'd', 0x42);
const CREATE_3D: Opcode = opcode::read_write::<Create3d>(b'd', 0x44);
const RESOURCE_INFO: Opcode = opcode::read_write::<ResourceInfo>(b'd', 0x45);
const PRIME_HANDLE_TO_FD: Opcode = opcode::read_write::<Prime>(b'd', 0x2d);
const PRIME_FD_TO_HANDLE: Opcode = opcode::read_write::<Prime>(b'd', 0x2e);
const CREATE_DUMB: Opcode = opcode::read_write::<CreateDumb>(b'd', 0xb2);
const GEM_CLOSE: Opcode = opcode::write::<GemClose>(b'd', 0x09);
const MAP: Opcode = opcode::read_write::<Map>(b'd', 0x41);
const TRANSFER_FROM_HOST: Opcode = opcode::read_write::<Transfer>(b'd', 0x46);
const TRANSFER_TO_HOST: Opcode = opcode::read_write::<Transfer>(b'd', 0x47);
const WAIT: Opcode = opcode::read_write::<Wait>(b'd', 0x48);
const GET_CAPS: Opcode = opcode::read_write::<GetCaps>(b'd', 0x49);
const CREATE_BLOB: Opcode = opcode::read_write::<CreateBlob>(b'd', 0x4a);
const CONTEXT_INIT: Opcode = opcode::read_write::<ContextInit>(b'd', 0x4b);

struct Call<'a, T>(Opcode, &'a mut T);

// SAFETY: `Node::call` is the only maker, and pairs each number with the structure that the kernel's header gives it.
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.1).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// A context on a render node.
#[derive(Debug)]
pub struct Node(OwnedFd);

/// A blob of this context. Not closed by drop: see [`Node::close`].
#[derive(Debug, Clone, Copy)]
pub struct RawBlob {
    /// GEM handle.
    pub handle: u32,
    /// The device's resource id.
    pub resource: u32,
    /// Bytes.
    pub size: u64,
}

// SAFETY: the range belongs to the process; all access is by volatile words and copies, since the host writes too.
unsafe impl Send for Mapped {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapped {}

/// Mapped bytes of a blob. Unmapped on drop.
#[derive(Debug)]
pub struct Mapped {
    address: NonNull<u64>,
    size: usize,
}

impl Node {
    /// A context of our capset on the first node that takes one.
    pub fn open() -> Result<Self> {
        Self::open_for(CAPSET_ID)
    }

    /// A primary node, for mode setting. It has no context.
    pub fn open_card() -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let card = rustix::fs::open("/dev/dri/card0", flags, Mode::empty());
        Ok(Self(card.context("/dev/dri/card0")?))
    }

    /// A context of this capset on the first node that takes one.
    pub fn open_for(capset: u64) -> Result<Self> {
        Self::open_with(&[(PARAM_CAPSET_ID, capset)])
    }

    /// A context with these parameters on the first node that takes one.
    pub fn open_with(parameters: &[(u64, u64)]) -> Result<Self> {
        let mut nodes: Vec<PathBuf> = std::fs::read_dir("/dev/dri")
            .context("/dev/dri")?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.to_string_lossy().contains("renderD"))
            .collect();
        nodes.sort();
        for path in &nodes {
            let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let node = Self(fd);
            let set = |&(param, value): &_| SetParam { param, value };
            let params: Vec<SetParam> = parameters.iter().map(set).collect();
            let mut init = ContextInit {
                num_params: u32::try_from(params.len())?,
                pad: 0,
                params: params.as_ptr().expose_provenance() as u64,
            };
            if node.call(CONTEXT_INIT, &mut init).is_ok() {
                return Ok(node);
            }
        }
        bail!("no render node takes a context of {parameters:?}: {nodes:?}")
    }

    fn call<T>(&self, opcode: Opcode, argument: &mut T) -> Result<(), rustix::io::Errno> {
        loop {
            // SAFETY: each call in this file gives the structure that belongs to the number, alive during the call, as are the
            // buffers that it points to.
            match unsafe { rustix::ioctl::ioctl(self.0.as_fd(), Call(opcode, argument)) } {
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// RESOURCE_CREATE_BLOB with blob_id 0, HOST3D, MAPPABLE.
    pub fn create(&self, size: u64) -> Result<RawBlob> {
        self.create_in(BLOB_MEM_HOST3D, size)
    }

    /// RESOURCE_CREATE_BLOB with blob_id 0, HOST3D_GUEST, MAPPABLE: memory of the host, and pages of the kernel, which are what is mapped.
    pub fn create_with_pages(&self, size: u64) -> Result<RawBlob> {
        self.create_in(BLOB_MEM_HOST3D_GUEST, size)
    }

    fn create_in(&self, blob_mem: u32, size: u64) -> Result<RawBlob> {
        self.create_blob(blob_mem, USE_MAPPABLE, size, 0)
    }

    /// RESOURCE_CREATE_BLOB.
    pub fn create_blob(
        &self,
        blob_mem: u32,
        blob_flags: u32,
        size: u64,
        blob_id: u64,
    ) -> Result<RawBlob> {
        let mut create = CreateBlob {
            blob_mem,
            blob_flags,
            size,
            blob_id,
            ..CreateBlob::default()
        };
        self.call(CREATE_BLOB, &mut create)
            .context("RESOURCE_CREATE_BLOB")?;
        Ok(RawBlob {
            handle: create.bo_handle,
            resource: create.res_handle,
            size,
        })
    }

    /// PRIME_HANDLE_TO_FD: the blob as a dma-buf.
    pub fn export(&self, blob: &RawBlob) -> Result<OwnedFd> {
        let mut prime = Prime {
            handle: blob.handle,
            flags: OFlags::CLOEXEC.bits() | OFlags::RDWR.bits(),
            fd: -1,
        };
        self.call(PRIME_HANDLE_TO_FD, &mut prime)
            .context("PRIME_HANDLE_TO_FD")?;
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
    }

    /// Waits until the device has executed every command before, also those of contexts that are gone, whose end the kernel does not wait for. Works
    /// once in a boot: it asks for a version of the capset that the kernel does not have yet.
    pub fn catch_up(&self) -> Result<()> {
        let mut bytes = [0_u8; 64];
        let mut caps = GetCaps {
            cap_set_id: u32::try_from(CAPSET_ID)?,
            cap_set_ver: 0,
            addr: bytes.as_mut_ptr().expose_provenance() as u64,
            size: u32::try_from(bytes.len())?,
            pad: 0,
        };
        self.call(GET_CAPS, &mut caps).context("GET_CAPS")
    }

    /// PRIME_FD_TO_HANDLE and RESOURCE_INFO: the device's resource id of a dma-buf.
    pub fn resource_of(&self, descriptor: BorrowedFd<'_>) -> Result<u32> {
        let mut prime = Prime {
            fd: descriptor.as_raw_fd(),
            ..Prime::default()
        };
        self.call(PRIME_FD_TO_HANDLE, &mut prime)
            .context("PRIME_FD_TO_HANDLE")?;
        let mut info = ResourceInfo {
            bo_handle: prime.handle,
            ..ResourceInfo::default()
        };
        self.call(RESOURCE_INFO, &mut info)
            .context("RESOURCE_INFO")?;
        Ok(info.res_handle)
    }

    /// EXECBUFFER: SUBMIT_3D, on a ring where one is given. The ring's fence comes as an event of the node, if the context polls that ring.
    pub fn submit(&self, command: &[u8], ring: Option<u32>) -> Result<()> {
        let mut execute = Execute {
            flags: ring.map_or(0, |_| EXECUTE_ON_RING),
            size: u32::try_from(command.len())?,
            command: command.as_ptr().expose_provenance() as u64,
            fence_fd: -1,
            ring_idx: ring.unwrap_or(0),
            ..Execute::default()
        };
        self.call(EXECBUFFER, &mut execute).context("EXECBUFFER")
    }

    /// RESOURCE_CREATE: a 3D resource of a context of virgl, a buffer of so many bytes.
    pub fn create_3d_buffer(&self, bytes: u32) -> Result<RawBlob> {
        let mut create = Create3d {
            format: FORMAT_R8_UNORM,
            bind: BIND_VERTEX_BUFFER,
            width: bytes,
            height: 1,
            depth: 1,
            array_size: 1,
            size: bytes,
            ..Create3d::default()
        };
        self.call(CREATE_3D, &mut create)
            .context("RESOURCE_CREATE")?;
        Ok(RawBlob {
            handle: create.bo_handle,
            resource: create.res_handle,
            size: bytes.into(),
        })
    }

    /// MODE_CREATE_DUMB: a 2D resource of 32 bits per pixel, on a primary node; how long its rows are.
    pub fn create_dumb(&self, width: u32, height: u32) -> Result<(RawBlob, u32)> {
        let mut dumb = CreateDumb {
            width,
            height,
            bpp: 32,
            ..CreateDumb::default()
        };
        self.call(CREATE_DUMB, &mut dumb)
            .context("MODE_CREATE_DUMB")?;
        let blob = RawBlob {
            handle: dumb.handle,
            resource: 0,
            size: dumb.size,
        };
        Ok((blob, dumb.pitch))
    }

    /// MAP and mmap: waits until the host has mapped it.
    pub fn map(&self, blob: &RawBlob) -> Result<Mapped> {
        let mut map = Map {
            handle: blob.handle,
            ..Map::default()
        };
        self.call(MAP, &mut map).context("MAP")?;
        let size = usize::try_from(blob.size)?;
        // SAFETY: a new mapping at an address of the kernel's choice: no memory of ours changes.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &self.0,
                map.offset,
            )
        };
        let address =
            NonNull::new(address.context("mmap of a blob")?.cast()).context("mmap gave null")?;
        Ok(Mapped { address, size })
    }

    /// TRANSFER_TO_HOST: bytes from `offset` of the pages to `x..x + width` of the host's memory. Waits until that is done.
    pub fn to_host(&self, blob: &RawBlob, offset: u32, x: u32, width: u32) -> Result<()> {
        self.transfer(TRANSFER_TO_HOST, blob, offset, x, width)
            .context("TRANSFER_TO_HOST")
    }

    /// TRANSFER_FROM_HOST: the other way.
    pub fn from_host(&self, blob: &RawBlob, offset: u32, x: u32, width: u32) -> Result<()> {
        self.transfer(TRANSFER_FROM_HOST, blob, offset, x, width)
            .context("TRANSFER_FROM_HOST")
    }

    fn transfer(
        &self,
        opcode: Opcode,
        blob: &RawBlob,
        offset: u32,
        x: u32,
        width: u32,
    ) -> Result<()> {
        let mut transfer = Transfer {
            handle: blob.handle,
            region: [x, 0, 0, width, 1, 1],
            offset,
            ..Transfer::default()
        };
        self.call(opcode, &mut transfer)?;
        self.wait(blob)
    }

    /// EXECBUFFER with a fence on `blob`: SUBMIT_3D of these bytes. [`Node::wait`] waits for its end.
    pub fn submit_for(&self, command: &[u8], blob: &RawBlob) -> Result<()> {
        let handles = [blob.handle];
        let mut execute = Execute {
            size: u32::try_from(command.len())?,
            command: command.as_ptr().expose_provenance() as u64,
            bo_handles: handles.as_ptr().expose_provenance() as u64,
            num_bo_handles: 1,
            ..Execute::default()
        };
        self.call(EXECBUFFER, &mut execute).context("EXECBUFFER")
    }

    /// WAIT: the host has executed what was sent for this blob.
    pub fn wait(&self, blob: &RawBlob) -> Result<()> {
        let mut wait = Wait {
            handle: blob.handle,
            flags: 0,
        };
        self.call(WAIT, &mut wait).context("WAIT")
    }

    /// GEM_CLOSE: the kernel destroys it once it is not mapped either.
    pub fn close(&self, blob: RawBlob) -> Result<()> {
        let mut close = GemClose {
            handle: blob.handle,
            pad: 0,
        };
        self.call(GEM_CLOSE, &mut close).context("GEM_CLOSE")
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Mapped {
    /// Copies bytes out.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= self.size);
        let from = self.address.as_ptr().cast::<u8>().wrapping_add(offset);
        // SAFETY: in bounds by the assertion, and mapped until drop. The host has signalled that it is done with them.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    /// Memory of this process, aligned as a blob is.
    pub fn anonymous(size: u64) -> Result<Self> {
        let size = usize::try_from(size)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice: no memory of ours changes.
        let address = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, protection, MapFlags::PRIVATE)
        };
        let address = NonNull::new(address.context("mmap of memory")?.cast());
        Ok(Self {
            address: address.context("mmap gave null")?,
            size,
        })
    }

    /// 64-bit words.
    pub fn words(&self) -> usize {
        self.size / 8
    }

    /// Reads a word.
    pub fn load(&self, index: usize) -> u64 {
        assert!(index < self.words());
        // SAFETY: in bounds by the assertion, and mapped until drop; the host may write at the same time, hence volatile.
        unsafe { self.address.as_ptr().wrapping_add(index).read_volatile() }
    }

    /// Writes a word.
    pub fn store(&self, index: usize, value: u64) {
        assert!(index < self.words());
        // SAFETY: in bounds by the assertion, and mapped until drop.
        unsafe {
            self.address
                .as_ptr()
                .wrapping_add(index)
                .write_volatile(value)
        };
    }

    /// Writes one word of each page.
    pub fn touch(&self) {
        for index in (0..self.words()).step_by(512) {
            self.store(index, 1);
        }
    }

    /// Writes all of it, from `bytes` of the same size.
    pub fn copy_from(&self, bytes: &[u8]) {
        assert!(bytes.len() == self.size);
        // SAFETY: as large as `bytes` by the assertion, mapped until drop; ordinary memory of this process is elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.as_ptr().cast(), self.size)
        };
    }

    /// Writes all of it.
    pub fn fill(&mut self, value: u64) {
        // SAFETY: mapped until drop, aligned to a page, written by nobody else through `&mut`: only memory of this process is filled.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.words()) }.fill(value);
    }

    /// The first word that is not 0.
    pub fn first_not_zero(&self) -> Option<usize> {
        (0..self.words()).find(|&index| self.load(index) != 0)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `Node::map`, and no address of it leaves this type.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.size) };
    }
}
