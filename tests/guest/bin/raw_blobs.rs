//! `raw_blobs [NUMBER]`: the kernel's ioctls alone, NUMBER blobs one after another, and as many at once.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hostblob_tests::raw::Node;

const SIZE: u64 = 4096;

fn main() -> Result<()> {
    let number = std::env::args()
        .nth(1)
        .map_or(Ok(10_000_u64), |text| text.parse())?;
    let node = Node::open()?;
    let start = Instant::now();
    for round in 0..number {
        // Now and then one of another size, so that places differ.
        let size = if round % 16 == 15 { 5 * SIZE } else { SIZE };
        let blob = node.create(size).with_context(|| format!("blob {round}"))?;
        let mapped = node.map(&blob).with_context(|| format!("blob {round}"))?;
        let dirty = mapped.first_not_zero();
        ensure!(dirty.is_none(), "blob {round}: word {dirty:?} is not 0");
        for index in 0..mapped.words() {
            mapped.store(index, !round);
        }
        ensure!(
            mapped.load(mapped.words() - 1) == !round,
            "blob {round} does not keep its bytes"
        );
        drop(mapped);
        node.close(blob)?;
    }
    println!(
        "{number} blobs created, mapped, read as zeros, written and freed: {} ms",
        start.elapsed().as_millis()
    );

    let start = Instant::now();
    let mut live = Vec::new();
    for round in 0..number {
        let blob = node
            .create(SIZE)
            .with_context(|| format!("live blob {round}"))?;
        let mapped = node
            .map(&blob)
            .with_context(|| format!("live blob {round}"))?;
        let dirty = mapped.first_not_zero();
        ensure!(
            dirty.is_none(),
            "live blob {round}: word {dirty:?} is not 0"
        );
        mapped.store(0, round + 1);
        mapped.store(511, !round);
        live.push((blob, mapped));
    }
    for (round, (_, mapped)) in (0..).zip(&live) {
        ensure!(
            mapped.load(0) == round + 1,
            "live blob {round}: {:#x}",
            mapped.load(0)
        );
        ensure!(
            mapped.load(511) == !round,
            "live blob {round}: {:#x}",
            mapped.load(511)
        );
        ensure!(
            mapped.load(1) == 0,
            "live blob {round}: {:#x}",
            mapped.load(1)
        );
    }
    for (blob, mapped) in live {
        drop(mapped);
        node.close(blob)?;
    }
    let last = node.create(SIZE)?;
    ensure!(
        node.map(&last)?.first_not_zero().is_none(),
        "memory of before"
    );
    println!(
        "{number} blobs live at once, each with its own bytes: {} ms",
        start.elapsed().as_millis()
    );
    Ok(())
}
