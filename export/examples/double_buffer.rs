//! Follows a guest that flips between buffers: each flip is told, each buffer has one descriptor for good.
//!
//! `cargo run -p hostblob-export --example double_buffer -- SOCKET FLIPS`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hostblob_export::{BlobId, Client, Event, Exported};

const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(flips)) = (arguments.next(), arguments.next()) else {
        bail!("usage: double_buffer SOCKET FLIPS");
    };
    let flips: u64 = flips.parse().context("FLIPS is a number")?;
    let mut client = Client::connect(socket)?;
    let mut open = BTreeMap::new();
    for blob in client.list()? {
        look(&mut client, blob.id, &mut open);
    }
    let mut different = BTreeSet::new();
    let mut flipped = 0;
    while flipped < flips {
        let event = client.next_event(TIMEOUT)?;
        match event.with_context(|| format!("no flip for {TIMEOUT:?}"))? {
            Event::Published(blob, _) => look(&mut client, blob, &mut open),
            Event::Presented { blob, offset, .. } => {
                flipped += 1;
                // Asked for again at each flip, to show that it is the same one.
                let identity = identity(&client.open(blob)?)?;
                different.insert(identity);
                println!("flip {flipped}: blob {blob}, offset {offset:#x}, buffer {identity:?}");
                client.release(blob, offset)?;
            }
            Event::Destroyed(blob) if open.remove(&blob).is_some() => client.close(blob)?,
            _ => {}
        }
    }
    println!("{flipped} flips, {} different buffers", different.len());
    for blob in open.into_keys() {
        client.close(blob)?;
    }
    Ok(())
}

/// Has the blob open, if it can be.
fn look(client: &mut Client, blob: BlobId, open: &mut BTreeMap<BlobId, Exported>) {
    if open.contains_key(&blob) {
        return;
    }
    match client.open(blob) {
        Ok(opened) => {
            // What was presented before we came is of no interest.
            for buffer in opened.buffers.iter().filter(|buffer| buffer.present > 0) {
                if let Err(error) = client.release(blob, buffer.layout.offset) {
                    eprintln!("blob {blob}: {error}");
                }
            }
            open.insert(blob, opened);
        }
        Err(error) => eprintln!("blob {blob}: {error}"),
    }
}

/// What two descriptors of one buffer have in common: device and inode.
fn identity(opened: &Exported) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(&opened.descriptor)?;
    Ok((stat.st_dev, stat.st_ino))
}
