//! The transport end to end: a driver of the tests over the crate's client, against [`serve`] with a fake device.

mod cloud_hypervisor;
mod cut;
mod hostile;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};
use vfio_user::Client;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::fake::{Control, FakeDevice, WINDOW, answer};
use super::*;
use crate::gpu::SaveError;
use crate::transport::line::jam;
use crate::transport::listen;
use crate::virtqueue::{F_EVENT_IDX, F_VERSION_1};

const VIRTIO: u32 = layout::VIRTIO_BAR;
const CONFIG: u32 = layout::CONFIG;
const PATIENCE: Duration = Duration::from_secs(10);

/// Guest memory of the tests: rings of queue n at n pages, buffers from 64 KiB.
const RAM: u64 = 0x10_0000;
const RAM_SIZE: usize = 1 << 20;
const SIZE: u16 = 8;

struct Daemon {
    path: PathBuf,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
    /// Of each device that was made.
    controls: Arc<Mutex<Vec<Control>>>,
    snapshots: Arc<Snapshots>,
}

impl Daemon {
    fn start(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hostblob-{name}-{}", std::process::id()));
        let listener = listen(&path).unwrap();
        let shutdown = Shutdown::new().unwrap();
        let controls = Arc::<Mutex<Vec<Control>>>::default();
        let snapshots = Arc::new(Snapshots::new());
        let thread = std::thread::spawn({
            let (shutdown, controls) = (shutdown.clone(), Arc::clone(&controls));
            let snapshots = Arc::clone(&snapshots);
            move || {
                let new_device = |waker| {
                    let (device, control) = FakeDevice::new(waker);
                    controls.lock().push(control);
                    Ok::<_, std::io::Error>(device)
                };
                serve_saveable(&listener, new_device, &shutdown, &snapshots).unwrap();
            }
        });
        Self {
            path,
            shutdown,
            thread: Some(thread),
            controls,
            snapshots,
        }
    }

    fn connect(&self) -> Driver {
        let before = self.controls.lock().len();
        let client = Client::new(&self.path).unwrap();
        let control = self.controls.lock().get(before).unwrap().clone();
        Driver::new(client, control)
    }

