use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{MemfdFlags, SealFlags};

use super::*;

const FOURCC: u32 = u32::from_le_bytes(*b"XR24");
const SIZE: u64 = 1 << 20;

fn memfd(size: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("export-test", flags).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn descriptor() -> Arc<OwnedFd> {
    Arc::new(memfd(SIZE, SealFlags::SHRINK))
}

fn layout(offset: u64) -> Layout {
    Layout {
        offset,
        width: 64,
        height: 64,
        stride: 256,
        fourcc: FOURCC,
        modifier: 0,
    }
}

fn silent() -> Waker {
    Arc::new(|| {})
}

fn counter() -> (Waker, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&count);
    let waker = Arc::new(move || {
        calls.fetch_add(1, Ordering::SeqCst);
    });
    (waker, count)
}

fn guest_with_blob(exports: &Arc<Exports>) -> (GuestExports, ExportId) {
    let guest = exports.guest(silent());
    let id = guest.add([1; 16], SIZE, "blob").unwrap();
    guest.publish(id, layout(0)).unwrap();
    guest.publish(id, layout(65536)).unwrap();
    (guest, id)
}

/// What a viewer has heard, in short.
fn heard(viewer: &Viewer) -> Vec<String> {
    let text = |event| match event {
        Event::Added(blob) => format!("added {} {}", blob.name, blob.size),
        Event::Published(_, buffer) => format!("published {}", buffer.layout.offset),
        Event::Withdrawn(_, offset) => format!("withdrawn {offset}"),
        Event::Presented {
            offset, present, ..
        } => format!("presented {offset} {present}"),
        Event::Destroyed(_) => "destroyed".into(),
        Event::Listing { tag, blobs } => format!("listing {tag}: {}", blobs.len()),
        Event::Opened { tag, result, .. } => match result {
            Ok(opened) => format!("opened {tag}: {} buffers", opened.buffers.len()),
            Err(error) => format!("opened {tag}: {error}"),
        },
    };
    viewer.events().try_iter().map(text).collect()
}

fn open(guest: &GuestExports, viewer: &Viewer, id: ExportId) {
    viewer.open(0, id);
    if let Some(request) = guest.next_request() {
        request.answer(Ok(descriptor()));
    }
    assert!(guest.is_open(id));
}

#[test]
fn a_viewer_hears_everything_in_order() {
    let exports = Exports::new();
    let viewer = exports.join(silent()).unwrap();
    let (guest, id) = guest_with_blob(&exports);
    viewer.list(7);
    guest.present(id, 0);
    open(&guest, &viewer, id);
    guest.present(id, 65536);
    guest.withdraw(id, 0);
    viewer.list(8);
    guest.remove(id);
    viewer.list(9);
    let expected = [
        "added blob 1048576",
        "published 0",
        "published 65536",
        "listing 7: 1",
        "opened 0: 2 buffers",
        "presented 65536 2",
        "withdrawn 0",
        "listing 8: 1",
        "destroyed",
        "listing 9: 0",
    ];
    assert_eq!(heard(&viewer), expected);
}

#[test]
fn the_descriptor_is_asked_for_once() {
    let exports = Exports::new();
    let (waker, woken) = counter();
    let guest = exports.guest(waker);
    let id = guest.add([1; 16], SIZE, "").unwrap();
    let viewers = [(); 3].map(|()| exports.join(silent()).unwrap());
    for viewer in &viewers {
        viewer.open(1, id);
    }
    assert!(woken.load(Ordering::SeqCst) >= 1);
    let request = guest.next_request().unwrap();
    assert!(guest.next_request().is_none());
    assert!(!guest.is_open(id) && !guest.forget_descriptor(id));
    let given = descriptor();
    request.answer(Ok(Arc::clone(&given)));
    viewers[0].open(2, id);
    assert!(guest.next_request().is_none());
    for viewer in &viewers {
        for event in viewer.events().try_iter() {
            let Event::Opened {
                result: Ok(opened), ..
            } = event
            else {
                panic!("{event:?}");
            };
            assert!(Arc::ptr_eq(&opened.descriptor, &given));
        }
        viewer.close(id).unwrap();
    }
    assert!(guest.forget_descriptor(id));
    viewers[1].open(3, id);
    assert!(guest.next_request().is_some());
}

