//! The host GPU and the guest's CPU look at the same bytes.

use anyhow::{Context, Result, ensure};
use hostblob_guest::protocol::request::{Copy, Fill, Free};
use hostblob_guest::{AllocateInfo, CreateFlags, Device, Memory, Status, WHOLE_SIZE};

use super::{PATIENCE, Setup, answers, create, done, own, range, refused};
use crate::pattern;

/// One memory of each kind, `size` bytes or more.
fn kinds(device: &Device, size: u64) -> Result<Vec<(&'static str, Memory)>> {
    let infos = [
        ("suballocated", AllocateInfo::new(size)),
        ("dedicated", AllocateInfo::new(size).dedicated()),
        ("deferred", AllocateInfo::new(size).deferred()),
    ];
    let mut memories = Vec::new();
    for (kind, info) in infos {
        memories.push((kind, device.allocate(&info)?));
    }
    Ok(memories)
}

/// Memory that the guest cannot map.
pub fn private(device: &Device, size: u64) -> Result<Memory> {
    let types = &device.capabilities().types;
    let index = types
        .iter()
        .position(|t| !t.is_host_visible())
        .context("no private memory type")?;
    Ok(device.allocate(&AllocateInfo::new(size).memory_type(u32::try_from(index)?))?)
}

/// FILL, whole and in part, into each kind of memory; the rest stays as the guest wrote it.
pub fn fill_by_the_host_is_seen(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    for size in [4096_u64, 1 << 20, 5 << 20] {
        for (kind, memory) in kinds(&device, size)? {
            (|| {
                done(device.fill(&memory, 0, WHOLE_SIZE, 0x0403_0201))?;
                pattern::check_words(&memory, 0x0403_0201)?;
                pattern::write(&memory, 7)?;
                done(device.fill(&memory, 100, 52, 0xaabb_ccdd))?;
                pattern::check_at(&memory, 0, &pattern::bytes(7, 0, 100))?;
                pattern::check_at(&memory, 100, &0xaabb_ccdd_u32.to_le_bytes().repeat(13))?;
                pattern::check_at(&memory, 152, &pattern::bytes(7, 152, size - 152))
            })()
            .with_context(|| format!("{kind} memory of {size} bytes"))?;
        }
    }
    Ok(())
}

/// COPY between every two kinds: the guest writes, the host copies, the guest reads; and back.
pub fn copy_by_the_host_is_seen(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 1 << 20;
    for (from, source) in kinds(&device, size)? {
        for (to, destination) in kinds(&device, size)? {
            (|| {
                pattern::write(&source, 11)?;
                pattern::write(&destination, 12)?;
                source.flush(0, WHOLE_SIZE)?;
                done(device.copy(&source, 0, &destination, 0, size))?;
                destination.invalidate(0, WHOLE_SIZE)?;
                pattern::check(&destination, 11)?;
                pattern::check(&source, 11)?;
                destination.write(5, b"back")?;
                done(device.copy(&destination, 0, &source, 0, size))?;
                pattern::check_at(&source, 5, b"back")?;
                pattern::check_at(&source, 9, &pattern::bytes(11, 9, size - 9))
            })()
            .with_context(|| format!("{from} to {to}"))?;
        }
    }
    let (a, b) = (own(&device, 64 << 20)?, own(&device, 64 << 20)?);
    pattern::write(&a, 3)?;
    done(device.copy(&a, 0, &b, 0, 64 << 20))?;
    pattern::check(&b, 3).context("64 MiB")
}

/// Offsets and lengths that are no multiples of anything.
pub fn copies_take_any_offset(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 64 << 10;
    let (a, b) = (
        own(&device, size)?,
        device.allocate(&AllocateInfo::new(size))?,
    );
    pattern::write(&a, 21)?;
    for (from, to, length) in [
        (0, 1, 1),
        (4095, 4097, 2),
        (3, 5, 8191),
        (4096, 12345, 50001),
        (size - 1, 0, 1),
    ] {
        pattern::write(&b, 22)?;
        done(device.copy(&a, from, &b, to, length))?;
        (|| {
            pattern::check_at(&b, 0, &pattern::bytes(22, 0, to))?;
            pattern::check_at(&b, to, &pattern::bytes(21, from, length))?;
            pattern::check_at(
                &b,
                to + length,
                &pattern::bytes(22, to + length, size - to - length),
            )
        })()
        .with_context(|| format!("{length} bytes from {from:#x} to {to:#x}"))?;
    }
    // Within one memory, side by side.
    done(device.copy(&a, 0, &a, 32768, 32768))?;
    pattern::check_at(&a, 32768, &pattern::bytes(21, 0, 32768))?;
    pattern::check_at(&a, 0, &pattern::bytes(21, 0, 32768))
}

