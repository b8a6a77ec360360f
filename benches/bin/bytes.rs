//! `bench-bytes NUMBER`: bytes of bookkeeping on the heap for each of NUMBER live blobs, counted by the allocator of this process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use hostblob_benches::record::Record;
use hostblob_benches::suballocators::as_number;
use hostblob_benches::{Driver, host};

/// Counts what is on the heap.
struct Counting(AtomicUsize);

// SAFETY: everything is handed to `System` as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting(AtomicUsize::new(0));

fn main() -> Result<()> {
    let argument = std::env::args().nth(1).context("bench-bytes NUMBER")?;
    let number: u32 = argument.parse()?;
    let mut driver = Driver::new(&host(), 0);
    let before = HEAP.0.load(Ordering::Relaxed);
    for _ in 0..number {
        driver.create();
    }
    let after = HEAP.0.load(Ordering::Relaxed);
    let record = Record {
        live: number.into(),
        samples: vec![as_number(after.saturating_sub(before)) / f64::from(number)],
        ..Record::new("", "bookkeeping", "bytes per blob")
    };
    Ok(record.print()?)
}
