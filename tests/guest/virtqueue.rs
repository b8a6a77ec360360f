//! A virtio-gpu driver in a process: it takes the PCI device from the kernel's driver, and puts on the queue whatever it wants.
//!
//! Written from virtio 1.3 (2.7, 4.1), apart from the crates of the host. No interrupts: it looks.

use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mm::{MapFlags, ProtFlags};

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;
/// Entries of the queue.
pub const SIZE: u16 = 16;

/// `DEVICE_NEEDS_RESET`.
const NEEDS_RESET: u8 = 64;
/// VERSION_1, INDIRECT_DESC, and of the device VIRGL, RESOURCE_BLOB, CONTEXT_INIT.
const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 | 1 << 3 | 1 << 4;
const PAGE: usize = 4096;
/// Longest time for an answer of an emulated guest's device.
const PATIENCE: Duration = Duration::from_secs(30);

/// A buffer for the device, and where it says a buffer is.
pub type Descriptor = (u64, u32, u16, u16);

/// Bytes that both sides see: registers, or memory.
struct Shared {
    base: NonNull<u8>,
    length: usize,
}

impl Shared {
    fn registers(file: &File, length: usize) -> Result<Self> {
        Self::map(|protection| {
            let flags = MapFlags::SHARED;
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, file, 0) }
        })
        .map(|base| Self { base, length })
    }

    /// Memory that stays where it is.
    fn memory() -> Result<Self> {
        let length = PAGE;
        let base = Self::map(|protection| {
            let flags = MapFlags::PRIVATE | MapFlags::LOCKED | MapFlags::POPULATE;
            // SAFETY: as above.
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, flags) }
        })?;
        Ok(Self { base, length })
    }

    fn map(map: impl FnOnce(ProtFlags) -> rustix::io::Result<*mut c_void>) -> Result<NonNull<u8>> {
        let base = map(ProtFlags::READ | ProtFlags::WRITE)?;
        NonNull::new(base.cast()).context("mmap gave null")
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.length && offset.is_multiple_of(size_of::<T>()));
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    /// `T` is an integer.
    fn get<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: inside the mapping and aligned by the assertion; mapped until the process ends. The device writes too, hence volatile.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    fn set<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    /// Where the device finds it: of a page of memory.
    fn address(&self) -> Result<u64> {
        let page = self.base.as_ptr().addr() / PAGE;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page as u64 * 8)?;
        let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
        ensure!(frame != 0, "the kernel does not say where a page is");
        Ok(frame * PAGE as u64)
    }
}

/// A virtio structure in a BAR.
struct Structure {
    bar: usize,
    offset: usize,
    multiplier: usize,
}

/// The device, taken from the kernel.
pub struct Queue {
    folder: PathBuf,
    common: Shared,
    common_at: usize,
    notify: Shared,
    notify_at: usize,
    rings: Shared,
    rings_at: u64,
    /// For commands, responses and tables of descriptors.
    buffers: [Shared; 3],
    /// Where those are.
    pub command: u64,
    /// Where responses go.
    pub response: u64,
    /// Where a table of descriptors is.
    pub table: u64,
    available: u16,
    seen: u16,
}

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;