/// Many requests in flight take effect in the order in which they were sent.
pub fn work_is_done_in_order(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 256 << 10;
    let memories = (0..8)
        .map(|_| own(&device, size))
        .collect::<Result<Vec<_>>>()?;
    for round in 1..=5_u32 {
        let mut fences = vec![device.fill(&memories[0], 0, WHOLE_SIZE, round)?];
        for pair in memories.windows(2) {
            fences.push(device.copy(&pair[0], 0, &pair[1], 0, size)?);
            fences.push(device.fill(&pair[0], 0, WHOLE_SIZE, 0x1000 + round)?);
        }
        let (last, earlier) = fences.split_last().context("no fences")?;
        last.wait(Some(PATIENCE))?;
        for fence in earlier {
            ensure!(
                fence.is_signaled()?,
                "round {round}: a later fence was signalled first"
            );
        }
        let (end, others) = memories.split_last().context("no memories")?;
        pattern::check_words(end, round).with_context(|| format!("round {round}"))?;
        for memory in others {
            pattern::check_words(memory, 0x1000 + round)
                .with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

/// Device-local memory that the guest cannot map: the host GPU reaches it, the CPU does not, and it begins as zeros each time.
pub fn private_memory_is_filled_and_copied(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 1 << 20;
    let seen = own(&device, size)?;
    for round in 0..3 {
        pattern::write(&seen, 31)?;
        let (hidden, other) = (private(&device, size)?, private(&device, size)?);
        done(device.copy(&hidden, 0, &seen, 0, size))?;
        pattern::check_zero(&seen)
            .with_context(|| format!("fresh private memory, round {round}"))?;
        done(device.fill(&hidden, 0, WHOLE_SIZE, 0x5eed_5eed))?;
        done(device.copy(&hidden, 0, &other, 0, size))?;
        done(device.copy(&other, 0, &seen, 0, size))?;
        pattern::check_words(&seen, 0x5eed_5eed)?;
        pattern::write(&seen, 32)?;
        done(device.copy(&seen, 0, &hidden, 0, size))?;
        pattern::write(&seen, 33)?;
        done(device.copy(&hidden, 0, &seen, 0, size))?;
        pattern::check(&seen, 32)?;
        refused(hidden.map(), Status::NotMappable, "map of private memory")?;
        refused(
            hidden.read(0, &mut [0; 4]),
            Status::NotMappable,
            "read of private memory",
        )?;
    }
    // A host-visible type, but the guest does not ask for that.
    let id = device.reserve_client_id();
    answers(&device, create(id, size, CreateFlags::empty()), Status::Ok)?;
    answers(
        &device,
        Fill {
            range: range(id, 0, size),
            value: 77,
        },
        Status::Ok,
    )?;
    let copy = Copy {
        source: range(id, 0, size),
        destination_client_id: seen.client_id(),
        destination_offset: 0,
    };
    answers(&device, copy, Status::Ok)?;
    pattern::check_words(&seen, 77)?;
    answers(&device, Free { client_id: id }, Status::Ok)?;
    answers(
        &device,
        Fill {
            range: range(id, 0, size),
            value: 78,
        },
        Status::UnknownClientId,
    )
}

/// What does not lie inside a memory is refused by the host, and changes nothing.
pub fn bad_ranges_are_refused(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 8192;
    let (a, b) = (own(&device, size)?, own(&device, size)?);
    pattern::write(&a, 41)?;
    pattern::write(&b, 42)?;
    let id = a.client_id();
    for (offset, length) in [
        (0, size + 4),
        (size, 4),
        (4, size),
        (u64::MAX - 3, 4),
        (u64::MAX - 3, u64::MAX - 3),
        (0, u64::MAX - 3),
    ] {
        let fill = Fill {
            range: range(id, offset, length),
            value: 0,
        };
        answers(&device, fill, Status::OutOfRange)?;
        for (source, destination, at) in [
            (range(id, offset, length), b.client_id(), 0),
            (range(b.client_id(), 0, length), id, offset),
        ] {
            let copy = Copy {
                source,
                destination_client_id: destination,
                destination_offset: at,
            };
            answers(&device, copy, Status::OutOfRange)?;
        }
        refused(
            device.fill(&a, offset, length, 0),
            Status::OutOfRange,
            "fill",
        )?;
    }
    for (offset, length) in [(1, 4), (4, 5), (2, 2)] {
        let fill = Fill {
            range: range(id, offset, length),
            value: 0,
        };
        answers(&device, fill, Status::InvalidArgument)?;
    }
    let overlap = Copy {
        source: range(id, 0, 4096),
        destination_client_id: id,
        destination_offset: 4095,
    };
    answers(&device, overlap, Status::InvalidArgument)?;
    refused(a.write(size - 1, &[0; 2]), Status::OutOfRange, "write")?;
    refused(a.read(u64::MAX, &mut [0; 2]), Status::OutOfRange, "read")?;
    pattern::check(&a, 41)?;
    pattern::check(&b, 42)
}
