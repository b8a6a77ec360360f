//! What must hold: data, judged by the run.

use serde::Serialize;

use super::data::{Data, Key, READY};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The device over the transport that is recommended, and over the other one.
pub const OURS: [&str; 2] = ["hostblob, vfio-user", "hostblob, vhost-user"];
/// The strongest peer.
pub const PEER: &str = "virglrenderer 1.3";
/// The weaker one.
pub const OLD_PEER: &str = "virglrenderer 1.1";
/// Vulkan alone in a guest: on our driver.
pub const DRIVER: &str = "hostblob's driver";
/// And on Mesa's, under the strongest peer.
pub const VENUS: &str = "Venus";
/// The daemon's work without a transport.
pub const DEVICE: &str = "hostblob, no transport";
/// Commands that a creation needs, by the kernel's ioctls: RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB.
pub const COMMANDS: f64 = 2.0;

/// Which way a bar is to be passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Way {
    /// Not above.
    AtMost,
    /// Not below.
    AtLeast,
}

/// A bar: a median, or its ratio to another one times a factor.
#[derive(Debug, Clone)]
struct Bar {
    what: String,
    value: Key,
    over: Option<(f64, Key)>,
    way: Way,
    limit: f64,
}

/// A bar and what the run has to say of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What must hold.
    pub what: String,
    /// Above or below `limit`.
    pub way: Way,
    /// The bar.
    pub limit: f64,
    /// What was measured; `None` where a part of it was not.
    pub value: Option<f64>,
    /// `None` where it was not measured.
    pub met: Option<bool>,
}

impl Bar {
    fn at_most(limit: f64, what: impl Into<String>, value: Key) -> Self {
        Self {
            what: what.into(),
            value,
            over: None,
            way: Way::AtMost,
            limit,
        }
    }

    fn at_least(limit: f64, what: impl Into<String>, value: Key) -> Self {
        Self {
            way: Way::AtLeast,
            ..Self::at_most(limit, what, value)
        }
    }

    /// Over this median.
    fn over(self, key: Key) -> Self {
        self.over_times(1.0, key)
    }

    /// Over `factor` of this median.
    fn over_times(self, factor: f64, key: Key) -> Self {
        Self {
            over: Some((factor, key)),
            ..self
        }
    }

    fn judge(&self, data: &Data) -> Verdict {
        let value = data.median(&self.value).and_then(|value| match &self.over {
            None => Some(value),
            Some((factor, key)) => Some(value / (factor * data.median(key)?)),
        });
        let met = value.map(|value| match self.way {
            Way::AtMost => value <= self.limit,
            Way::AtLeast => value >= self.limit,
        });
        Verdict {
            what: self.what.clone(),
            way: self.way,
            limit: self.limit,
            value,
            met,
        }
    }
}

/// What a guest sees, over one transport.
fn in_guest(system: &str) -> Vec<Bar> {
    let ready = |size| Key::new(system, READY).size(size);
    let peer = |size| Key::new(PEER, READY).size(size);
    let map = |size| Key::new(system, "map").size(size);
    let what = |text: &str| format!("{text} ({system})");
    let mut bars = vec![
        Bar::at_most(
            0.35,
            what("1 MiB until each page is touched, to the peer"),
            ready(MIB),
        )
        .over(peer(MIB)),
        Bar::at_most(
            0.6,
            what("4 KiB until each page is touched, to the peer"),
            ready(4 * KIB),
        )
        .over(peer(4 * KIB)),
        Bar::at_most(
            1.5,
            what("64 MiB until each page is touched, to a warm memset of as much"),
            ready(64 * MIB),
        )
        .over(Key::new(system, "warm-memset").size(64 * MIB)),
    ];
    for (name, size) in [("4 KiB", 4 * KIB), ("64 KiB", 64 * KIB), ("1 MiB", MIB)] {
        let text = format!("{name}: create + map + mmap among 10,000 live blobs, to among none");
        bars.push(Bar::at_most(1.1, what(&text), map(size).live(10_000)).over(map(size)));
    }
    let text = "4 KiB: create + map + mmap, to the round trips of its 2 commands";
    let limit = Key::new(system, "round-trip").live(1);
    bars.push(Bar::at_most(1.5, what(text), map(4 * KIB)).over_times(COMMANDS, limit));
    for (name, size) in [("64 KiB", 64 * KIB), ("1 MiB", MIB), ("16 MiB", 16 * MIB)] {
        // Times: the less the better, so the blob's is below.
        let text =
            format!("memcpy of {name} into a blob, bandwidth to that into the guest's memory");
        let ram = Key::new(system, "copy-to-ram").size(size).live(1);
        bars.push(
            Bar::at_least(0.95, what(&text), ram)
                .over(Key::new(system, "copy-to-blob").size(size).live(1)),
        );
    }
    bars
}

