//! A snapshot that a stranger wrote, with checksums that are right: it is refused and leaves the device as new, or what it makes can be saved,
//! and restored to the same again.

#![no_main]

use std::sync::Arc;

use hostblob_allocator::snapshot::stream::Writer;
use hostblob_device::gpu::{Gpu, NoPages};
use hostblob_fuzz::commands::{check_reset, wait_until};
use hostblob_fuzz::{gpu, host};
use libfuzzer_sys::fuzz_target;

/// What begins each of the two streams of a snapshot: magic and version.
const HEAD: usize = 12;

/// One stream, with its checksums and its end made right; what follows it comes back. A kind of 0 ends it.
fn mend<'a>(bytes: &'a [u8], sink: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (head, mut rest) = bytes.split_at_checked(HEAD)?;
    let (magic, _) = head.split_first_chunk()?;
    let mut writer = Writer::new(sink, *magic).ok()?;
    loop {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        // Cut: the input says more than there is.
        let length = (u32::from_le_bytes(*length) as usize).min(after.len());
        let (payload, after) = after.split_at_checked(length)?;
        rest = after.get(4..).unwrap_or_default();
        match u32::from_le_bytes(*kind) {
            0 => break,
            kind => writer.section(kind, payload).ok()?,
        }
        if rest.is_empty() {
            break;
        }
    }
    writer.finish().ok()?;
    Some(rest)
}

fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut snapshot = Vec::new();
    if let Some(rest) = mend(bytes, &mut snapshot) {
        let _ = mend(rest, &mut snapshot);
    }
    snapshot
}

fn save(gpu: &mut Gpu) -> Vec<u8> {
    let mut bytes = Vec::new();
    gpu.save(&mut bytes)
        .expect("what was restored can be saved");
    bytes
}

fn device() -> Gpu {
    gpu(Arc::new(|| {}))
}

fn check(bytes: &[u8]) {
    let mut gpu = device();
    let mut source = bytes;
    if gpu.restore(&mut source).is_err() {
        assert!(gpu.is_new(), "a refused snapshot leaves something");
        wait_until("the last refund", || {
            let _ = gpu.completed();
            host().used() == 0
        });
    } else {
        gpu.guest_pages_changed(&NoPages);
        let saved = save(&mut gpu);
        // The host's limits are for both together.
        gpu.reset();
        wait_until("the last refund", || {
            let _ = gpu.completed();
            host().used() == 0
        });
        let mut again = device();
        again
            .restore(&mut saved.as_slice())
            .expect("what was saved");
        assert!(save(&mut again) == saved, "not what was saved");
        again.reset();
    }
    check_reset(&mut gpu, host());
}

fuzz_target!(|bytes: &[u8]| {
    check(&mended(bytes));
    check(bytes);
});
