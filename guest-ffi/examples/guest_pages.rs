//! Memory in the guest's own pages: the host GPU works on it without a copy. Needs a virtual machine.

use std::error::Error;

use hostblob_guest::{AllocateInfo, Device, OpenOptions, WHOLE_SIZE};

const SIZE: u64 = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::open(&OpenOptions::default())?;
    let pages = device.allocate_guest(SIZE)?;
    println!("{SIZE} bytes of our own pages, of which the host holds none");

    pages.write(0, b"written by the guest")?;
    let host = device.allocate(&AllocateInfo::new(SIZE))?;
    device.copy(&pages, 0, &host, 0, SIZE)?.wait(None)?;
    let mut bytes = [0; 20];
    host.read(0, &mut bytes)?;
    println!("the host GPU copied: {:?}", String::from_utf8_lossy(&bytes));

    device
        .fill(&pages, 0, WHOLE_SIZE, 0x2a2a_2a2a)?
        .wait(None)?;
    let mut last = [0; 4];
    pages.read(SIZE - 4, &mut last)?;
    println!("and filled our pages: {:?}", String::from_utf8_lossy(&last));
    Ok(())
}
