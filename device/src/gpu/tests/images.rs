//! 2D resources: what is drawn, who sees it, and nonsense.

#![allow(
    clippy::cast_possible_truncation,
    reason = "tests: the sizes are their own"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use hostblob_allocator::Outside;
use hostblob_allocator::exports::{Event, Exports, Viewer};
use hostblob_protocol::virtio_gpu::{
    MemEntry, Rect, ResourceAttachBacking, ResourceCreate2d, ResourceFlush, SetScanout,
    TransferToHost2d, format,
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;

const BASE: u64 = 0x10_0000;
const PAGES: u64 = 16;

/// A guest with memory, whose words are their numbers, and somebody who looks.
struct Screen {
    gpu: Gpu,
    host: Arc<Host>,
    memory: GuestMemoryMmap,
    viewer: Viewer,
}

fn memory(first: u32) -> GuestMemoryMmap {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("guest", flags).unwrap());
    let words = first..first + (PAGES * PAGE / 4) as u32;
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    file.write_all_at(&bytes, 0).unwrap();
    let size = bytes.len();
    let file = Some(FileOffset::new(file, 0));
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(BASE), size, file)]).unwrap()
}

fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
    Rect {
        x: x.into(),
        y: y.into(),
        width: width.into(),
        height: height.into(),
    }
}

fn image(resource: u32, width: u32, height: u32) -> ResourceCreate2d {
    ResourceCreate2d {
        resource_id: resource.into(),
        format: format::B8G8R8X8_UNORM.into(),
        width: width.into(),
        height: height.into(),
    }
}

fn transfer(resource: u32, r: Rect, offset: u64) -> TransferToHost2d {
    TransferToHost2d {
        r,
        offset: offset.into(),
        resource_id: resource.into(),
        padding: 0.into(),
    }
}

fn flush(resource: u32, r: Rect) -> ResourceFlush {
    ResourceFlush {
        r,
        resource_id: resource.into(),
        padding: 0.into(),
    }
}

/// ATTACH_BACKING of ranges of guest memory: (byte, length).
fn attach(resource: u32, ranges: &[(u64, u32)]) -> Vec<u8> {
    let asked = ResourceAttachBacking {
        resource_id: resource.into(),
        nr_entries: u32::try_from(ranges.len()).unwrap().into(),
    };
    let mut bytes = asked.as_bytes().to_vec();
    for (at, length) in ranges {
        let entry = MemEntry {
            addr: (BASE + at).into(),
            length: (*length).into(),
            padding: 0.into(),
        };
        bytes.extend(entry.as_bytes());
    }
    bytes
}

impl Screen {
    fn new() -> Self {
        let limits = Limits {
            window_size: 2 << 20,
            memory_limit: 1 << 20,
            context_limit: 1 << 20,
            context_share: 0,
            warm: hostblob_allocator::window::Warmth::up_to(0),
        };
        let exports = Exports::new();
        let outside = Outside {
            exports: Some(Arc::clone(&exports)),
            exporter: None,
        };
        let fake = Arc::new(FakeProvider::new());
        let host = Host::with_outside(fake, limits, outside).unwrap();
        let gpu = Gpu::new(&host, CAPSET_ID, BlobMem::all(), Arc::new(|| {})).unwrap();
        Self {
            gpu,
            host,
            memory: memory(0),
            viewer: exports.join(Arc::new(|| {})).unwrap(),
        }
    }

    fn run<T: IntoBytes + Immutable + ?Sized>(&mut self, kind: u32, body: &T) -> u32 {
        let command = bytes(header(kind, 0), body);
        let response = self.gpu.execute(0, &command, &self.memory);
        response.expect("an answer at once").kind()
    }

    fn ok<T: IntoBytes + Immutable + ?Sized>(&mut self, kind: u32, body: &T) {
        assert_eq!(self.run(kind, body), resp::OK_NODATA, "{kind:#x}");
    }

