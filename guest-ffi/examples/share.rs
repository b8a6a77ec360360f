//! Memory that another context uses: `share` makes some and prints its UUID; `share UUID` names it, and lets the host GPU fill it.
//!
//! The UUID may also be a token that a host process got for memory of its own: see the example `hand_in` of `hostblob-export`.

use std::error::Error;
use std::io::Read;

use hostblob_guest::{AllocateInfo, Device, OpenOptions, WHOLE_SIZE};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::open(&OpenOptions::default())?;
    if let Some(text) = std::env::args().nth(1) {
        let memory = device.import(parse(&text)?)?;
        println!("it has {} bytes", memory.size());
        device
            .fill(&memory, 0, WHOLE_SIZE, 0x2a2a_2a2a)?
            .wait(None)?;
        println!("filled with asterisks");
        return Ok(());
    }
    let memory = device.allocate(&AllocateInfo::new(1 << 20).shareable())?;
    memory.write(0, b"nobody was here")?;
    println!("{}", write(memory.share()?));
    eprintln!("Enter shows what has become of it.");
    let _ = std::io::stdin().read(&mut [0])?;
    let mut bytes = [0; 15];
    memory.read(0, &mut bytes)?;
    println!("{}", String::from_utf8_lossy(&bytes));
    Ok(())
}

fn write(uuid: [u8; 16]) -> String {
    uuid.map(|byte| format!("{byte:02x}")).concat()
}

fn parse(text: &str) -> Result<[u8; 16], Box<dyn Error>> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    Ok(u128::from_str_radix(&digits, 16)?.to_be_bytes())
}
