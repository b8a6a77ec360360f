//! A sparse memfd, mapped once: the only place where the window's bytes are touched by the CPU.
//!
//! The guest writes to the same pages at any time, so nothing here ever makes a reference to them other than to
//! atomics. All offsets come as [`Span`]s, which lie inside the file by construction.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};
use rustix::mm::{MapFlags, ProtFlags};

use super::ranges::Bytes;
use super::span::{PAGE, Span};

/// A memfd that cannot shrink or grow, and this process's mapping of all of it.
#[derive(Debug)]
pub(crate) struct SharedFile {
    descriptor: OwnedFd,
    base: NonNull<u8>,
    size: u64,
}

// SAFETY: the mapping belongs to this value alone until drop, and every access goes through raw copies or atomics that
// are valid from any thread.
unsafe impl Send for SharedFile {}
// SAFETY: as above; no method hands out a non-atomic reference.
unsafe impl Sync for SharedFile {}

impl SharedFile {
    /// A file of `size` bytes, all holes. `size` is a multiple of the page size and not 0.
    pub(crate) fn new(name: &str, size: u64) -> rustix::io::Result<Self> {
        let length = usize::try_from(size).map_err(|_| rustix::io::Errno::OVERFLOW)?;
        let descriptor =
            rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&descriptor, size)?;
        // udmabuf wants SHRINK; GROW and SEAL keep a frontend that has the descriptor from changing what it is.
        rustix::fs::fcntl_add_seals(
            &descriptor,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        Self::map(descriptor, size, length)
    }

    /// A memfd of somebody else, of `size` bytes, that can no longer shrink. It reads as zeros afterwards.
    pub(crate) fn adopt(descriptor: OwnedFd, size: u64) -> rustix::io::Result<Self> {
        let length = usize::try_from(size).map_err(|_| rustix::io::Errno::OVERFLOW)?;
        let seals = rustix::fs::fcntl_get_seals(&descriptor)?;
        let has = u64::try_from(rustix::fs::fstat(&descriptor)?.st_size);
        if !seals.contains(SealFlags::SHRINK)
            || seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)
            || has != Ok(size)
        {
            return Err(rustix::io::Errno::INVAL);
        }
        let file = Self::map(descriptor, size, length)?;
        if let Some(all) = Span::between(0, size) {
            file.punch(all)?;
        }
        Ok(file)
    }

    fn map(descriptor: OwnedFd, size: u64, length: usize) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing; the file is as long as the mapping and, sealed,
        // stays so.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &descriptor,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self {
            descriptor,
            base,
            size,
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.base
    }

    /// First byte of a span and its length. The span was made for a file of this size.
    fn bytes(&self, span: Span) -> (*mut u8, usize) {
        assert!(span.end() <= self.size, "a span of another file");
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the whole file fits in usize: new() checked"
        )]
        let (start, length) = (span.start() as usize, span.len() as usize);
        // SAFETY: start <= size, and the mapping has size bytes.
        (unsafe { self.base.as_ptr().add(start) }, length)
    }

    /// Writes zeros over the pages that exist; holes stay holes. Returns the bytes of those pages.
    pub(crate) fn zero_resident(&self, span: Span, mut resident: impl FnMut(Span)) {
        for part in self.data(span) {
            let (start, length) = self.bytes(part);
            // SAFETY: the bytes lie in the mapping; other threads and the guest only ever see bytes, no references exist.
            unsafe { start.write_bytes(0, length) };
            resident(part);
        }
    }

    /// Gives the pages back; the span reads as zeros.
    pub(crate) fn punch(&self, span: Span) -> rustix::io::Result<()> {
        loop {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.descriptor, flags, span.start(), span.len()) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Copies `from` of another file to here, leaving holes where it has holes; `to` reads as zeros before.
    pub(crate) fn copy_from(&self, to: Span, other: &SharedFile, from: Span) {
        assert_eq!(to.len(), from.len(), "spans of one memory");
        for part in other.data(from) {
            let (source, length) = other.bytes(part);
            let target = to.start() + (part.start() - from.start());
            let Some(target) = Span::between(target, target + part.len()) else {
                continue;
            };
            let (target, _) = self.bytes(target);
            // SAFETY: both lie in their mappings and do not overlap: they are spans of different files, or of one
            // where copy_within() checked; only bytes, no references.
            unsafe { target.copy_from_nonoverlapping(source, length) };
        }
    }

    /// Copies `from` to `to`, which read as zeros before; the spans do not overlap.
    pub(crate) fn copy_within(&self, to: Span, from: Span) {
        assert!(to.intersection(from).is_none(), "places of one memory");
        self.copy_from(to, self, from);
    }

    /// The words of a span, for memory that guest and host share by agreement.
    pub(crate) fn words(&self, span: Span) -> &[AtomicU64] {
        let (start, length) = self.bytes(span);
        // SAFETY: page-aligned, inside the mapping, which lives as long as self; atomics may be written by others at
        // any time, and every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(start.cast(), length / size_of::<AtomicU64>()) }
    }

    /// The parts of `span` that have pages. A host that cannot tell says: all of it.
    ///
    /// The kernel is quick to find where data begins. For where it ends SEEK_HOLE would look at all pages that follow, far beyond `span`.
    pub(crate) fn data(&self, span: Span) -> Vec<Span> {
        let mut parts = Vec::new();
        let mut cached = Cached::none();
        let mut at = span.start();
        while at < span.end() {
            let start = match rustix::fs::seek(&self.descriptor, SeekFrom::Data(at)) {
                Ok(start) => start.max(at) / PAGE * PAGE,
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => at,
            };
            at = start.saturating_add(PAGE);
            while cached.has(self, at, span.end()) {
                at += PAGE;
            }
            parts.extend(Span::between(start, at.min(span.end())).filter(|_| start < span.end()));
        }
        parts
    }

    /// Bytes of pages that the file holds.
    pub(crate) fn resident(&self) -> u64 {
        rustix::fs::fstat(&self.descriptor)
            .ok()
            .and_then(|stat| u64::try_from(stat.st_blocks).ok())
            .map_or(0, |blocks| blocks.saturating_mul(512))
    }
}