/// What a program sees that knows Vulkan alone.
fn of_the_driver() -> Vec<Bar> {
    let ready = |system, row: &str, size| Key::new(system, &format!("{row}: ready")).size(size);
    let mut bars = Vec::new();
    for (limit, name, row, size) in [
        (1e-3, "4 KiB", "vulkan", 4 * KIB),
        (1e-2, "1 MiB from a block", "vulkan", MIB),
        (0.05, "1 MiB dedicated", "vulkan dedicated", MIB),
        (0.1, "64 MiB", "vulkan", 64 * MIB),
    ] {
        let text = format!("Vulkan: {name}: allocate + map until each page is touched, to Venus");
        let bar = Bar::at_most(limit, text, ready(DRIVER, row, size));
        bars.push(bar.over(ready(VENUS, row, size)));
    }
    for (name, row, size) in [
        ("4 KiB", "vulkan", 4 * KIB),
        ("1 MiB", "vulkan", MIB),
        ("1 MiB dedicated", "vulkan dedicated", MIB),
        ("64 MiB", "vulkan", 64 * MIB),
    ] {
        let text = format!("Vulkan: {name}: the same among 1,000 live, to among none");
        let key = ready(DRIVER, row, size);
        bars.push(Bar::at_most(1.1, text, key.clone().live(1_000)).over(key));
    }
    bars
}

/// What the library does without the host.
fn of_the_library() -> Vec<Bar> {
    let pair = |system: &str| Key::new(system, "pair").size(4 * KIB).threads(1);
    let threads = |number| Key::new("hostblob", "pair of threads").threads(number);
    let ours = |row| Key::new("hostblob", row);
    vec![
        Bar::at_most(
            80.0,
            "library: 4 KiB allocate + map + free, ns",
            pair("hostblob"),
        ),
        Bar::at_most(
            0.5,
            "library: 4 KiB allocate + map + free, to VMA",
            pair("hostblob"),
        )
        .over(pair("VMA")),
        Bar::at_most(
            1.2,
            "library: among 20,000 live, to among none",
            pair("hostblob").live(20_000),
        )
        .over(pair("hostblob")),
        Bar::at_most(
            1.25,
            "library: wall time of a pair with 4 threads, to 1 thread",
            threads(4),
        )
        .over(threads(1)),
        Bar::at_most(
            1.0 / 4096.0,
            "library: requests of the host per 4 KiB allocation",
            ours("doorbells").size(4 * KIB),
        ),
        Bar::at_most(
            1.05,
            "library: bytes of blocks per byte live",
            ours("pool when live"),
        ),
        Bar::at_most(
            1.25,
            "library: the same after random free and allocate",
            ours("pool after churn"),
        ),
    ]
}

/// What the daemon does.
fn of_the_daemon() -> Vec<Bar> {
    let device = |row| Key::new(DEVICE, row);
    vec![
        Bar::at_most(
            0.0,
            "daemon: system calls to create and map a blob where its range is clean",
            device("calls: create + map"),
        ),
        Bar::at_most(
            0.0,
            "daemon: SHMEM_MAP messages after start",
            Key::new(OURS[1], "shmem-maps"),
        ),
        Bar::at_most(
            256.0,
            "daemon: bytes of bookkeeping per live blob",
            device("bookkeeping").live(10_000),
        ),
        Bar::at_most(
            16.0,
            "daemon: MiB of the window resident when idle, 12 s after 256 MiB were freed",
            Key::new("hostblob, local socket", "resident when idle"),
        ),
    ]
}

/// All bars, judged.
pub fn judge(data: &Data) -> Vec<Verdict> {
    let bars = OURS.iter().flat_map(|system| in_guest(system));
    bars.chain(of_the_driver())
        .chain(of_the_library())
        .chain(of_the_daemon())
        .map(|bar| bar.judge(data))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::tests::RUN;

    #[test]
    fn bars_are_judged_by_the_run() {
        let verdicts = judge(&Data::parse(RUN).unwrap());
        let find = |text: &str| {
            let mut all = verdicts.iter().filter(|one| one.what.contains(text));
            let verdict = all.next().unwrap_or_else(|| panic!("no bar {text}"));
            (verdict.value, verdict.met)
        };
        // 230 of 510.
        let (value, met) = find("4 KiB until each page is touched");
        assert!((value.unwrap() - 230.0 / 510.0).abs() < 1e-9);
        assert_eq!(met, Some(true));
        assert_eq!(
            find("4 KiB: create + map + mmap among"),
            (Some(1.1), Some(true))
        );
        assert_eq!(
            find("round trips of its 2"),
            (Some(200.0 / 120.0), Some(false))
        );
        assert_eq!(find("memcpy of 1 MiB"), (Some(99.0 / 101.0), Some(true)));
        assert_eq!(
            find("allocate + map + free, ns"),
            (Some(100.0), Some(false))
        );
        assert_eq!(find("system calls to create"), (Some(0.0), Some(true)));
        assert_eq!(find("1 MiB until each page"), (None, None));
        assert_eq!(find("resident when idle"), (Some(1.0), Some(true)));
        assert_eq!(
            find("Vulkan: 4 KiB: allocate"),
            (Some(3.0 / 11000.0), Some(true))
        );
        assert_eq!(find("Vulkan: 4 KiB: the same"), (Some(1.2), Some(false)));
    }
}
