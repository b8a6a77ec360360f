//! What is measured of hostblob, beside what, and the report that `cargo xtask bench` makes of it.
//!
//! | here | does |
//! |---|---|
//! | [`suballocators`] | the guest library, VMA, gpu-allocator and malloc behind one trait |
//! | [`transfers`] | fills and copies: by the guest library, and by Vulkan itself |
//! | [`vulkan`] | the device that the peers use |
//! | [`record`] | the lines that every program of the bench prints |
//! | [`report`] | tables, bars and plots from them |
//! | [`Driver`], [`Served`] | the device without a transport; a local socket: both over plain memory, so that no GPU driver is measured |
//! | `execute.rs`, `library.rs` | the same for `cargo bench`, which compares with the run before |
//!
//! The programs in `bin/` measure one thing each. What a guest sees, through its kernel and a VMM, is measured by the program `latency` of
//! the package `hostblob-tests`.

#![allow(clippy::expect_used, reason = "a measurement that cannot be made ends")]

pub mod record;
pub mod report;
pub mod staged;
pub mod suballocators;
pub mod transfers;
pub mod vulkan;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use hostblob_allocator::provider::{Choice, Options, open};
use hostblob_allocator::{Config, Host};
use hostblob_device::gpu::{BlobMem, Gpu};
use hostblob_device::shutdown::Shutdown;
use hostblob_device::transport;
use hostblob_guest::{Device, OpenOptions};
use hostblob_protocol::DEFAULT_CAPSET_ID;
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::request::{CacheMode, Create, CreateFlags, MemorySelector};
use hostblob_protocol::virtio_gpu::{
    CmdSubmit, CtrlHdr, CtxCreate, ResourceCreateBlob, ResourceMapBlob, ResourceOnly, blob_flag,
    blob_mem, cmd, resp,
};
use staged::Stage;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of the blobs that the device is measured with.
pub const PAGE: u64 = 4096;
/// The one context.
const CONTEXT: u32 = 1;

/// Whether the first argument is `quick`; the other one is `full`.
///
/// # Errors
/// Where it is neither.
pub fn is_quick() -> anyhow::Result<bool> {
    match std::env::args().nth(1).as_deref() {
        Some("quick") => Ok(true),
        Some("full") => Ok(false),
        other => anyhow::bail!("quick or full, not {other:?}"),
    }
}

/// Generous limits.
pub fn config() -> Config {
    Config {
        window_size: 8 << 30,
        memory_limit: 4 << 30,
        context_limit: 4 << 30,
        context_share: 0,
        warm: hostblob_allocator::window::Warmth::up_to(128 << 20),
    }
}

/// A host of plain memory with generous limits.
///
/// # Panics
/// Where this machine cannot give address space for the window.
pub fn host() -> Arc<Host> {
    let opened = open(Choice::System, &Options::default()).expect("plain memory needs nothing");
    Host::new(opened.provider, config()).expect("a window of 8 GiB")
}

/// A device with one context, driven by commands as they stand in the control queue.
#[derive(Debug)]
pub struct Driver {
    gpu: Gpu,
    next: u32,
}

impl Driver {
    /// A device of `host` with `live` mapped blobs of a page each.
    ///
    /// # Panics
    /// Where a command is refused.
    pub fn new(host: &Arc<Host>, live: u32) -> Self {
        let gpu =
            Gpu::new(host, DEFAULT_CAPSET_ID, BlobMem::HOST3D, Arc::new(|| {})).expect("a window");
        let mut driver = Self { gpu, next: 1 };
        let body = CtxCreate {
            context_init: DEFAULT_CAPSET_ID.into(),
            ..CtxCreate::default()
        };
        driver.run(staged::other, cmd::CTX_CREATE, &body, resp::OK_NODATA);
        for _ in 0..live {
            driver.create();
        }
        driver
    }

    fn run<T: IntoBytes + Immutable>(&mut self, stage: Stage, kind: u32, body: &T, expected: u32) {
        let header = header(kind);
        let command = [header.as_bytes(), body.as_bytes()].concat();
        self.send(stage, &command, expected);
    }