/// Pages of which is known whether they are in the page cache, as mincore(2) says. Those that are swapped out are not, and have data all the same.
struct Cached {
    pages: [u8; CACHED_AT_ONCE],
    known: Option<Span>,
}

/// Pages that are looked at with one call.
const CACHED_AT_ONCE: usize = 512;

impl Cached {
    fn none() -> Self {
        Self {
            pages: [0; CACHED_AT_ONCE],
            known: None,
        }
    }

    /// Whether the page at `offset` lies before `end` and is in the cache.
    fn has(&mut self, file: &SharedFile, offset: u64, end: u64) -> bool {
        let most = offset.saturating_add(CACHED_AT_ONCE as u64 * PAGE);
        let Some(ahead) = Span::between(offset, end.min(most)) else {
            return false;
        };
        let known = match self.known {
            Some(known) if known.start() <= offset && offset < known.end() => known,
            _ => self.look(file, ahead),
        };
        let index = usize::try_from((offset - known.start()) / PAGE);
        index.is_ok_and(|index| self.pages.get(index).is_some_and(|page| page & 1 == 1))
    }

    fn look(&mut self, file: &SharedFile, span: Span) -> Span {
        let (start, length) = file.bytes(span);
        // SAFETY: the span lies in the mapping and has no more pages than there are bytes to write to.
        let done = unsafe { libc::mincore(start.cast(), length, self.pages.as_mut_ptr()) };
        if done != 0 {
            self.pages.fill(1);
        }
        self.known = Some(span);
        span
    }
}

impl Bytes for SharedFile {
    fn size(&self) -> u64 {
        self.size()
    }

    fn resident(&self) -> u64 {
        self.resident()
    }

    fn zero_resident(&self, span: Span, resident: impl FnMut(Span)) {
        self.zero_resident(span, resident);
    }

