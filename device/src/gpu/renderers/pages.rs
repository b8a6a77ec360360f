//! Pages of the guest as one range of addresses, which is what rutabaga takes.
//!
//! The range outlives what is in it. When the VMM moves guest memory, or the guest wants its pages back, others take their place under the same
//! addresses. So an address that rutabaga has kept, perhaps in a thread that no longer answers, never dangles.

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};

use hostblob_allocator::provider::Piece;
use rustix::mm::{MapFlags, ProtFlags};
use rutabaga_gfx::RutabagaIovec;

/// A range of addresses, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Pages {
    base: NonNull<c_void>,
    length: usize,
}

// SAFETY: the range belongs to the process, not to a thread; `base` and `length` never change, and nothing here makes a reference into it.
unsafe impl Send for Pages {}
// SAFETY: as for `Send`; `replace` asks the kernel for one change after the other, each of which is atomic to whoever uses the range.
unsafe impl Sync for Pages {}

const ACCESS: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Pages {
    /// A range with these pages in it, one piece after the other.
    pub(super) fn new(pieces: &[Piece]) -> io::Result<Self> {
        let length = pieces.iter().try_fold(0_u64, |length, piece| {
            length.checked_add(piece.length).ok_or(invalid())
        })?;
        let length = usize::try_from(length).map_err(|_| invalid())?;
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces no other; it is unmapped in `drop` only.
        let base = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), length, ACCESS, MapFlags::PRIVATE)
        }?;
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = Self { base, length };
        pages.replace(Some(pieces))?;
        Ok(pages)
    }

    /// Puts other pages of the guest in the place of those that are there; as many, or zeros that are nobody's. Where that fails, zeros.
    pub(super) fn replace(&self, pieces: Option<&[Piece]>) -> io::Result<()> {
        let placed = pieces.map_or(Ok(()), |pieces| self.place(pieces));
        if pieces.is_none() || placed.is_err() {
            self.clear()?;
        }
        placed
    }

    fn place(&self, pieces: &[Piece]) -> io::Result<()> {
        let mut at = 0_usize;
        for piece in pieces {
            let length = usize::try_from(piece.length).map_err(|_| invalid())?;
            let end = at.checked_add(length).filter(|end| *end <= self.length);
            let (end, has) = (end.ok_or(invalid())?, piece.file.metadata()?.len());
            // Beyond the end of its file a page is a SIGBUS.
            let inside = |end| end <= has;
            if !piece.offset.checked_add(piece.length).is_some_and(inside) {
                return Err(invalid());
            }
            // SAFETY: `at` is less than `end`, which is at most `self.length`.
            let to = unsafe { self.base.as_ptr().byte_add(at) };
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: from `at` to `end` lies in the range that `self` owns, whose bytes nobody has a reference to.
            unsafe { rustix::mm::mmap(to, length, ACCESS, flags, &piece.file, piece.offset) }?;
            at = end;
        }
        if at == self.length {
            Ok(())
        } else {
            Err(invalid())
        }
    }

    fn clear(&self) -> io::Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: exactly the range that `self` owns, whose bytes nobody has a reference to.
        unsafe { rustix::mm::mmap_anonymous(self.base.as_ptr(), self.length, ACCESS, flags) }?;
        Ok(())
    }

    /// The range. Who keeps it keeps `self`.
    pub(super) fn iovec(&self) -> RutabagaIovec {
        RutabagaIovec {
            base: self.base.as_ptr(),
            len: self.length,
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `mmap` gave; whoever has an address of it keeps an `Arc` of `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.length) } {
            log::error!("munmap of {} bytes failed: {error}", self.length);
        }
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not pages of a file")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;

    const PAGE: u64 = 4096;

    fn file(value: u8) -> Arc<File> {
        let file = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.write_all_at(&[value; 16384], 0).unwrap();
        Arc::new(file)
    }

    fn piece(file: &Arc<File>, page: u64, pages: u64) -> Piece {
        Piece {
            file: Arc::clone(file),
            offset: page * PAGE,
            length: pages * PAGE,
        }
    }

    fn byte(pages: &Pages, at: usize) -> u8 {
        let address = pages.iovec().base.cast::<u8>().wrapping_add(at);
        // SAFETY: a test's own address, within its range.
        unsafe { address.read_volatile() }
    }

    #[test]
    fn addresses_stay_whatever_is_behind_them() {
        let (one, two) = (file(1), file(2));
        let pages = Pages::new(&[piece(&one, 3, 1), piece(&two, 0, 2)]).unwrap();
        let iovec = pages.iovec();
        assert_eq!(iovec.len as u64, 3 * PAGE);
        assert_eq!((byte(&pages, 0), byte(&pages, 4096)), (1, 2));
        // SAFETY: a test's own address, within its range.
        unsafe { iovec.base.cast::<u8>().write_volatile(9) };
        let mut seen = [0];
        one.read_exact_at(&mut seen, 3 * PAGE).unwrap();
        assert_eq!(seen, [9]);

        pages.replace(Some(&[piece(&two, 1, 3)])).unwrap();
        assert_eq!(pages.iovec().base, iovec.base);
        assert_eq!(byte(&pages, 0), 2);

        pages.replace(None).unwrap();
        assert_eq!((byte(&pages, 0), byte(&pages, 8192)), (0, 0));
    }

    #[test]
    fn what_is_not_there_is_never_mapped() {
        let one = file(1);
        let bad = [
            vec![piece(&one, 4, 1)],
            vec![piece(&one, u64::MAX / PAGE, 1)],
            vec![piece(&one, 0, 5)],
            vec![],
        ];
        for pieces in &bad {
            assert!(Pages::new(pieces).is_err());
        }
        let pages = Pages::new(&[piece(&one, 0, 2)]).unwrap();
        for pieces in [&[piece(&one, 0, 1)][..], &[piece(&one, 0, 3)]] {
            assert!(pages.replace(Some(pieces)).is_err());
            assert_eq!(
                byte(&pages, 0),
                0,
                "nobody's pages rather than half of them"
            );
            pages.replace(Some(&[piece(&one, 0, 2)])).unwrap();
            assert_eq!(byte(&pages, 4096), 1);
        }
    }
}