    /// What a viewer sees of the first image that is shown: its size, and its words.
    fn look(&mut self) -> (u32, u32, Vec<u32>) {
        let published = |event| match event {
            Event::Published(id, buffer) => Some((id, buffer.layout)),
            _ => None,
        };
        let (id, layout) = self.viewer.events().try_iter().find_map(published).unwrap();
        assert_eq!(layout.fourcc, u32::from_le_bytes(*b"XR24"));
        assert_eq!(layout.stride, layout.width * 4);
        self.viewer.open(1, id);
        assert_eq!(self.gpu.completed(), []);
        let opened = |event| match event {
            Event::Opened { result, .. } => Some(result.unwrap()),
            _ => None,
        };
        let opened = self.viewer.events().try_iter().find_map(opened).unwrap();
        let seals = rustix::fs::fcntl_get_seals(&opened.descriptor).unwrap();
        assert!(seals.contains(rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW));
        let mut pixels = vec![0; opened.size as usize];
        rustix::io::pread(&opened.descriptor, &mut pixels, 0).unwrap();
        let words = pixels.as_chunks().0.iter();
        let words = words.map(|word| u32::from_le_bytes(*word)).collect();
        (layout.width, layout.height, words)
    }
}

/// A texture of 81 MB has as many pages, which may be anywhere (HOSTILE.md, class E).
#[test]
fn as_many_entries_as_announced_are_taken_and_no_more_than_are_there() {
    let mut screen = Screen::new();
    screen.ok(cmd::RESOURCE_CREATE_2D, &image(5, 100, 50));
    let pages: Vec<(u64, u32)> = (0..20_000).map(|n| (n % PAGES * PAGE, 4096)).collect();
    let honest = attach(5, &pages);
    let claiming = |count: u32| {
        let mut command = honest.clone();
        command[4..8].copy_from_slice(&count.to_le_bytes());
        command
    };
    for count in [20_001, 262_145, 1 << 31, u32::MAX] {
        let refused = screen.run(cmd::RESOURCE_ATTACH_BACKING, claiming(count).as_slice());
        assert_eq!(refused, resp::ERR_INVALID_PARAMETER, "{count}");
    }
    for count in [19_999, 20_000] {
        screen.ok(cmd::RESOURCE_ATTACH_BACKING, claiming(count).as_slice());
        screen.ok(cmd::RESOURCE_DETACH_BACKING, &only(5));
    }
}

#[test]
fn what_is_drawn_is_seen() {
    let mut screen = Screen::new();
    screen.ok(cmd::RESOURCE_CREATE_2D, &image(5, 100, 50));
    assert_eq!(screen.host.used(), 100 * 50 * 4);
    // Rows of 400 bytes, in pieces that end within a row, and one that is not of pages.
    let pieces = [(8 * PAGE, 4096), (2 * PAGE, 8192), (0, 4000), (4000, 3712)];
    screen.ok(cmd::RESOURCE_ATTACH_BACKING, attach(5, &pieces).as_slice());
    let at = |byte: u64| -> u32 {
        let mut left = byte;
        for (start, length) in pieces {
            if left < length.into() {
                return ((start + left) / 4) as u32;
            }
            left -= u64::from(length);
        }
        unreachable!("inside")
    };
    // Linux sends where the rectangle begins.
    let body = transfer(5, rect(10, 3, 60, 40), 3 * 400 + 10 * 4);
    screen.ok(cmd::TRANSFER_TO_HOST_2D, &body);
    assert_eq!(screen.viewer.events().try_iter().count(), 0, "not yet");
    screen.ok(cmd::RESOURCE_FLUSH, &flush(5, rect(10, 3, 60, 40)));
    let (width, height, words) = screen.look();
    assert_eq!((width, height), (100, 50));
    for (number, word) in (0..).zip(&words) {
        let (x, y) = (number % 100, number / 100);
        let inside = (10..70).contains(&x) && (3..43).contains(&y);
        let expected = if inside { at(number * 4) } else { 0 };
        assert_eq!(*word, expected, "{x}, {y}");
    }
    // All of it, in one copy.
    screen.ok(
        cmd::TRANSFER_TO_HOST_2D,
        &transfer(5, rect(0, 0, 100, 50), 0),
    );
    screen.ok(cmd::RESOURCE_FLUSH, &flush(5, rect(0, 0, 1, 1)));
    let presented = |event: &Event| matches!(event, Event::Presented { present: 2, .. });
    assert!(
        screen
            .viewer
            .events()
            .try_iter()
            .any(|event| presented(&event))
    );
}