    fn punch(&self, span: Span) -> rustix::io::Result<()> {
        self.punch(span)
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        let Ok(length) = usize::try_from(self.size) else {
            return;
        };
        // SAFETY: mapped by new() with this length and not unmapped since; nothing borrows from self any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), length) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    const SIZE: u64 = 64 * PAGE;

    fn span(page: u64, pages: u64) -> Span {
        Span::new(page * PAGE, pages * PAGE, SIZE).unwrap()
    }

    fn first_words(file: &SharedFile) -> Vec<u64> {
        let all = file.words(span(0, 64));
        (0..64)
            .map(|page| all[page * 512].load(Ordering::Relaxed))
            .collect()
    }

    #[test]
    fn zeroing_touches_only_pages_that_exist() {
        let file = SharedFile::new("test", SIZE).unwrap();
        for page in [3, 4, 9] {
            file.words(span(page, 1))[0].store(7, Ordering::Relaxed);
        }
        assert_eq!(file.resident(), 3 * PAGE);
        let mut seen = Vec::new();
        file.zero_resident(span(4, 10), |part| seen.push(part));
        assert_eq!(seen, [span(4, 1), span(9, 1)]);
        let mut expected = vec![0; 64];
        expected[3] = 7;
        assert_eq!(first_words(&file), expected);
        file.punch(span(0, 64)).unwrap();
        assert_eq!(file.resident(), 0);
    }

    #[test]
    fn data_is_found_in_spans_of_many_pages() {
        let pages = 3 * CACHED_AT_ONCE as u64;
        let file = SharedFile::new("test", pages * PAGE).unwrap();
        let span = |from, to| Span::between(from * PAGE, to * PAGE).unwrap();
        let all = span(0, pages);
        assert_eq!(file.data(all), []);
        for page in (0..pages).filter(|page| page % 1000 != 7) {
            file.words(span(page, page + 1))[0].store(7, Ordering::Relaxed);
        }
        assert_eq!(
            file.data(all),
            [span(0, 7), span(8, 1007), span(1008, pages)]
        );
        assert_eq!(file.data(span(7, 8)), []);
        assert_eq!(file.data(span(6, 7)), [span(6, 7)]);
        assert_eq!(file.data(span(5, 9)), [span(5, 7), span(8, 9)]);
    }

    #[test]
    fn copies_keep_holes() {
        let from = SharedFile::new("from", SIZE).unwrap();
        let to = SharedFile::new("to", SIZE).unwrap();
        from.words(span(2, 1))[0].store(1, Ordering::Relaxed);
        from.words(span(5, 1))[0].store(2, Ordering::Relaxed);
        to.copy_from(span(10, 8), &from, span(1, 8));
        assert_eq!(to.resident(), 2 * PAGE);
        let words = first_words(&to);
        assert_eq!((words[11], words[14]), (1, 2));
    }

    #[test]
    fn a_file_of_somebody_else_is_emptied_or_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = |seals| {
            let memfd = rustix::fs::memfd_create("theirs", flags).unwrap();
            rustix::fs::ftruncate(&memfd, SIZE).unwrap();
            rustix::io::pwrite(&memfd, b"old", 5 * PAGE).unwrap();
            rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
            memfd
        };
        let file = SharedFile::adopt(memfd(SealFlags::SHRINK), SIZE).unwrap();
        assert!(first_words(&file).iter().all(|word| *word == 0));
        for (seals, size) in [
            (SealFlags::empty(), SIZE),
            (SealFlags::SHRINK | SealFlags::WRITE, SIZE),
            (SealFlags::SHRINK, SIZE - PAGE),
            (SealFlags::SHRINK, 2 * SIZE),
        ] {
            assert!(SharedFile::adopt(memfd(seals), size).is_err(), "{seals:?}");
        }
    }

    #[test]
    fn the_file_cannot_change_its_size() {
        let file = SharedFile::new("sealed", SIZE).unwrap();
        assert!(rustix::fs::ftruncate(file.as_fd(), 0).is_err());
        assert!(rustix::fs::ftruncate(file.as_fd(), SIZE * 2).is_err());
    }
}