    /// Ends it and says how long that took.
    fn end(&mut self) -> Duration {
        let start = Instant::now();
        self.shutdown.request();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        start.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A driver, and the VMM that carries its accesses.
struct Driver {
    client: Client,
    control: Control,
    memory: OwnedFd,
    ram: GuestMemoryMmap,
    vectors: [OwnedFd; 3],
    available: [u16; 2],
    seen: [u16; 2],
}

impl Driver {
    fn new(client: Client, control: Control) -> Self {
        let memory = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, RAM_SIZE as u64).unwrap();
        let file = FileOffset::new(memory.try_clone().unwrap().into(), 0);
        let ram =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(RAM), RAM_SIZE, Some(file))]);
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        Self {
            client,
            control,
            memory,
            ram: ram.unwrap(),
            vectors: [event(), event(), event()],
            available: [0; 2],
            seen: [0; 2],
        }
    }

    fn read<const N: usize>(&mut self, region: u32, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.client.region_read(region, offset, &mut data).unwrap();
        data
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.client.region_write(VIRTIO, offset, data).unwrap();
    }

    fn map_memory(&mut self) {
        let fd = self.memory.as_raw_fd();
        self.client.dma_map(0, RAM, RAM_SIZE as u64, fd).unwrap();
    }

    fn enable_interrupts(&mut self) {
        // MSI-X enable, memory space and bus master.
        self.client
            .region_write(CONFIG, 0x42, &[0x02, 0x80])
            .unwrap();
        self.client.region_write(CONFIG, 0x04, &[6, 0]).unwrap();
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        for (n, fd) in (0..).zip(self.vectors.each_ref().map(AsRawFd::as_raw_fd)) {
            self.client.set_irqs(2, flags, n, 1, &[fd]).unwrap();
        }
    }

    fn negotiate(&mut self, features: u64) {
        self.write(20, &[0]);
        self.write(20, &[1]);
        self.write(20, &[3]);
        for (select, word) in features.to_le_bytes().chunks(4).enumerate() {
            self.write(8, &u32::try_from(select).unwrap().to_le_bytes());
            self.write(12, word);
        }
        self.write(20, &[11]);
        assert_eq!(self.read(VIRTIO, 20), [11]);
        self.write(16, &[0, 0]);
        for queue in [0, 1] {
            self.write(22, &u16::from(queue).to_le_bytes());
            self.write(24, &SIZE.to_le_bytes());
            self.write(26, &u16::from(queue + 1).to_le_bytes());
            let base = Self::ring(queue);
            for (offset, address) in [(32, base), (40, base + 0x400), (48, base + 0x800)] {
                self.write(offset, &address.to_le_bytes()[..4]);
                self.write(offset + 4, &address.to_le_bytes()[4..]);
            }
            self.write(28, &[1, 0]);
            let zeros = [0; 0x1000];
            self.ram.write_slice(&zeros, GuestAddress(base)).unwrap();
        }
        self.available = [0; 2];
        self.seen = [0; 2];
        self.write(20, &[15]);
    }

    /// Everything up to a running device.
    fn start(&mut self) {
        self.map_memory();
        self.enable_interrupts();
        self.negotiate(super::fake::FEATURES | F_VERSION_1 | F_EVENT_IDX);
    }

    fn ring(queue: u8) -> u64 {
        RAM + u64::from(queue) * 0x1000
    }

    fn buffer(head: u16) -> u64 {
        RAM + 0x1_0000 + u64::from(head) * 0x1000
    }

    /// Makes a command available at descriptors `head` and `head + 1`, without notifying.
    fn offer(&mut self, queue: u8, head: u16, command: &[u8]) {
        let (ring, at) = (Self::ring(queue), Self::buffer(head));
        self.ram.write_slice(command, GuestAddress(at)).unwrap();
        let length = u32::try_from(command.len()).unwrap();
        for (index, address, length, flags) in
            [(head, at, length, 1_u16), (head + 1, at + 0x800, 256, 2)]
        {
            let entry = GuestAddress(ring + u64::from(index) * 16);
            let words: [u64; 2] = [
                address,
                u64::from(length) | u64::from(flags) << 32 | u64::from(head + 1) << 48,
            ];
            self.ram.write_obj(words, entry).unwrap();
        }
        let available = &mut self.available[usize::from(queue)];
        let slot = ring + 0x404 + u64::from(*available % SIZE) * 2;
        self.ram.write_obj(head, GuestAddress(slot)).unwrap();
        *available = available.wrapping_add(1);
        self.ram
            .write_obj(*available, GuestAddress(ring + 0x402))
            .unwrap();
    }

    fn notify(&mut self, queue: u8) {
        self.write(
            0x3000 + 4 * u64::from(queue),
            &u16::from(queue).to_le_bytes(),
        );
    }

    /// The next used entries, when their interrupt has come: (head, response).
    fn used(&mut self, queue: u8) -> Vec<(u32, Vec<u8>)> {
        let vector = &self.vectors[usize::from(queue) + 1];
        let mut poll = [PollFd::new(vector, PollFlags::IN)];
        let patience = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        assert_eq!(
            rustix::event::poll(&mut poll, Some(&patience)).unwrap(),
            1,
            "an interrupt"
        );
        rustix::io::read(vector, &mut [0; 8]).unwrap();
        self.used_now(queue)
    }

    fn used_now(&mut self, queue: u8) -> Vec<(u32, Vec<u8>)> {
        let ring = Self::ring(queue) + 0x800;
        let index: u16 = self.ram.read_obj(GuestAddress(ring + 2)).unwrap();
        let seen = &mut self.seen[usize::from(queue)];
        let mut found = Vec::new();
        while *seen != index {
            let at = ring + 4 + u64::from(*seen % SIZE) * 8;
            let [head, length]: [u32; 2] = self.ram.read_obj(GuestAddress(at)).unwrap();
            let mut response = vec![0; length.try_into().unwrap()];
            let buffer = Self::buffer(head.try_into().unwrap()) + 0x800;
            self.ram
                .read_slice(&mut response, GuestAddress(buffer))
                .unwrap();
            found.push((head, response));
            *seen = seen.wrapping_add(1);
        }
        // used_event: the next one.
        let event = Self::ring(queue) + 0x404 + u64::from(SIZE) * 2;
        self.ram.write_obj(*seen, GuestAddress(event)).unwrap();
        found
    }

    fn round_trip(&mut self, head: u16, command: &[u8]) {
        self.offer(0, head, command);
        self.notify(0);
        assert_eq!(self.used(0), [(head.into(), answer(command))]);
    }
}