#[test]
fn moved_pages_are_followed_and_lost_ones_are_missed() {
    let mut screen = Screen::new();
    screen.ok(cmd::RESOURCE_CREATE_2D, &image(5, 32, 32));
    screen.ok(
        cmd::RESOURCE_ATTACH_BACKING,
        attach(5, &[(0, 4096)]).as_slice(),
    );
    screen.gpu.guest_pages_changed(&NoPages);
    let body = transfer(5, rect(0, 0, 32, 32), 0);
    assert_eq!(
        screen.run(cmd::TRANSFER_TO_HOST_2D, &body),
        resp::ERR_INVALID_PARAMETER
    );
    screen.gpu.guest_pages_changed(&memory(1 << 20));
    screen.ok(cmd::TRANSFER_TO_HOST_2D, &body);
    screen.ok(cmd::RESOURCE_FLUSH, &flush(5, rect(0, 0, 32, 32)));
    assert_eq!(screen.look().2[..2], [1 << 20, (1 << 20) + 1]);
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let mut screen = Screen::new();
    screen.ok(cmd::RESOURCE_CREATE_2D, &image(5, 16, 16));
    let (p, r, m) = (
        resp::ERR_INVALID_PARAMETER,
        resp::ERR_INVALID_RESOURCE_ID,
        resp::ERR_OUT_OF_MEMORY,
    );
    for (width, height, code) in [
        (0, 1, p),
        (1, 0, p),
        (MAX_SIDE + 1, 1, p),
        (u32::MAX, u32::MAX, p),
        (0x4000_0000, 4, p),
        (MAX_SIDE, MAX_SIDE, m),
        (512, 512, m),
    ] {
        assert_eq!(
            screen.run(cmd::RESOURCE_CREATE_2D, &image(6, width, height)),
            code
        );
    }
    for format in [0, 5, u32::MAX] {
        let format = format.into();
        let odd = ResourceCreate2d {
            format,
            ..image(6, 1, 1)
        };
        assert_eq!(screen.run(cmd::RESOURCE_CREATE_2D, &odd), p);
    }
    for id in [0, 5] {
        assert_eq!(screen.run(cmd::RESOURCE_CREATE_2D, &image(id, 1, 1)), r);
    }
    let whole = rect(0, 0, 16, 16);
    assert_eq!(
        screen.run(cmd::TRANSFER_TO_HOST_2D, &transfer(5, whole, 0)),
        p,
        "no pages"
    );
    assert_eq!(screen.run(cmd::RESOURCE_DETACH_BACKING, &only(5)), p);
    for bad in [
        &[(PAGES * PAGE, 4096)][..],
        &[(0, 4096), (u64::MAX - BASE, 4096)],
        &[((PAGES - 1) * PAGE, u32::MAX)],
    ] {
        assert_eq!(
            screen.run(cmd::RESOURCE_ATTACH_BACKING, attach(5, bad).as_slice()),
            p
        );
    }
    screen.ok(
        cmd::RESOURCE_ATTACH_BACKING,
        attach(5, &[(0, 1024)]).as_slice(),
    );
    assert_eq!(
        screen.run(
            cmd::RESOURCE_ATTACH_BACKING,
            attach(5, &[(0, 1024)]).as_slice()
        ),
        p
    );
    for (r, offset) in [
        (whole, 1),
        (whole, u64::MAX),
        (rect(0, 0, 16, 1), 1024 - 63),
        (rect(1, 0, 16, 16), 0),
        (rect(0, 0, 0, 16), 0),
        (rect(u32::MAX, 0, 1, 1), 0),
        (rect(0, u32::MAX, 1, u32::MAX), 0),
        (rect(0, 0, 1, 16), 1024 - 4 - 15 * 64 + 1),
    ] {
        assert_eq!(
            screen.run(cmd::TRANSFER_TO_HOST_2D, &transfer(5, r, offset)),
            p,
            "{r:?}"
        );
        if offset == 0 {
            assert_eq!(screen.run(cmd::RESOURCE_FLUSH, &flush(5, r)), p, "{r:?}");
        }
    }
    screen.ok(
        cmd::TRANSFER_TO_HOST_2D,
        &transfer(5, rect(0, 0, 1, 16), 60),
    );
    for kind in [cmd::RESOURCE_MAP_BLOB, cmd::RESOURCE_UNMAP_BLOB] {
        assert_eq!(screen.run(kind, &map(5, 0)), r, "no blob");
    }
    assert_eq!(screen.host.used(), 1024);
    for number in 0..MAX_IMAGES as u32 - 1 {
        screen.ok(cmd::RESOURCE_CREATE_2D, &image(100 + number, 1, 1));
    }
    assert_eq!(screen.run(cmd::RESOURCE_CREATE_2D, &image(6, 1, 1)), m);
}

