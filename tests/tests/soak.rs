//! Many lives of memories, by several contexts at a time, and as many commands that are refused: what the daemon and its driver's process hold
//! stays the same.
//!
//! `HOSTBLOB_SOAK` says how many lives, and how often each command is refused; the plot of the lives is `soak.svg` in the target folder.

mod refusals;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use hostblob_guest::{AllocateInfo, Device, Endpoint, OpenOptions, WHOLE_SIZE};
use plotters::prelude::*;
use xtask::build;
use xtask::daemon::Daemon;

use crate::driver::driver;
use crate::fixture::{self, Held};

/// Clients, each with a context and a window of its own.
const CONTEXTS: u64 = 8;
/// Memories that a client holds at a time.
const HELD: usize = 8;
/// Every sixteenth memory is filled by the host GPU first.
const GPU_EACH: u64 = 16;
/// What is looked at is noted so often, in all.
const SAMPLES: u64 = 200;

/// 4 KiB to 1 MiB, as many of each doubling.
fn size(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (4096 << (mixed % 9)) - (mixed >> 8) % 4096 / 64 * 64
}

/// Lives until all clients together have lived `lives`: create, map, write, look, end.
fn live(socket: &Path, done: &AtomicU64, lives: u64) {
    let options = OpenOptions {
        endpoint: Endpoint::Socket(socket.to_owned()),
        ..OpenOptions::default()
    };
    let device = Device::open(&options).expect("a connection");
    let mut held = Vec::new();
    loop {
        let number = done.fetch_add(1, Ordering::Relaxed);
        if number >= lives {
            return;
        }
        let size = size(number);
        let memory = device
            .allocate(&AllocateInfo::new(size).dedicated())
            .expect("memory");
        let mut last = [1; 8];
        memory.map().expect("its address");
        memory.read(size - 8, &mut last).expect("its end");
        assert_eq!(last, [0; 8], "memory that is new");
        if number.is_multiple_of(GPU_EACH) {
            let fence = device.fill(&memory, 0, WHOLE_SIZE, 0x5a5a_5a5a);
            fence.expect("a fill").wait(None).expect("its end");
        }
        memory
            .write(size - 8, &number.to_ne_bytes())
            .expect("a write");
        held.push((number, size, memory));
        if held.len() > HELD {
            let (number, size, memory) = held.swap_remove(usize::try_from(number).unwrap() % HELD);
            memory.read(size - 8, &mut last).expect("its end");
            assert_eq!(last, number.to_ne_bytes());
        }
    }
}

/// What both processes held, after how many lives.
type Samples = Vec<(u64, [Held; 2])>;

fn watch(
    pids: &[String; 2],
    done: &AtomicU64,
    lives: u64,
    clients: &[ScopedJoinHandle<'_, ()>],
) -> Samples {
    let mut samples = Samples::new();
    // One that fails ends before its time, and its failure is that of the test.
    while !clients.iter().any(ScopedJoinHandle::is_finished) {
        let so_far = done.load(Ordering::Relaxed).min(lives);
        if so_far >= samples.len() as u64 * lives / SAMPLES {
            samples.push((so_far, [0, 1].map(|index| Held::of(&pids[index]))));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    samples
}

/// The most that was held in the last two thirds, beside the most from a tenth of the way to a third.
fn check(samples: &Samples, lives: u64) {
    let most = |process: usize, what: usize, from: u64, to: u64| {
        let among = samples.iter().filter(|(at, _)| (from..to).contains(at));
        among
            .map(|(_, held)| held[process].all()[what])
            .max()
            .expect("samples")
    };
    for (process, name) in ["hostblobd", "its driver's process"].iter().enumerate() {
        for (what, row) in Held::NAMES.iter().enumerate() {
            let early = most(process, what, lives / 10, lives / 3);
            let late = most(process, what, lives / 3, lives + 1);
            println!("{name}: {row}: {early} at first, {late} later");
            assert!(
                late <= early + Held::SLACK[what],
                "{name}: {row}: {early}, later {late}"
            );
        }
    }
}

fn plot(samples: &Samples, lives: u64) {
    let path = build::target().join("soak.svg");
    let area = SVGBackend::new(&path, (900, 600)).into_drawing_area();
    area.fill(&WHITE).expect("a plot");
    for (what, cell) in area.split_evenly((2, 2)).iter().enumerate() {
        let top = samples
            .iter()
            .flat_map(|(_, held)| held.map(|held| held.all()[what]));
        let top = top.max().unwrap_or(0) * 5 / 4 + 1;
        let mut chart = ChartBuilder::on(cell)
            .caption(
                format!("{}, by lives", Held::NAMES[what]),
                ("sans-serif", 15),
            )
            .margin(10)
            .margin_right(30)
            .x_label_area_size(25)
            .y_label_area_size(60)
            .build_cartesian_2d(0..lives, 0..top)
            .expect("a plot");
        chart.configure_mesh().x_labels(5).draw().expect("a plot");
        for (process, name, color) in [(0, "hostblobd", BLUE), (1, "driver's process", RED)] {
            let points = samples
                .iter()
                .map(|(at, held)| (*at, held[process].all()[what]));
            chart
                .draw_series(LineSeries::new(points, color))
                .expect("a plot")
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 15, y)], color));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .position(SeriesLabelPosition::LowerRight)
            .draw()
            .expect("a plot");
    }
    area.present().expect("a plot");
    drop(area);
    println!("plot: {}", path.display());
}

/// How many lives, and how often each refusal.
fn often() -> u64 {
    let often = std::env::var("HOSTBLOB_SOAK").unwrap_or_else(|_| "20000".to_owned());
    often.parse().expect("HOSTBLOB_SOAK is a number")
}

fn start() -> (Daemon, [String; 2]) {
    fixture::hostblobd();
    let daemon = Daemon::builder()
        .args(["--provider", "vulkan", "--window", "67108864"])
        .start()
        .expect("hostblobd starts");
    let child = driver(&daemon).expect("the process with the driver");
    let pids = [daemon.pid().to_string(), child.as_raw_nonzero().to_string()];
    (daemon, pids)
}

#[test]
fn nothing_grows_however_many_memories_lived() {
    let lives = often();
    let (daemon, pids) = start();
    let done = AtomicU64::new(0);
    let socket = daemon.local_socket();
    let samples = std::thread::scope(|scope| {
        let client = || scope.spawn(|| live(&socket, &done, lives));
        let clients: Vec<_> = (0..CONTEXTS).map(|_| client()).collect();
        watch(&pids, &done, lives, &clients)
    });
    plot(&samples, lives);
    check(&samples, lives);
    fixture::finish(daemon);
}

#[test]
fn nothing_grows_however_many_commands_are_refused() {
    let times = often();
    let (daemon, pids) = start();
    let done = AtomicU64::new(0);
    let socket = daemon.local_socket();
    let samples = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = refusals::Client::connect(&socket);
            let mut refused = 0;
            for _ in 0..times {
                refused += client.go();
                done.fetch_add(1, Ordering::Relaxed);
            }
            println!("{refused} commands refused");
        });
        watch(&pids, &done, times, &[client])
    });
    check(&samples, times);
    fixture::finish(daemon);
}