#[test]
fn a_command_runs_through_the_device() {
    let daemon = Daemon::start("command");
    let mut driver = daemon.connect();
    let window = driver.client.region(2).unwrap();
    assert_eq!((window.size, window.flags & 7), (WINDOW, 7));
    assert_eq!(
        (window.sparse_areas[0].offset, window.sparse_areas[0].size),
        (0, WINDOW)
    );
    assert!(window.file_offset.is_some());
    assert_eq!(driver.client.get_irq_info(2).unwrap().count, 3);
    driver.start();
    for round in 0..50_u16 {
        driver.round_trip(round % 4 * 2, &round.to_le_bytes());
    }
    // The cursor queue answers too, on its own vector.
    driver.offer(1, 0, b"cursor");
    driver.notify(1);
    assert_eq!(driver.used(1), [(0, b"rosruc".to_vec())]);
}

#[test]
fn a_burst_with_one_notification_is_answered_whole() {
    let daemon = Daemon::start("burst");
    let mut driver = daemon.connect();
    driver.start();
    for head in [0, 2, 4, 6] {
        driver.offer(0, head, &[1, 2, u8::try_from(head).unwrap()]);
    }
    driver.notify(0);
    let mut used = driver.used(0);
    wait_until("all responses", || {
        used.extend(driver.used_now(0));
        used.len() == 4
    });
    assert_eq!(
        used.iter().map(|(head, _)| *head).collect::<Vec<_>>(),
        [0, 2, 4, 6]
    );
}

#[test]
fn kept_commands_are_answered_when_they_complete() {
    let daemon = Daemon::start("kept");
    let mut driver = daemon.connect();
    driver.start();
    for head in [0, 2, 4] {
        driver.offer(0, head, &[b'k', u8::try_from(head).unwrap()]);
    }
    driver.notify(0);
    let control = driver.control.clone();
    wait_until("three kept commands", || control.kept() == 3);
    driver.round_trip(6, b"meanwhile");
    control.complete(1);
    assert_eq!(driver.used(0), [(2, vec![2, b'k'])]);
    control.complete(1);
    assert_eq!(driver.used(0), [(4, vec![4, b'k'])]);
    control.complete(0);
    assert_eq!(driver.used(0), [(0, vec![0, b'k'])]);
}

#[test]
fn a_running_device_is_saved_between_commands() {
    let daemon = Daemon::start("save");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    let none = daemon.snapshots.save_file(&file);
    assert!(matches!(none, Err(SaveError::NoDevice)));
    let mut driver = daemon.connect();
    driver.start();
    driver.round_trip(0, b"before");
    daemon.snapshots.save_file(&file).unwrap();
    let (mut other, _) = FakeDevice::new(Arc::new(|| {}));
    let held = crate::transport::snapshot::restore_file(&mut other, &file).unwrap();
    assert_eq!(held, crate::transport::snapshot::Held::default());
    std::fs::remove_file(&file).unwrap();

    driver.offer(0, 2, b"kept");
    driver.notify(0);
    let control = driver.control.clone();
    wait_until("a kept command", || control.kept() == 1);
    let busy = daemon.snapshots.save_file(&file);
    assert!(matches!(busy, Err(SaveError::Busy(1))));
    assert_eq!(
        folder.path().read_dir().unwrap().count(),
        0,
        "nothing is left"
    );
    std::thread::scope(|scope| {
        let saved = scope.spawn(|| daemon.snapshots.save_file(&file));
        std::thread::sleep(Duration::from_millis(20));
        // Taken when the save is over.
        driver.offer(0, 4, b"after");
        driver.notify(0);
        control.complete(0);
        saved.join().unwrap().unwrap();
    });
    let mut used = driver.used(0);
    wait_until("both responses", || {
        used.extend(driver.used_now(0));
        used.len() == 2
    });
    assert_eq!(used, [(2, answer(b"kept")), (4, answer(b"after"))]);
}