#[test]
fn ids_of_images_and_blobs_are_one_space() {
    let mut screen = Screen::new();
    assert_eq!(
        run(&mut screen.gpu, cmd::CTX_CREATE, 1, &context_body()).kind(),
        resp::OK_NODATA
    );
    let create = |screen: &mut Screen, id| {
        run(
            &mut screen.gpu,
            cmd::RESOURCE_CREATE_BLOB,
            1,
            &blob(id, 0, 1),
        )
        .kind()
    };
    screen.ok(cmd::RESOURCE_CREATE_2D, &image(5, 1, 1));
    assert_eq!(create(&mut screen, 5), resp::ERR_INVALID_RESOURCE_ID);
    assert_eq!(create(&mut screen, 6), resp::OK_NODATA);
    assert_eq!(
        screen.run(cmd::RESOURCE_CREATE_2D, &image(6, 1, 1)),
        resp::ERR_INVALID_RESOURCE_ID
    );
    for kind in [cmd::TRANSFER_TO_HOST_2D, cmd::RESOURCE_FLUSH] {
        let mut body = [0_u8; 32];
        body[if kind == cmd::RESOURCE_FLUSH { 16 } else { 24 }] = 6;
        assert_eq!(
            screen.run(kind, &body),
            resp::ERR_INVALID_PARAMETER,
            "a blob"
        );
    }
    // A 2D resource may be attached to any context, and to none that is not there.
    for (context, code) in [(1, resp::OK_NODATA), (2, resp::ERR_INVALID_CONTEXT_ID)] {
        for kind in [cmd::CTX_ATTACH_RESOURCE, cmd::CTX_DETACH_RESOURCE] {
            assert_eq!(run(&mut screen.gpu, kind, context, &only(5)).kind(), code);
        }
    }
    screen.ok(cmd::RESOURCE_UNREF, &only(5));
    assert_eq!(create(&mut screen, 5), resp::OK_NODATA, "free again");
}

/// What Linux makes for a file that has 2D resources alone.
#[test]
fn a_context_of_no_capset_uses_nothing() {
    let mut screen = Screen::new();
    let mut check = |kind, context, body: &[u8], code| {
        assert_eq!(
            run(&mut screen.gpu, kind, context, body).kind(),
            code,
            "{kind:#x}"
        );
    };
    let x = resp::ERR_INVALID_CONTEXT_ID;
    let none = CtxCreate::default();
    check(cmd::CTX_CREATE, 3, none.as_bytes(), resp::OK_NODATA);
    check(cmd::CTX_CREATE, 3, none.as_bytes(), x);
    check(cmd::CTX_CREATE, 3, context_body().as_bytes(), x);
    check(
        cmd::RESOURCE_CREATE_2D,
        0,
        image(5, 1, 1).as_bytes(),
        resp::OK_NODATA,
    );
    check(
        cmd::CTX_ATTACH_RESOURCE,
        3,
        only(5).as_bytes(),
        resp::OK_NODATA,
    );
    check(
        cmd::CTX_ATTACH_RESOURCE,
        3,
        only(6).as_bytes(),
        resp::ERR_INVALID_RESOURCE_ID,
    );
    check(cmd::SUBMIT_3D, 3, &submit(b""), resp::ERR_UNSPEC);
    check(cmd::RESOURCE_CREATE_BLOB, 3, blob(7, 0, 1).as_bytes(), x);
    check(cmd::CTX_DESTROY, 3, &[], resp::OK_NODATA);
    check(cmd::CTX_DESTROY, 3, &[], x);
    assert!(!screen.gpu.window_in_use());
}

