//! The kernel out of its image. An image unpacks itself, which an emulated processor does for two seconds at each boot; the kernel that is in it
//! QEMU starts at once, by PVH.

use std::io::Read;

use anyhow::{Context, Result, bail};
use ruzstd::decoding::StreamingDecoder;

// The Linux/x86 boot protocol: where an image says what is where.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// The ELF file in a bzImage, which Debian compresses by Zstandard.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>> {
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("it is no bzImage");
    }
    // 0 stands for 4, as in old times.
    let sectors = match image.get(SETUP_SECTORS) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let start = word(image, PAYLOAD_OFFSET)?.checked_add((sectors + 1) * SECTOR);
    let end = start.and_then(|start| start.checked_add(word(image, PAYLOAD_LENGTH).ok()?));
    let payload = start
        .zip(end)
        .and_then(|(start, end)| image.get(start..end));
    let payload = payload.context("its kernel is not where its header says")?;
    let mut kernel = Vec::new();
    StreamingDecoder::new(payload)
        .context("its kernel is compressed by something else than Zstandard")?
        .read_to_end(&mut kernel)
        .context("its kernel cannot be decompressed")?;
    if !kernel.starts_with(b"\x7fELF") {
        bail!("what it unpacks is no ELF file");
    }
    Ok(kernel)
}

fn word(image: &[u8], at: usize) -> Result<usize> {
    let bytes = image.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u32::from_le_bytes(*bytes.context("it is too short")?).try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused() {
        let said = |image: &[u8]| unpack(image).unwrap_err().to_string();
        assert_eq!(said(b"no image"), "it is no bzImage");
        let mut image = vec![0; 0x300];
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_LENGTH] = 1;
        assert_eq!(said(&image), "its kernel is not where its header says");
        image.resize(5 * SECTOR + 1, 0);
        let other = "its kernel is compressed by something else than Zstandard";
        assert_eq!(said(&image), other);
    }
}
