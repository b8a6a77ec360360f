//! `latency [RUNS]`: how long a guest waits for memory. In a guest by ioctls alone; with `HOSTBLOB_SOCKET` by the library.

use anyhow::Result;
use hostblob_guest::{Device, ENV_SOCKET, OpenOptions};
use hostblob_tests::latency;
use hostblob_tests::raw::Node;

fn main() -> Result<()> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(300), |text| text.parse())?;
    let device = Device::open(&OpenOptions::default())?;
    let mut rows = if std::env::var_os(ENV_SOCKET).is_some() {
        latency::blobs(&device, count)?
    } else {
        latency::blobs(&Node::open()?, count)?
    };
    rows.extend(latency::library(&device, count)?);
    print!("{}", latency::table(&rows));
    if let Some(ratio) = latency::ratio(&rows) {
        println!(
            "create + map + mmap of 4 KiB among 10,000 live blobs takes {ratio:.2} times what it takes among none"
        );
    }
    println!("{}", latency::line(&rows));
    Ok(())
}