impl Queue {
    /// Takes the device, and starts it.
    pub fn take() -> Result<Self> {
        let folder = find()?;
        let name = folder.file_name().context("a name")?.to_owned();
        let name = name.to_string_lossy().into_owned();
        fs::write(folder.join("driver/unbind"), &name).context("the kernel keeps the device")?;
        fs::write(folder.join("enable"), "1").context("enable")?;
        let config = OpenOptions::new()
            .read(true)
            .write(true)
            .open(folder.join("config"))?;
        // Memory space and bus master.
        config.write_all_at(&6_u16.to_le_bytes(), 4)?;
        let mut space = [0; 256];
        config.read_exact_at(&mut space, 0)?;
        let bar = |structure: &Structure| -> Result<Shared> {
            let path = folder.join(format!("resource{}", structure.bar));
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let length = usize::try_from(file.metadata()?.len())?;
            Shared::registers(&file, length)
        };
        let (common, notify) = (
            find_structure(&space, COMMON)?,
            find_structure(&space, NOTIFY)?,
        );
        let buffers = [Shared::memory()?, Shared::memory()?, Shared::memory()?];
        let rings = Shared::memory()?;
        let mut queue = Self {
            common: bar(&common)?,
            common_at: common.offset,
            notify: bar(&notify)?,
            notify_at: notify.offset,
            rings_at: rings.address()?,
            rings,
            command: buffers[0].address()?,
            response: buffers[1].address()?,
            table: buffers[2].address()?,
            buffers,
            available: 0,
            seen: 0,
            folder,
        };
        queue.start()?;
        let offset: u16 = queue.common.get(queue.common_at + 30);
        queue.notify_at += usize::from(offset) * notify.multiplier;
        Ok(queue)
    }

    /// Resets the device, and sets it up with the control queue alone.
    pub fn start(&mut self) -> Result<()> {
        self.set_up()?;
        self.set_status(15);
        ensure!(
            self.status() == 15,
            "the device does not start: {}",
            self.status()
        );
        Ok(())
    }

    /// As [`Queue::start`], up to DRIVER_OK.
    pub fn set_up(&mut self) -> Result<()> {
        self.set_status(0);
        let start = Instant::now();
        while self.status() != 0 {
            ensure!(start.elapsed() < PATIENCE, "the device is not reset");
        }
        self.set_status(1);
        self.set_status(3);
        for (select, bits) in [(0_u32, FEATURES), (1, FEATURES >> 32)] {
            self.register(8, select);
            self.register(12, bits as u32);
        }
        self.set_status(11);
        ensure!(
            self.status() == 11,
            "features are refused: {}",
            self.status()
        );
        for offset in (0..PAGE).step_by(8) {
            self.rings.set(offset, 0_u64);
        }
        (self.available, self.seen) = (0, 0);
        self.register(16, u16::MAX);
        self.register(22, 0_u16);
        self.register(24, SIZE);
        self.register(26, u16::MAX);
        self.set_addresses(self.rings_at);
        self.register(28, 1_u16);
        Ok(())
    }

    /// Says where the rings are.
    pub fn set_addresses(&self, rings: u64) {
        for (register, at) in [(32, 0), (40, 0x400), (48, 0x800)] {
            let address = rings + at;
            self.register(register, address as u32);
            self.register(register + 4, (address >> 32) as u32);
        }
    }

    fn register<T: Copy>(&self, offset: usize, value: T) {
        self.common.set(self.common_at + offset, value);
    }

    /// The device's status.
    pub fn status(&self) -> u8 {
        self.common.get(self.common_at + 20)
    }

    /// Sets the status after all else.
    pub fn set_status(&self, status: u8) {
        self.register(20, status);
    }

