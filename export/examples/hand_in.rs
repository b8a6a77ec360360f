//! Memory of a host process in a guest: hands in a memfd, prints its token, and shows what the guest has written.
//!
//! `cargo run -p hostblob-export --example hand_in -- SOCKET`, then in the guest `share TOKEN`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use hostblob_export::Client;
use rustix::fs::{MemfdFlags, SealFlags};

fn main() -> Result<()> {
    let socket = std::env::args().nth(1).context("usage: hand_in SOCKET")?;
    let mut client = Client::connect(socket)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = File::from(rustix::fs::memfd_create("handed in", flags)?);
    memory.set_len(1 << 20)?;
    // So that nobody's access to it can fail.
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK)?;
    memory.write_all_at(b"nobody was here", 0)?;
    let token = client.hand_in(&memory)?;
    println!("{token}");
    eprintln!("Enter shows what has become of it.");
    let _ = std::io::stdin().read(&mut [0])?;
    let mut bytes = [0; 15];
    memory.read_exact_at(&mut bytes, 0)?;
    println!("{}", String::from_utf8_lossy(&bytes));
    client.take_back(token)?;
    Ok(())
}