    fn send(&mut self, stage: Stage, command: &[u8], expected: u32) {
        let response = stage(&mut self.gpu, command);
        let header = CtrlHdr::read_from_prefix(response.as_bytes()).map(|(header, _)| header);
        let answered = header.expect("a response has a header").cmd_type.get();
        assert_eq!(answered, expected, "the command was refused");
    }

    /// SUBMIT_3D with CREATE, RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB: what one allocation of the library is on the queue. Returns the resource.
    ///
    /// # Panics
    /// Where a command is refused.
    pub fn create(&mut self) -> u32 {
        let resource = self.next;
        self.next += 1;
        let client_id = u64::from(resource);
        let create = Create {
            client_id,
            size: PAGE,
            memory: MemorySelector::Properties(0x2),
            flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
            alignment: 0,
            expected_cache: CacheMode::Any,
        };
        let envelope = EnvelopeBuilder::new(0).request(create).build();
        let size = u32::try_from(envelope.len()).expect("an envelope is small");
        let body = CmdSubmit {
            size: size.into(),
            ..CmdSubmit::default()
        };
        let header = header(cmd::SUBMIT_3D);
        let command = [header.as_bytes(), body.as_bytes(), &envelope].concat();
        self.send(staged::submit, &command, resp::OK_NODATA);
        let blob = ResourceCreateBlob {
            resource_id: resource.into(),
            blob_mem: blob_mem::HOST3D.into(),
            blob_flags: blob_flag::USE_MAPPABLE.into(),
            nr_entries: 0.into(),
            blob_id: client_id.into(),
            size: PAGE.into(),
        };
        self.run(
            staged::create_blob,
            cmd::RESOURCE_CREATE_BLOB,
            &blob,
            resp::OK_NODATA,
        );
        let map = ResourceMapBlob {
            resource_id: resource.into(),
            // Linux places blobs one after the other.
            offset: (client_id * PAGE).into(),
            ..ResourceMapBlob::default()
        };
        self.run(
            staged::map_blob,
            cmd::RESOURCE_MAP_BLOB,
            &map,
            resp::OK_MAP_INFO,
        );
        resource
    }

    /// RESOURCE_UNMAP_BLOB, RESOURCE_UNREF: the end of an allocation. The next one may have its number.
    ///
    /// # Panics
    /// Where a command is refused.
    pub fn destroy(&mut self, resource: u32) {
        let body = ResourceOnly {
            resource_id: resource.into(),
            ..ResourceOnly::default()
        };
        self.run(
            staged::unmap_blob,
            cmd::RESOURCE_UNMAP_BLOB,
            &body,
            resp::OK_NODATA,
        );
        self.run(staged::unref, cmd::RESOURCE_UNREF, &body, resp::OK_NODATA);
        if resource + 1 == self.next {
            self.next = resource;
        }
    }
}

fn header(kind: u32) -> CtrlHdr {
    CtrlHdr {
        cmd_type: kind.into(),
        ctx_id: CONTEXT.into(),
        ..CtrlHdr::default()
    }
}

/// A daemon's local socket, served by this process.
#[derive(Debug)]
pub struct Served {
    folder: tempfile::TempDir,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves `host`.
    ///
    /// # Panics
    /// Where no socket can be made.
    pub fn new(host: Arc<Host>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let listener = UnixListener::bind(folder.path().join("s")).expect("a socket");
        let shutdown = Shutdown::new().expect("a descriptor");
        let thread = transport::local::spawn(listener, host, DEFAULT_CAPSET_ID, shutdown.clone());
        Self {
            folder,
            shutdown,
            thread: Some(thread.expect("a thread")),
        }
    }

    /// A client of it.
    ///
    /// # Panics
    /// Where it does not answer.
    pub fn open(&self) -> Device {
        Device::open(&OpenOptions::socket(self.folder.path().join("s"))).expect("it is served")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.request();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