    /// Whether the device wants to be reset, soon.
    pub fn is_broken(&self) -> bool {
        let start = Instant::now();
        while self.status() & NEEDS_RESET == 0 {
            if start.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Bytes of a command, or of a table.
    pub fn put(&self, buffer: usize, bytes: &[u8]) {
        for (offset, byte) in (0..).zip(bytes) {
            self.buffers[buffer].set(offset, *byte);
        }
    }

    /// Descriptors, in the queue's own table.
    pub fn describe(&self, descriptors: &[Descriptor]) {
        for (index, &descriptor) in (0..).zip(descriptors) {
            for (half, word) in (0..).zip(words(descriptor)) {
                self.rings.set(index * 16 + half * 8, word);
            }
        }
    }

    /// Descriptors, in a table of their own.
    pub fn describe_indirect(&self, descriptors: &[Descriptor]) {
        for (index, &descriptor) in (0..).zip(descriptors) {
            for (half, word) in (0..).zip(words(descriptor)) {
                self.buffers[2].set(index * 16 + half * 8, word);
            }
        }
    }

    /// Makes a head available, and tells.
    pub fn offer(&mut self, head: u16) {
        self.rings
            .set(0x404 + usize::from(self.available % SIZE) * 2, head);
        self.skip_to(self.available.wrapping_add(1));
    }

    /// Says that the available ring has come so far, and tells.
    pub fn skip_to(&mut self, available: u16) {
        self.available = available;
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.rings.set(0x402, available);
        self.tell();
    }

    /// The doorbell.
    pub fn tell(&self) {
        self.notify.set(self.notify_at, 0_u16);
    }

    /// How many answers there are that nobody has looked at.
    pub fn answers(&self) -> u16 {
        self.rings.get::<u16>(0x802).wrapping_sub(self.seen)
    }

    /// The next answer: head and length.
    pub fn answer(&mut self) -> Result<(u32, u32)> {
        let start = Instant::now();
        while self.answers() == 0 {
            ensure!(
                start.elapsed() < PATIENCE,
                "no answer; status {}",
                self.status()
            );
            std::thread::yield_now();
        }
        ensure!(
            self.answers() == 1,
            "{} answers to one command",
            self.answers()
        );
        let at = 0x804 + usize::from(self.seen % SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        Ok((self.rings.get(at), self.rings.get(at + 4)))
    }

    /// A command in one piece: the bytes of its response.
    pub fn command(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.put(0, command);
        self.put(1, &[0xee; 1024]);
        self.describe(&[
            (self.command, u32::try_from(command.len())?, NEXT, 1),
            (self.response, 1024, WRITE, 0),
        ]);
        self.offer(0);
        let (head, length) = self.answer()?;
        ensure!(head == 0, "an answer to head {head}");
        Ok((0..usize::try_from(length)?)
            .map(|at| self.buffers[1].get(at))
            .collect())
    }

    /// Where the device's BARs are: start and length.
    pub fn bars(&self) -> Result<Vec<(u64, u64)>> {
        let text = fs::read_to_string(self.folder.join("resource"))?;
        let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16);
        let mut bars = Vec::new();
        for line in text.lines().take(6) {
            let words: Vec<&str> = line.split(' ').collect();
            let [start, end, _] = words.as_slice() else {
                bail!("{line}")
            };
            let (start, end) = (number(start)?, number(end)?);
            if start != 0 {
                bars.push((start, end - start + 1));
            }
        }
        Ok(bars)
    }

    /// Gives the device back to the kernel's driver.
    pub fn give_back(self) -> Result<()> {
        self.set_status(0);
        let name = self.folder.file_name().context("a name")?;
        fs::write(
            "/sys/bus/pci/drivers/virtio-pci/bind",
            name.to_string_lossy().as_bytes(),
        )
        .context("the kernel does not take the device back")
    }
}

fn words((address, length, flags, next): Descriptor) -> [u64; 2] {
    let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
    [address, rest]
}

fn find() -> Result<PathBuf> {
    for device in fs::read_dir("/sys/bus/pci/devices")? {
        let folder = device?.path();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        if read("vendor").trim() == "0x1af4" && read("device").trim() == "0x1050" {
            return Ok(folder);
        }
    }
    bail!("there is no virtio-gpu PCI device")
}

/// Vendor capabilities (4.1.4): `cfg_type`, BAR, offset, and the multiplier of notifications.
fn find_structure(space: &[u8; 256], kind: u8) -> Result<Structure> {
    let word =
        |at: usize| u32::from_le_bytes([space[at], space[at + 1], space[at + 2], space[at + 3]]);
    let mut at = usize::from(space[0x34]);
    while at != 0 {
        if space[at] == 9 && space[at + 3] == kind {
            return Ok(Structure {
                bar: space[at + 4].into(),
                offset: word(at + 8).try_into()?,
                multiplier: word(at + 16).try_into()?,
            });
        }
        at = space[at + 1].into();
    }
    bail!("the device has no structure {kind}")
}