#[test]
fn refusals_reach_all_who_wait() {
    let exports = Exports::new();
    let (guest, id) = guest_with_blob(&exports);
    let viewer = exports.join(silent()).unwrap();
    viewer.open(1, id);
    viewer.open(2, id);
    let refused = ExportError::Refused(Status::Unsupported);
    guest.next_request().unwrap().answer(Err(refused));
    viewer.open(3, id);
    drop(guest.next_request().unwrap());
    viewer.open(4, id);
    guest.remove(id);
    assert!(guest.next_request().is_none());
    viewer.open(5, id);
    let unsupported = Status::Unsupported.to_string();
    let expected = [
        format!("opened 1: no descriptor: {unsupported}"),
        format!("opened 2: no descriptor: {unsupported}"),
        format!("opened 3: no descriptor: {}", Status::Internal),
        format!("opened 4: blob {id} does not exist"),
        "destroyed".into(),
        format!("opened 5: blob {id} does not exist"),
    ];
    assert_eq!(heard(&viewer), expected);
}

#[test]
fn a_late_guest_is_not_waited_for() {
    let exports = Exports::new();
    let (guest, id) = guest_with_blob(&exports);
    let viewer = exports.join(silent()).unwrap();
    viewer.open(1, id);
    assert!(viewer.expire().is_some_and(|left| left <= OPEN_TIMEOUT));
    let overdue = std::time::Instant::now();
    exports.with(|state, _| {
        for viewer in state.viewers.values_mut() {
            viewer.waiting[0].deadline = overdue;
        }
    });
    assert_eq!(viewer.expire(), None);
    // Its answer is for the next one.
    guest.next_request().unwrap().answer(Ok(descriptor()));
    assert!(!guest.is_open(id));
    viewer.open(2, id);
    assert_eq!(
        heard(&viewer),
        [
            "opened 1: no descriptor came within 5s",
            "opened 2: 2 buffers"
        ]
    );
}

#[test]
fn buffers_are_used_from_present_to_release() {
    let exports = Exports::new();
    let (waker, woken) = counter();
    let guest = exports.guest(waker);
    let id = guest.add([1; 16], SIZE, "").unwrap();
    guest.publish(id, layout(0)).unwrap();
    guest.publish(id, layout(65536)).unwrap();
    let viewer = exports.join(silent()).unwrap();
    assert!(guest.present(id, 0));
    assert!(!guest.in_use(id, 0), "nobody has it open");
    assert_eq!(viewer.release(id, 0, 1), Err(ExportError::NotOpen(id)));
    open(&guest, &viewer, id);
    assert!(guest.in_use(id, 0) && !guest.in_use(id, 65536));

    // Presented again while the viewer looks at the first: the release is of the first.
    guest.present(id, 0);
    viewer.release(id, 0, 1).unwrap();
    assert!(guest.in_use(id, 0));
    woken.store(0, Ordering::SeqCst);
    viewer.release(id, 0, 2).unwrap();
    assert!(!guest.in_use(id, 0));
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert_eq!(
        viewer.release(id, 0, 2),
        Err(ExportError::NotInUse(id, 0)),
        "released twice"
    );

    // What was released stays so when the blob is opened once more.
    open(&guest, &viewer, id);
    assert!(!guest.in_use(id, 0));

    // A description that is replaced or withdrawn frees nothing.
    guest.present(id, 0);
    guest.publish(id, layout(0)).unwrap();
    assert!(guest.withdraw(id, 0) && !guest.withdraw(id, 0) && !guest.present(id, 0));
    assert!(guest.in_use(id, 0));
    viewer.close(id).unwrap();
    assert!(!guest.in_use(id, 0) && !guest.is_open(id));
    assert_eq!(viewer.close(id), Err(ExportError::NotOpen(id)));
}

#[test]
fn a_destroyed_blob_stays_open() {
    let exports = Exports::new();
    let (guest, id) = guest_with_blob(&exports);
    let [stays, leaves] = [(); 2].map(|()| exports.join(silent()).unwrap());
    open(&guest, &stays, id);
    open(&guest, &leaves, id);
    guest.present(id, 0);
    guest.remove(id);
    guest.remove(id);
    assert!(guest.is_open(id) && guest.in_use(id, 0));
    drop(leaves);
    assert!(guest.is_open(id) && guest.in_use(id, 0));
    stays.release(id, 0, 1).unwrap();
    assert!(guest.is_open(id) && !guest.in_use(id, 0));
    stays.close(id).unwrap();
    assert!(!guest.is_open(id));
    assert_ne!(guest.add([2; 16], SIZE, "").unwrap(), id);
}

