//! Writes the first frame that a guest presents into a PNG file.
//!
//! `cargo run -p hostblob-export --example frame_to_png -- SOCKET FILE.png`

use std::fs::File;
use std::io::BufWriter;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hostblob_export::{BlobId, Client, Event, Layout, Mapping};

const XR24: u32 = u32::from_le_bytes(*b"XR24");
const AR24: u32 = u32::from_le_bytes(*b"AR24");
/// `DRM_FORMAT_MOD_LINEAR`.
const LINEAR: u64 = 0;
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(socket), Some(file)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: frame_to_png SOCKET FILE.png");
    };
    let mut client = Client::connect(socket)?;
    let (blob, layout) = first_frame(&mut client)?;

    // The same buffer once more: the daemon makes no second one.
    let opened = client.open(blob)?;
    let mapping = Mapping::new(&opened.descriptor, opened.size)?;
    let pixels = rgba(&mapping, &layout)?;
    client.release(blob, layout.offset)?;
    client.close(blob)?;

    let file = BufWriter::new(File::create(&file).with_context(|| format!("{}", file.display()))?);
    let mut encoder = png::Encoder::new(file, layout.width, layout.height);
    encoder.set_color(png::ColorType::Rgba);
    encoder.write_header()?.write_image_data(&pixels)?;
    println!(
        "blob {blob}, offset {:#x}: {} x {} pixels of a {}",
        layout.offset,
        layout.width,
        layout.height,
        if mapping.is_dma_buf() {
            "dma-buf"
        } else {
            "memfd"
        },
    );
    Ok(())
}

/// Opens every blob that holds a picture, and waits for one that is there.
fn first_frame(client: &mut Client) -> Result<(BlobId, Layout)> {
    for blob in client.list()? {
        if blob.buffers.iter().any(|buffer| is_picture(&buffer.layout))
            && let Some(found) = look(client, blob.id)?
        {
            return Ok(found);
        }
    }
    while let Some(event) = client.next_event(TIMEOUT)? {
        let found = match event {
            Event::Published(blob, buffer) if is_picture(&buffer.layout) => look(client, blob)?,
            Event::Presented { blob, .. } => look(client, blob)?,
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    anyhow::bail!("no picture of format XR24 or AR24 came within {TIMEOUT:?}")
}

/// Has the blob open; its newest picture, if there is one. Nothing else in it stays in use.
fn look(client: &mut Client, blob: BlobId) -> Result<Option<(BlobId, Layout)>> {
    let opened = match client.open(blob) {
        Ok(opened) => opened,
        // It may be gone, or be of a kind that cannot be exported.
        Err(error) => {
            eprintln!("blob {blob}: {error}");
            return Ok(None);
        }
    };
    let presented = || opened.buffers.iter().filter(|buffer| buffer.present > 0);
    let newest = presented()
        .filter(|buffer| is_picture(&buffer.layout))
        .max_by_key(|buffer| buffer.present);
    for other in presented().filter(|&buffer| Some(buffer) != newest) {
        client.release(blob, other.layout.offset)?;
    }
    Ok(newest.map(|buffer| (blob, buffer.layout)))
}

fn is_picture(layout: &Layout) -> bool {
    matches!(layout.fourcc, XR24 | AR24) && layout.modifier == LINEAR
}

/// Rows without gaps, red first.
fn rgba(mapping: &Mapping, layout: &Layout) -> Result<Vec<u8>> {
    let (width, stride) = (layout.width as usize, layout.stride as usize);
    let row_bytes = width.checked_mul(4).context("a row is too long")?;
    ensure!(row_bytes <= stride, "rows overlap: {layout:?}");
    let mut bytes = vec![0; stride * layout.height as usize];
    mapping.read(layout.offset, &mut bytes)?;
    let opaque = layout.fourcc == XR24;
    Ok(bytes
        .chunks_exact(stride)
        .flat_map(|row| row.iter().take(row_bytes).copied().collect::<Vec<u8>>())
        .collect::<Vec<u8>>()
        .as_chunks::<4>()
        .0
        .iter()
        .flat_map(|&[blue, green, red, alpha]| [red, green, blue, if opaque { 255 } else { alpha }])
        .collect())
}