#[test]
fn a_reset_forgets_kept_commands_and_the_device_starts_again() {
    let daemon = Daemon::start("reset");
    let mut driver = daemon.connect();
    driver.start();
    for round in 1..=3 {
        driver.offer(0, 0, b"kept");
        driver.notify(0);
        let control = driver.control.clone();
        wait_until("a kept command", || control.kept() == 1);
        if round == 2 {
            driver.client.reset().unwrap();
            assert_eq!(driver.read(CONFIG, 4), [0, 0]);
            driver.enable_interrupts();
        }
        driver.negotiate(F_VERSION_1);
        assert_eq!((control.kept(), driver.used_now(0).len()), (0, 0));
        driver.round_trip(0, b"new");
    }
    // Each round's own, and the status write of each negotiation.
    assert_eq!(driver.control.state.lock().resets, 5);
}

#[test]
fn a_broken_queue_asks_for_a_reset_and_the_other_goes_on() {
    let daemon = Daemon::start("broken");
    let mut driver = daemon.connect();
    driver.start();
    driver.offer(0, 0, b"kept");
    driver.offer(0, 0, b"kept");
    driver.notify(0);
    wait_until("NEEDS_RESET", || driver.read(VIRTIO, 20) == [15 | 64]);
    wait_until("the configuration interrupt", || {
        rustix::io::read(&driver.vectors[0], &mut [0; 8]).is_ok()
    });
    driver.offer(1, 0, b"cursor");
    driver.notify(1);
    assert_eq!(driver.used(1).len(), 1);
    driver.control.complete(0);
    assert_eq!(driver.used_now(0), [], "its queue is gone");
    driver.negotiate(F_VERSION_1);
    assert_eq!(driver.read(VIRTIO, 20), [15]);
    driver.round_trip(0, b"again");
}

#[test]
fn memory_moves_under_a_running_queue() {
    let daemon = Daemon::start("memory");
    let mut driver = daemon.connect();
    driver.start();
    let fd = driver.memory.as_raw_fd();
    for round in 0..20_u16 {
        driver.client.dma_unmap(RAM, RAM_SIZE as u64).unwrap();
        driver.offer(0, 0, &round.to_le_bytes());
        driver.notify(0);
        // In two pieces: buffers, then rings.
        driver
            .client
            .dma_map(0x8000, RAM + 0x8000, RAM_SIZE as u64 - 0x8000, fd)
            .unwrap();
        assert_eq!(driver.used_now(0), [], "the rings are not there yet");
        driver.client.dma_map(0, RAM, 0x8000, fd).unwrap();
        assert_eq!(driver.used(0), [(0, answer(&round.to_le_bytes()))]);
        driver.round_trip(2, b"works");
    }
}

#[test]
fn a_notification_before_driver_ok_does_nothing() {
    let daemon = Daemon::start("early");
    let mut driver = daemon.connect();
    driver.map_memory();
    driver.enable_interrupts();
    driver.offer(0, 0, b"early");
    for offset in [0x3000, 0x3004, 0x3008, 0x3ffc] {
        driver.write(offset, &[0, 0]);
    }
    assert_eq!(driver.control.state.lock().executed.len(), 0);
    driver.negotiate(F_VERSION_1);
    driver.round_trip(0, b"now");
    assert_eq!(driver.control.state.lock().executed, [b"now"]);
}

#[test]
fn queues_outside_guest_memory_are_idle_until_they_are_set_up_again() {
    let daemon = Daemon::start("outside");
    let mut driver = daemon.connect();
    driver.enable_interrupts();
    driver.negotiate(F_VERSION_1);
    driver.notify(0);
    driver.notify(1);
    assert_eq!(driver.read(VIRTIO, 20), [15]);
    driver.map_memory();
    driver.negotiate(F_VERSION_1);
    driver.round_trip(0, b"mended");
}

#[test]
fn without_bus_mastering_guest_memory_is_not_touched() {
    let daemon = Daemon::start("master");
    let mut driver = daemon.connect();
    driver.start();
    driver.client.region_write(CONFIG, 0x04, &[2, 0]).unwrap();
    driver.offer(0, 0, b"early");
    driver.notify(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.control.state.lock().executed.len(), 0);
    driver.client.region_write(CONFIG, 0x04, &[6, 0]).unwrap();
    assert_eq!(driver.used(0), [(0, b"ylrae".to_vec())]);
}