#[test]
fn guests_come_go_and_leave_each_other_alone() {
    let exports = Exports::new();
    let (one, id) = guest_with_blob(&exports);
    let (other, kept) = guest_with_blob(&exports);
    let viewer = exports.join(silent()).unwrap();
    assert!(!other.present(id, 0) && !other.withdraw(id, 0));
    assert_eq!(
        other.publish(id, layout(0)),
        Err(ExportError::UnknownBlob(id))
    );
    other.remove(id);
    open(&one, &viewer, id);
    drop(one);
    viewer.list(1);
    assert_eq!(
        heard(&viewer),
        ["opened 0: 2 buffers", "destroyed", "listing 1: 1"]
    );
    viewer.close(id).unwrap();
    drop(viewer);
    assert!(!other.is_open(kept));
}

#[test]
fn slow_viewers_are_dropped() {
    let exports = Exports::new();
    let (guest, id) = guest_with_blob(&exports);
    let (waker, woken) = counter();
    let slow = exports.join(waker).unwrap();
    let awake = exports.join(silent()).unwrap();
    open(&guest, &slow, id);
    for _ in 0..MAX_EVENTS {
        assert!(guest.present(id, 0));
        heard(&awake);
    }
    assert!(!guest.is_open(id) && !guest.in_use(id, 0));
    assert!(woken.load(Ordering::SeqCst) > 0);
    assert_eq!(slow.events().iter().count(), MAX_EVENTS, "then it ends");
    assert_eq!(slow.release(id, 0, 1), Err(ExportError::Dropped));
    assert!(slow.is_dropped() && !awake.is_dropped());
    open(&guest, &awake, id);
}

#[test]
fn limits() {
    let exports = Exports::new();
    let viewers: Vec<_> = (0..MAX_VIEWERS)
        .map(|_| exports.join(silent()).unwrap())
        .collect();
    assert!(matches!(
        exports.join(silent()),
        Err(ExportError::TooMany(..))
    ));
    drop(viewers);

    let guest = exports.guest(silent());
    let ids: Vec<_> = (0..MAX_BLOBS)
        .map(|_| guest.add([0; 16], SIZE, "").unwrap())
        .collect();
    assert!(matches!(
        guest.add([0; 16], SIZE, ""),
        Err(ExportError::TooMany(..))
    ));
    for &id in &ids[..MAX_GUEST_BUFFERS / MAX_BUFFERS] {
        for n in 0..MAX_BUFFERS as u64 {
            guest.publish(id, layout(n * 64)).unwrap();
        }
        assert!(matches!(
            guest.publish(id, layout(SIZE - 16384)),
            Err(ExportError::TooMany(MAX_BUFFERS, _))
        ));
    }
    let full = guest.publish(ids[100], layout(0));
    assert!(matches!(
        full,
        Err(ExportError::TooMany(MAX_GUEST_BUFFERS, _))
    ));
    guest.remove(ids[0]);
    guest.publish(ids[100], layout(0)).unwrap();
    guest.add([0; 16], SIZE, "").unwrap();
    // One at the same place is no more.
    guest.publish(ids[1], layout(0)).unwrap();

    let viewer = exports.join(silent()).unwrap();
    for &id in &ids[1..=MAX_WAITING + 1] {
        viewer.open(1, id);
    }
    let heard = heard(&viewer);
    assert!(heard.len() == 1 && heard[0].contains("limit"), "{heard:?}");
}

#[test]
fn buffers_lie_inside_their_blob() {
    let exports = Exports::new();
    let (guest, id) = guest_with_blob(&exports);
    let last = SIZE - 64 * 256;
    guest.publish(id, layout(last)).unwrap();
    let bad = |change: fn(&mut Layout)| {
        let mut layout = layout(SIZE - 64 * 256);
        change(&mut layout);
        matches!(
            guest.publish(id, layout),
            Err(ExportError::BadLayout { .. })
        )
    };
    assert!(bad(|layout| layout.offset += 1));
    assert!(bad(|layout| layout.offset = u64::MAX));
    assert!(bad(|layout| layout.height = 65));
    assert!(bad(|layout| layout.width = 0));
    assert!(bad(|layout| layout.height = 0));
    assert!(bad(|layout| layout.stride = 0));
    assert!(bad(
        |layout| (layout.stride, layout.height) = (u32::MAX, u32::MAX)
    ));
}

