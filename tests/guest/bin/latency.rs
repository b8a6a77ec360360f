//! `latency [RUNS]`: how long a guest waits for memory. In a guest by ioctls alone; with `HOSTBLOB_SOCKET` by the library.
//!
//! `latency --serve CAPSET LIVE SIZES` measures on request, against whichever device has that capset (a number, or `hostblob`): requests come on the terminal
//! that its output goes to, and each is answered with records and the line `done`.

use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Result, bail};
use hostblob_guest::{Device, ENV_SOCKET, OpenOptions};
use hostblob_tests::latency::{self, Maker, Plan, Request};
use hostblob_tests::raw::{CAPSET_ID, Node};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => once(300),
        ["--serve", "hostblob", live, sizes] => serve(CAPSET_ID, &Plan::parse(live, sizes)?),
        ["--serve", capset, live, sizes] => serve(capset.parse()?, &Plan::parse(live, sizes)?),
        [runs] => once(runs.parse()?),
        _ => bail!("latency [RUNS] | --serve CAPSET LIVE SIZES"),
    }
}

fn once(runs: usize) -> Result<()> {
    let device = Device::open(&OpenOptions::default())?;
    let mut all = if std::env::var_os(ENV_SOCKET).is_some() {
        latency::measure(&device, runs)?
    } else {
        let node = Node::open()?;
        let mut all = latency::measure(&node, runs)?;
        all.push(latency::round_trips(&node, CAPSET_ID, runs)?);
        all
    };
    all.extend(latency::library(&device, runs)?);
    print!("{}", latency::table(&all));
    if let Some(ratio) = latency::ratio(&all) {
        println!(
            "create + map + mmap of 4 KiB among 10,000 live blobs takes {ratio:.2} times what it takes among none"
        );
    }
    Ok(())
}

fn serve(capset: u64, plan: &Plan) -> Result<()> {
    let node = Node::open_for(capset)?;
    let requests = BufReader::new(File::open("/proc/self/fd/1")?);
    println!("ready");
    for line in requests.lines() {
        match Request::parse(&line?)? {
            Request::Round => {
                let mut all = latency::lives(&node, plan)?;
                let count = plan.sizes.first().map_or(1, |&(_, count)| count);
                all.push(latency::round_trips(&node, capset, count)?);
                all.extend(latency::copies(&node)?);
                for series in all {
                    println!("{}", series.line());
                }
            }
            Request::Lives(count) => {
                for _ in 0..count {
                    let held = node.make(4096)?;
                    node.touch(&held)?;
                    node.release(held)?;
                }
                node.settle()?;
            }
            Request::End => break,
        }
        println!("done");
    }
    Ok(())
}
