//! Allocate and free of the guest library: from blocks, by threads that share a device, and as blobs of their own.

#![allow(
    clippy::expect_used,
    missing_docs,
    reason = "a measurement that cannot be made ends; the macros of criterion document nothing"
)]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hostblob_benches::{Served, host};
use hostblob_guest::{AllocateInfo, Device};

/// `count` pairs on each of `threads`, started together: the time until the last one ends.
fn pairs(device: &Device, threads: usize, count: u64, info: &AllocateInfo<'_>) -> Duration {
    let start = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                start.wait();
                for _ in 0..count {
                    drop(black_box(device.allocate(info).expect("memory")));
                }
            });
        }
        start.wait();
        Instant::now()
    })
    .elapsed()
}

fn from_blocks(criterion: &mut Criterion) {
    let served = Served::new(host());
    let device = served.open();
    let mut group = criterion.benchmark_group("allocate + free of 4 KiB from a block, threads");
    for threads in [1, 2, 4] {
        group.bench_function(BenchmarkId::from_parameter(threads), |bencher| {
            bencher.iter_custom(|count| pairs(&device, threads, count, &AllocateInfo::new(4096)));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("allocate + free of 4 KiB from a block, live");
    for live in [0, 1_000, 20_000] {
        let info = AllocateInfo::new(4096);
        let held: Vec<_> = (0..live).map(|_| device.allocate(&info)).collect();
        assert!(held.iter().all(Result::is_ok));
        group.bench_function(BenchmarkId::from_parameter(live), |bencher| {
            bencher.iter(|| drop(black_box(device.allocate(&info).expect("memory"))));
        });
    }
    group.finish();
}

fn own_blobs(criterion: &mut Criterion) {
    let served = Served::new(host());
    let device = served.open();
    let mut group = criterion.benchmark_group("allocate + free of a blob of its own, bytes");
    for size in [4 << 10, 64 << 10, 1 << 20] {
        let info = AllocateInfo::new(size).dedicated();
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| drop(black_box(device.allocate(&info).expect("memory"))));
        });
    }
    group.finish();
}

criterion_group!(benches, from_blocks, own_blobs);
criterion_main!(benches);