#[test]
fn nothing_stays_after_unref_and_reset() {
    let mut screen = Screen::new();
    for id in [5, 6] {
        screen.ok(cmd::RESOURCE_CREATE_2D, &image(id, 8, 8));
        screen.ok(
            cmd::RESOURCE_ATTACH_BACKING,
            attach(id, &[(0, 256)]).as_slice(),
        );
        screen.ok(cmd::RESOURCE_FLUSH, &flush(id, rect(0, 0, 8, 8)));
    }
    let saved = screen.gpu.save(&mut Vec::new()).unwrap_err();
    assert!(saved.to_string().contains("2D resources"), "{saved}");
    screen.ok(cmd::RESOURCE_DETACH_BACKING, &only(5));
    screen.ok(cmd::RESOURCE_UNREF, &only(5));
    assert_eq!(screen.host.used(), 256);
    screen.gpu.reset();
    assert_eq!(screen.host.used(), 0);
    assert!(screen.gpu.is_new());
    let destroyed = |event: &Event| matches!(event, Event::Destroyed(_));
    assert_eq!(
        screen.viewer.events().try_iter().filter(destroyed).count(),
        2
    );
}

#[test]
fn one_screen_where_there_is_a_display() {
    let mut screen = Screen::new();
    screen.ok(cmd::RESOURCE_CREATE_2D, &image(5, 64, 64));
    let show = |scanout: u32, resource: u32, r| SetScanout {
        r,
        scanout_id: scanout.into(),
        resource_id: resource.into(),
    };
    let (s, whole) = (resp::ERR_INVALID_SCANOUT_ID, rect(0, 0, 64, 64));
    assert_eq!(screen.run(cmd::SET_SCANOUT, &show(0, 5, whole)), s);
    let (width, height) = (64, 48);
    screen.gpu = screen.gpu.with_display(Display { width, height });
    let (config, _) = Config::read_from_prefix(screen.gpu.config()).unwrap();
    assert_eq!(config.num_scanouts.get(), 1);
    let info = run(&mut screen.gpu, cmd::GET_DISPLAY_INFO, 0, &());
    let words = info.as_bytes()[24..].as_chunks::<4>().0.iter();
    let words: Vec<u32> = words.map(|word| u32::from_le_bytes(*word)).collect();
    assert_eq!(words[..7], [0, 0, 64, 48, 1, 0, 0]);
    assert!(words[7..].iter().all(|word| *word == 0));

    screen.ok(cmd::SET_SCANOUT, &show(0, 5, whole));
    screen.ok(cmd::SET_SCANOUT, &show(0, 0, rect(0, 0, 0, 0)));
    screen.ok(cmd::UPDATE_CURSOR, &[0_u8; 32]);
    for (scanout, resource, r, code) in [
        (1, 5, whole, s),
        (u32::MAX, 0, whole, s),
        (0, 6, whole, resp::ERR_INVALID_RESOURCE_ID),
        (0, 5, rect(1, 0, 64, 64), resp::ERR_INVALID_PARAMETER),
    ] {
        assert_eq!(
            screen.run(cmd::SET_SCANOUT, &show(scanout, resource, r)),
            code
        );
    }
    assert_eq!(screen.run(cmd::MOVE_CURSOR, &[1_u8; 32]), s);
    assert_eq!(
        screen.run(cmd::SET_SCANOUT_BLOB, &[0_u8; 72]),
        resp::ERR_UNSPEC
    );
}