#[test]
fn memory_is_handed_in_and_taken_back() {
    let exports = Exports::new();
    let guest = exports.guest(silent());
    let viewer = exports.join(silent()).unwrap();
    let other = exports.join(silent()).unwrap();
    let token = viewer.hand_in(memfd(8192, SealFlags::SHRINK)).unwrap();
    assert_eq!((token[6] >> 4, token[8] >> 6), (4, 2), "a UUID, version 4");
    let foreign = guest.take_import(token).unwrap();
    assert_eq!((foreign.size, foreign.kind), (8192, ForeignKind::Memfd));
    assert!(guest.take_import([0; 16]).is_none());
    assert_eq!(other.take_back(token), Err(ExportError::UnknownToken));
    viewer.take_back(token).unwrap();
    assert_eq!(viewer.take_back(token), Err(ExportError::UnknownToken));
    assert!(guest.take_import(token).is_none());
    // What was imported lives on.
    assert_eq!(rustix::fs::fstat(&foreign.file).unwrap().st_size, 8192);

    let tokens: Vec<_> = (0..MAX_TOKENS)
        .map(|_| viewer.hand_in(memfd(4096, SealFlags::SHRINK)).unwrap())
        .collect();
    let more = viewer.hand_in(memfd(4096, SealFlags::SHRINK));
    assert!(matches!(more, Err(ExportError::TooMany(MAX_TOKENS, _))));
    drop(viewer);
    assert!(guest.take_import(tokens[0]).is_none());
}

#[test]
fn only_memory_that_stays_is_taken() {
    let viewer = Exports::new().join(silent()).unwrap();
    let refused = |descriptor: OwnedFd| match viewer.hand_in(descriptor) {
        Err(ExportError::NotImportable(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let shrink = SealFlags::SHRINK;
    let mut options = std::fs::File::options();
    let null = options.read(true).write(true).open("/dev/null").unwrap();
    assert_eq!(refused(null.into()), NotImportable::Kind);
    assert_eq!(
        refused(memfd(4096, SealFlags::empty())),
        NotImportable::CanShrink
    );
    assert_eq!(
        refused(memfd(4096, shrink | SealFlags::WRITE)),
        NotImportable::ReadOnly
    );
    assert_eq!(refused(memfd(0, shrink)), NotImportable::Size(0));
    assert_eq!(refused(memfd(4097, shrink)), NotImportable::Size(4097));
    let fd = memfd(4096, shrink);
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd())
    );
    let read_only = std::fs::File::open(path).unwrap();
    assert_eq!(refused(read_only.into()), NotImportable::ReadOnly);
}

/// Guests and viewers in threads of their own: nothing hangs, nothing is left in use.
#[test]
fn many_threads() {
    const ROUNDS: u64 = 300;
    let exports = Exports::new();
    let done = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            let done = Arc::clone(&done);
            let (send, woken) = crossbeam_channel::unbounded();
            let guest = exports.guest(Arc::new(move || {
                let _ = send.send(());
            }));
            scope.spawn(move || {
                let serve = |guest: &GuestExports| {
                    while let Some(request) = guest.next_request() {
                        request.answer(Ok(descriptor()));
                    }
                };
                for round in 0..ROUNDS {
                    let id = guest.add([0; 16], SIZE, "").unwrap();
                    guest.publish(id, layout(round * 256)).unwrap();
                    for _ in 0..4 {
                        guest.present(id, round * 256);
                        serve(&guest);
                    }
                    guest.remove(id);
                    while guest.in_use(id, round * 256) || guest.is_open(id) {
                        woken.recv_timeout(Duration::from_secs(20)).unwrap();
                    }
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for _ in 0..6 {
            scope.spawn(|| {
                while done.load(Ordering::SeqCst) < 2 {
                    let viewer = exports.join(silent()).unwrap();
                    let mut last = 0;
                    while let Ok(event) = viewer.events().recv_timeout(Duration::from_millis(20)) {
                        match event {
                            Event::Added(blob) => viewer.open(1, blob.id),
                            Event::Presented {
                                id,
                                offset,
                                present,
                            } => {
                                assert!(present > last || present <= 4);
                                last = present;
                                viewer.release(id, offset, present).unwrap();
                            }
                            // A blob that it does not have open, or has: both are fine.
                            Event::Destroyed(id) => drop(viewer.close(id)),
                            _ => {}
                        }
                    }
                }
            });
        }
    });
    exports.with(|state, _| assert!(state.viewers.is_empty() && state.blobs.is_empty()));
}
