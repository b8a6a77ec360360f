//! Blobs that other devices of the VM find by their UUIDs. What others have: `lookups.rs`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hostblob_allocator::exports::Exporter;
use hostblob_allocator::provider::Piece;
use hostblob_allocator::provider::fake::FakeProvider;
use hostblob_allocator::{Config as Limits, Host, Outside};
use hostblob_protocol::virtio_gpu::{
    ResourceCreateBlob, ResourceUuid, blob_flag, blob_mem, cmd, resp,
};
use uuid::Uuid;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures as Features, VhostUserSharedMsg};
use zerocopy::FromBytes;

use super::vmm::{CAPSET_ID, Daemon, Vmm, WINDOW, bytes, kind_of, only, qemu};
use crate::gpu::{BlobMem, Gpu};

const PAGE: u64 = 4096;

/// A copy of the pages, for hosts without udmabuf: what another device does with them is not our affair.
struct Copies;

impl Exporter for Copies {
    fn create(&self, pieces: &[Piece]) -> io::Result<OwnedFd> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let copy = File::from(rustix::fs::memfd_create("copy", flags)?);
        let mut at = 0;
        for piece in pieces {
            let mut bytes = vec![0; usize::try_from(piece.length).map_err(io::Error::other)?];
            piece.file.read_exact_at(&mut bytes, piece.offset)?;
            copy.write_all_at(&bytes, at)?;
            at += piece.length;
        }
        Ok(copy.into())
    }
}

fn daemon(exporter: Option<Arc<dyn Exporter>>) -> Daemon {
    let limits = Limits {
        window_size: WINDOW,
        memory_limit: 1 << 20,
        context_limit: 1 << 20,
        context_share: 0,
        warm: hostblob_allocator::window::Warmth::up_to(0),
    };
    let outside = Outside {
        exporter,
        ..Outside::default()
    };
    let provider = Arc::new(FakeProvider::new());
    let host = Host::with_outside(provider, limits, outside).unwrap();
    Daemon::serving(move |waker| Gpu::new(&host, CAPSET_ID, BlobMem::all(), waker))
}

fn shareable(vmm: &mut Vmm, resource: u32) {
    let body = ResourceCreateBlob {
        resource_id: resource.into(),
        blob_mem: blob_mem::HOST3D.into(),
        blob_flags: (blob_flag::USE_MAPPABLE | blob_flag::USE_CROSS_DEVICE).into(),
        size: PAGE.into(),
        ..Default::default()
    };
    let created = vmm.run(cmd::RESOURCE_CREATE_BLOB, 1, &body);
    assert_eq!(created, resp::OK_NODATA);
}

fn assign_uuid(vmm: &mut Vmm, resource: u32) -> Uuid {
    vmm.offer(0, &bytes(cmd::RESOURCE_ASSIGN_UUID, 0, &only(resource)));
    let response = vmm.response(0);
    assert_eq!(kind_of(&response), resp::OK_RESOURCE_UUID);
    let body = ResourceUuid::read_from_bytes(&response[24..]).unwrap();
    Uuid::from_bytes(body.uuid)
}

/// Waits until the VMM has heard as much: nobody answers an announcement.
fn heard(vmm: &Vmm, count: usize) -> Vec<(bool, Uuid)> {
    loop {
        let objects = vmm.shmem.objects.lock().clone();
        if objects.len() >= count {
            return objects;
        }
        std::thread::yield_now();
    }
}

#[test]
fn another_device_finds_a_blob_by_its_uuid() {
    let daemon = daemon(Some(Arc::new(Copies)));
    let mut vmm = Vmm::connect(&daemon.path);
    qemu::open(&mut vmm, Features::all());
    vmm.frontend.add_mem_region(&vmm.region()).unwrap();
    qemu::start(&mut vmm, [0, 0]);
    vmm.create_context(1);
    shareable(&mut vmm, 1);
    shareable(&mut vmm, 2);
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
    let window = vmm.shmem.mapped.lock()[0].2.try_clone();
    window.unwrap().write_all_at(b"a frame", PAGE).unwrap();
    let (one, two) = (assign_uuid(&mut vmm, 1), assign_uuid(&mut vmm, 2));
    assert_ne!(one, two);
    assert_eq!(assign_uuid(&mut vmm, 1), one, "the same for ever");
    assert_eq!(heard(&vmm, 2), [(true, one), (true, two)]);

    let asked = |uuid| VhostUserSharedMsg { uuid };
    let found = vmm.frontend.get_shared_object(&asked(one)).unwrap();
    let mut bytes = [0; 7];
    found.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"a frame");
    assert_eq!(found.metadata().unwrap().len(), PAGE, "nothing else");
    assert!(vmm.frontend.get_shared_object(&asked(Uuid::nil())).is_err());
    // What another device has does not move.
    vmm.unmap_blob(1);
    let mut elsewhere = super::vmm::map_body(1);
    elsewhere.offset = (8 * PAGE).into();
    let moved = vmm.run(cmd::RESOURCE_MAP_BLOB, 0, &elsewhere);
    assert_eq!(moved, resp::ERR_INVALID_PARAMETER);

    let unref = vmm.run(cmd::RESOURCE_UNREF, 0, &only(1));
    assert_eq!(unref, resp::OK_NODATA);
    assert_eq!(heard(&vmm, 3).last(), Some(&(false, one)));
    assert!(vmm.frontend.get_shared_object(&asked(one)).is_err());
}

#[test]
fn without_udmabuf_nothing_is_announced() {
    let daemon = daemon(None);
    let mut vmm = Vmm::connect(&daemon.path);
    qemu::open(&mut vmm, Features::all());
    vmm.frontend.add_mem_region(&vmm.region()).unwrap();
    qemu::start(&mut vmm, [0, 0]);
    vmm.create_context(1);
    shareable(&mut vmm, 1);
    assign_uuid(&mut vmm, 1);
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO, "and it goes on");
    assert!(vmm.shmem.objects.lock().is_empty());
}
