//! What the benchmarks measure: the device without a transport, and the library over the local socket. Plain memory stands behind both,
//! so that no GPU driver is measured.
//!
//! | file | measures |
//! |---|---|
//! | `execute.rs` | commands of the control queue, decoded and executed |
//! | `library.rs` | allocate and free of the guest library |
//!
//! What a guest sees, through its kernel and a VMM, is measured by the program `latency` of the package `hostblob-tests`.

#![allow(clippy::expect_used, reason = "a measurement that cannot be made ends")]

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use hostblob_allocator::provider::{Choice, Options, open};
use hostblob_allocator::{Config, Host};
use hostblob_device::gpu::{BlobMem, Gpu, NoPages};
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
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of the blobs that the device is measured with.
pub const PAGE: u64 = 4096;
/// The one context.
const CONTEXT: u32 = 1;

/// A host of plain memory with generous limits.
///
/// # Panics
/// Where this machine cannot give address space for the window.
pub fn host() -> Arc<Host> {
    let config = Config {
        window_size: 8 << 30,
        memory_limit: 4 << 30,
        context_limit: 4 << 30,
        warm_limit: 128 << 20,
    };
    let opened = open(Choice::System, &Options::default()).expect("plain memory needs nothing");
    Host::new(opened.provider, config).expect("a window of 8 GiB")
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
        driver.run(cmd::CTX_CREATE, &body, resp::OK_NODATA);
        for _ in 0..live {
            driver.create();
        }
        driver
    }

    fn run<T: IntoBytes + Immutable>(&mut self, kind: u32, body: &T, expected: u32) {
        let header = CtrlHdr {
            cmd_type: kind.into(),
            ctx_id: CONTEXT.into(),
            ..CtrlHdr::default()
        };
        self.send(&[header.as_bytes(), body.as_bytes()].concat(), expected);
    }

    fn send(&mut self, command: &[u8], expected: u32) {
        let response = self
            .gpu
            .execute(0, command, &NoPages)
            .expect("no fence, no waiting");
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
        let header = CtrlHdr {
            cmd_type: cmd::SUBMIT_3D.into(),
            ctx_id: CONTEXT.into(),
            ..CtrlHdr::default()
        };
        let body = CmdSubmit {
            size: size.into(),
            ..CmdSubmit::default()
        };
        let command = [header.as_bytes(), body.as_bytes(), &envelope].concat();
        self.send(&command, resp::OK_NODATA);
        let blob = ResourceCreateBlob {
            resource_id: resource.into(),
            blob_mem: blob_mem::HOST3D.into(),
            blob_flags: blob_flag::USE_MAPPABLE.into(),
            nr_entries: 0.into(),
            blob_id: client_id.into(),
            size: PAGE.into(),
        };
        self.run(cmd::RESOURCE_CREATE_BLOB, &blob, resp::OK_NODATA);
        let map = ResourceMapBlob {
            resource_id: resource.into(),
            // Linux places blobs one after the other.
            offset: (client_id * PAGE).into(),
            ..ResourceMapBlob::default()
        };
        self.run(cmd::RESOURCE_MAP_BLOB, &map, resp::OK_MAP_INFO);
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
        self.run(cmd::RESOURCE_UNMAP_BLOB, &body, resp::OK_NODATA);
        self.run(cmd::RESOURCE_UNREF, &body, resp::OK_NODATA);
        if resource + 1 == self.next {
            self.next = resource;
        }
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
