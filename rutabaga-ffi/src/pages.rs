//! Guest memory: a VMM says where it has it mapped, and the allocator wants to know the file behind.
//!
//! The process's own tables say which file that is, and one of its descriptors is that file: the VMM keeps it, as QEMU does with
//! `memory-backend-memfd`. So guest memory is here what it is in hostblobd, ranges of files, and udmabuf takes it too. (Duplicating the
//! pages with `mremap` would give an address, and no way to udmabuf.)

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use hostblob_allocator::provider::Piece;
use libc::iovec;
use rustix::fs::{OFlags, makedev};

use crate::error::{Error, Result};

/// A file, whatever descriptor it has.
type Identity = (u64, u64);

/// Files of guest memory that are in use. One descriptor of each, however many blobs there are.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: HashMap<Identity, Weak<File>>,
}

/// One line of /proc/self/maps.
#[derive(Debug, PartialEq, Eq)]
struct Area {
    start: usize,
    end: usize,
    /// Shared, for reading and writing.
    usable: bool,
    /// In the file.
    offset: u64,
    file: Identity,
}

impl Files {
    /// The files behind these ranges, which are not empty.
    pub(crate) fn pieces(&mut self, ranges: &[iovec]) -> Result<Vec<Piece>> {
        let maps = std::fs::read_to_string("/proc/self/maps");
        let maps = maps.map_err(|error| Error::Proc("maps", error))?;
        let areas: Vec<Area> = maps.lines().filter_map(area).collect();
        let mut pieces = Vec::with_capacity(ranges.len());
        for range in ranges {
            let (mut address, mut left) = (range.iov_base.addr(), range.iov_len);
            while left > 0 {
                let area = usable(&areas, address)?;
                let length = left.min(area.end - address);
                pieces.push(Piece {
                    file: self.file(area.file, address)?,
                    offset: area.offset.saturating_add((address - area.start) as u64),
                    length: length as u64,
                });
                left -= length;
                address += length;
            }
        }
        Ok(pieces)
    }

    fn file(&mut self, identity: Identity, address: usize) -> Result<Arc<File>> {
        if let Some(file) = self.open.get(&identity).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = find(identity)?.ok_or(Error::Pages {
            address,
            reason: "its file is not open in this process",
        })?;
        self.open.retain(|_, file| file.strong_count() > 0);
        self.open.insert(identity, Arc::downgrade(&file));
        Ok(file)
    }
}

/// What is mapped at an address, if others can map it too.
fn usable(areas: &[Area], address: usize) -> Result<&Area> {
    let fail = |reason| Error::Pages { address, reason };
    let after = areas.partition_point(|area| area.end <= address);
    let area = areas
        .get(after)
        .filter(|area| area.start <= address)
        .ok_or(fail("nothing is mapped there"))?;
    if !area.usable {
        return Err(fail(
            "it is private, and has to be shared: QEMU does that with -object memory-backend-memfd,share=on",
        ));
    }
    Ok(area)
}

/// A descriptor of our own for a file that this process has open for reading and writing.
fn find(identity: Identity) -> Result<Option<Arc<File>>> {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|error| Error::Proc("fd", error))?;
    for entry in entries.flatten() {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|number| *number >= 0) else {
            continue;
        };
        // SAFETY: a number that the kernel has just named; where it is closed or taken by another file meanwhile, the copy fails or is
        // seen to be another file below.
        let theirs = unsafe { BorrowedFd::borrow_raw(number) };
        let Ok(copy) = rustix::io::fcntl_dupfd_cloexec(theirs, 0) else {
            continue;
        };
        if is_it(&copy, identity) {
            return Ok(Some(Arc::new(copy.into())));
        }
    }
    Ok(None)
}

fn is_it(file: &OwnedFd, identity: Identity) -> bool {
    let same = rustix::fs::fstat(file).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity);
    let access = || rustix::fs::fcntl_getfl(file).map(|flags| flags & OFlags::ACCMODE);
    same && access() == Ok(OFlags::RDWR)
}

/// `start-end access offset major:minor inode`, in hexadecimal but for the last.
fn area(line: &str) -> Option<Area> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let access = words.next()?;
    let offset = words.next()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = makedev(
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
    );
    let inode: u64 = words.next()?.parse().ok()?;
    Some(Area {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        usable: access.starts_with("rw") && access.ends_with('s') && inode != 0,
        offset: u64::from_str_radix(offset, 16).ok()?,
        file: (device, inode),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps() {
        let line = "7f1c2000-7f1c6000 rw-s 00003000 00:01 1036   /memfd:pc.ram (deleted)";
        let read = area(line).unwrap();
        assert_eq!((read.start, read.end), (0x7f1c_2000, 0x7f1c_6000));
        assert_eq!((read.offset, read.file), (0x3000, (1, 1036)));
        assert!(read.usable);
        for private in [
            "7f1c2000-7f1c6000 rw-p 00003000 00:01 1036 /lib/x",
            "7f1c2000-7f1c6000 r--s 00003000 00:01 1036 /lib/x",
            "7f1c2000-7f1c6000 rw-p 00000000 00:00 0",
        ] {
            assert!(!area(private).unwrap().usable, "{private}");
        }
        assert_eq!(area("not a line"), None);
    }

    #[test]
    fn an_address_between_areas_is_none() {
        let areas: Vec<Area> = ["1000-2000 rw-s 0 00:01 7 a", "3000-4000 rw-s 0 00:01 7 a"]
            .into_iter()
            .filter_map(area)
            .collect();
        assert_eq!(usable(&areas, 0x1fff).unwrap().start, 0x1000);
        for nowhere in [0, 0xfff, 0x2000, 0x4000, usize::MAX] {
            assert!(usable(&areas, nowhere).is_err(), "{nowhere:#x}");
        }
    }
}
