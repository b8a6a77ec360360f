//! Commands of the control queue, decoded and executed: one blob created, mapped and destroyed among others that live on.

#![allow(
    clippy::expect_used,
    missing_docs,
    reason = "a measurement that cannot be made ends; the macros of criterion document nothing"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hostblob_benches::{Driver, host};

/// Blobs that live while one more is measured.
const LIVE: [u32; 4] = [0, 100, 1_000, 10_000];

fn create_map_destroy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("create + map + unmap + unref of 4 KiB, live blobs");
    let host = host();
    for live in LIVE {
        let mut driver = Driver::new(&host, live);
        group.bench_function(BenchmarkId::from_parameter(live), |bencher| {
            bencher.iter(|| {
                let resource = driver.create();
                driver.destroy(black_box(resource));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, create_map_destroy);
criterion_main!(benches);