#[test]
fn a_vmm_that_comes_again_finds_a_new_device() {
    let daemon = Daemon::start("again");
    for connection in 1..=3 {
        let mut driver = daemon.connect();
        assert_eq!(driver.read(VIRTIO, 20), [0]);
        driver.start();
        driver.round_trip(0, b"hello");
        assert_eq!(daemon.controls.lock().len(), connection);
        assert_eq!(driver.control.state.lock().executed.len(), 1);
        driver.client.shutdown().unwrap();
    }
}

#[test]
fn it_ends_promptly_in_every_state() {
    let mut daemon = Daemon::start("end-idle");
    assert!(daemon.end() < Duration::from_secs(1));

    let mut daemon = Daemon::start("end-connected");
    let mut driver = daemon.connect();
    driver.start();
    driver.offer(0, 0, b"kept");
    driver.notify(0);
    assert!(daemon.end() < Duration::from_secs(1));

    // In the middle of a message nothing can interrupt the crate: it is abandoned.
    let mut daemon = Daemon::start("end-half");
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    std::io::Write::write_all(
        &mut stream,
        &[0, 0, 2, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(daemon.end() < Duration::from_secs(4));
}

/// A vector's flags are the VMM's too: here its counter is full, and who writes to it waits until somebody reads.
#[test]
fn a_vmm_whose_vectors_block_is_answered_and_the_end_comes_at_once() {
    let mut daemon = Daemon::start("jammed");
    let mut driver = daemon.connect();
    driver.start();
    driver.round_trip(0, b"before");
    for vector in &driver.vectors {
        jam(vector);
    }
    for head in [2, 4, 6] {
        driver.offer(0, head, b"jammed");
        driver.notify(0);
        let mut used = Vec::new();
        wait_until("an answer", || {
            used.extend(driver.used_now(0));
            !used.is_empty()
        });
        assert_eq!(used, [(u32::from(head), answer(b"jammed"))]);
    }
    // The VMM's own interrupt, in the message thread.
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    driver.client.set_irqs(2, flags, 0, 3, &[]).unwrap();
    driver.offer(0, 0, b"until the end");
    driver.notify(0);
    assert!(daemon.end() < Duration::from_secs(2));
}

#[test]
fn garbage_ends_its_connection_only() {
    let daemon = Daemon::start("garbage");
    let header = |command: u16, size: u32| {
        let [c0, c1] = command.to_le_bytes();
        let [s0, s1, s2, s3] = size.to_le_bytes();
        vec![0, 0, c0, c1, s0, s1, s2, s3, 0, 0, 0, 0, 0, 0, 0, 0]
    };
    let mut version = header(1, 22);
    version.extend([0, 0, 0, 0, b'{', b'}']);
    let messages = [
        vec![],
        vec![1],
        vec![0xff; 64],
        header(1, 0),
        header(1, 19),
        version,
        header(4, 0),
        header(9, 32),
        header(99, 16),
    ];
    for message in messages {
        let mut stream = UnixStream::connect(&daemon.path).unwrap();
        std::io::Write::write_all(&mut stream, &message).unwrap();
        drop(stream);
    }
    let mut driver = daemon.connect_after(9);
    driver.start();
    driver.round_trip(0, b"alive");
}

impl Daemon {
    /// As [`Self::connect`], where other connections may still be served before.
    fn connect_after(&self, connections: usize) -> Driver {
        wait_until("the others' devices", || {
            self.controls.lock().len() == connections
        });
        self.connect()
    }
}

#[test]
fn a_device_that_cannot_be_made_ends_its_connection_only() {
    let path = std::env::temp_dir().join(format!("hostblob-none-{}", std::process::id()));
    let listener = listen(&path).unwrap();
    let shutdown = Shutdown::new().unwrap();
    let thread = std::thread::spawn({
        let shutdown = shutdown.clone();
        let new_device = |_| Err::<FakeDevice, _>(std::io::Error::other("no"));
        move || serve(&listener, new_device, &shutdown)
    });
    for _ in 0..2 {
        assert!(Client::new(&path).is_err());
    }
    shutdown.request();
    thread.join().unwrap().unwrap();
    std::fs::remove_file(&path).unwrap();
}
