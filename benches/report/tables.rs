//! Tables in Markdown.

use super::bars::{self, COMMANDS, DEVICE, DRIVER, OLD_PEER, OURS, PEER, VENUS, Verdict, Way};
use super::data::{Data, Key, READY};

/// Guests, in the order of their columns.
const GUESTS: [&str; 4] = [OURS[0], OURS[1], PEER, OLD_PEER];
const SUBALLOCATORS: [&str; 4] = ["hostblob", "VMA", "gpu-allocator", "malloc + memset"];
const NONE: &str = "-";

/// Rows of words under a head.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// A row, unless nothing in it was measured.
    fn row(&mut self, name: impl Into<String>, cells: Vec<String>) {
        if cells.iter().any(|cell| cell != NONE) {
            self.rows.push([vec![name.into()], cells].concat());
        }
    }

    fn text(&self, title: &str, note: &str) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = "|---".repeat(self.head.len());
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!(
            "### {title}\n\n{note}\n\n{}{rule}|\n{rows}\n",
            line(&self.head)
        )
    }
}

/// A number for people: three digits, or all before the point.
pub fn short(value: Option<f64>) -> String {
    let Some(value) = value else {
        return NONE.to_owned();
    };
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

fn ratio(over: Option<f64>, under: Option<f64>) -> Option<f64> {
    Some(over? / under?)
}

/// Everything that was measured.
pub fn markdown(data: &Data) -> String {
    [
        about(data),
        verdicts(&bars::judge(data)),
        guests(data),
        memory(data),
        vulkan(data),
        suballocators(data),
        threads(data),
        pools(data),
        transfers(data),
        work(data),
    ]
    .concat()
}

fn about(data: &Data) -> String {
    let word = |name: &str| {
        let value = data.about.get(name).and_then(|value| value.as_str());
        value.unwrap_or("unknown").to_owned()
    };
    let mut text = format!(
        "{}, commit {}, {}, Linux {}. Medians.\n\n",
        word("date"),
        word("commit"),
        word("processor"),
        word("kernel")
    );
    if data.about.get("quick").is_some_and(|value| value == true) {
        text += "**A quick run: it shows that everything runs, and no more.**\n\n";
    }
    for (system, is) in &data.systems {
        text += &format!("- {system}: {is}\n");
    }
    for (system, why) in &data.missing {
        text += &format!("- {system}: not measured further: {why}\n");
    }
    text + "\n"
}

fn verdicts(verdicts: &[Verdict]) -> String {
    let mut table = Table::new(["bar", "must be", "is", "met"]);
    for verdict in verdicts {
        let way = match verdict.way {
            Way::AtMost => "at most",
            Way::AtLeast => "at least",
        };
        let met = match (verdict.met, verdict.value) {
            (Some(true), _) => "yes".to_owned(),
            (Some(false), Some(value)) if verdict.limit > 0.0 => {
                format!("**no**, {} of it", short(Some(value / verdict.limit)))
            }
            (Some(false), _) => "**no**".to_owned(),
            (None, _) => "not measured".to_owned(),
        };
        let limit = format!("{way} {}", short(Some(verdict.limit)));
        table
            .rows
            .push(vec![verdict.what.clone(), limit, short(verdict.value), met]);
    }
    let met = verdicts.iter().filter(|one| one.met == Some(true)).count();
    table.text("Bars", &format!("{met} of {} are met.", verdicts.len()))
}

/// Sizes and numbers of live blobs for which a row was measured.
fn cells(data: &Data, row: &str) -> Vec<(u64, u64)> {
    let mut all: Vec<_> = data
        .of_row(row)
        .map(|(key, _)| (key.size, key.live))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn guests(data: &Data) -> String {
    let mut text = String::new();
    let trip = data.median(&Key::new(OURS[0], "round-trip").live(1));
    for (row, title, note) in [
        (
            "map",
            "Create + map + mmap, in a guest",
            "Microseconds. \"To limit\" is over the round trips of the two commands that it needs.",
        ),
        (
            "touch",
            "First touch of each page, in a guest",
            "Microseconds.",
        ),
        (
            READY,
            "Both together: until a blob can be used",
            "Microseconds.",
        ),
        (
            "release",
            "Release, in a guest",
            "Microseconds, until the process can go on.",
        ),
    ] {
        let limited = row == "map";
        let columns = ["live blobs"]
            .iter()
            .chain(&GUESTS)
            .chain(&["to virglrenderer 1.3"]);
        let columns = columns.chain(limited.then_some(&"to limit"));
        let mut table = Table::new(["size"].iter().chain(columns).copied());
        for (bytes, live) in cells(data, row) {
            let median = |system| data.median(&Key::new(system, row).size(bytes).live(live));
            let ours = median(OURS[0]);
            let mut row = vec![live.to_string()];
            row.extend(GUESTS.iter().map(|system| short(median(system))));
            row.push(short(ratio(ours, median(PEER))));
            if limited {
                row.push(short(ratio(ours, trip.map(|trip| COMMANDS * trip))));
            }
            table.row(size(bytes), row);
        }
        text += &table.text(title, note);
    }
    let mut table = Table::new(["microseconds"].iter().chain(&GUESTS).copied());
    let medians = |key: &dyn Fn(&str) -> Key| {
        GUESTS
            .iter()
            .map(|system| short(data.median(&key(system))))
            .collect()
    };
    table.row(
        "round trip",
        medians(&|system| Key::new(system, "round-trip").live(1)),
    );
    text + &table.text(
        "An empty command and its fence, in a guest",
        "The limit. (virglrenderer's fences of the first ring are looked for by a timer of QEMU.)",
    )
}

/// GB/s of a row whose samples are microseconds.
fn bandwidth(data: &Data, key: &Key) -> Option<f64> {
    let bytes = key.size as f64;
    Some(bytes / data.median(key)? / 1e3)
}

fn memory(data: &Data) -> String {
    let head = ["size"].iter().copied().map(str::to_owned);
    let columns = GUESTS
        .iter()
        .flat_map(|system| [(*system).to_owned(), "to RAM".to_owned()]);
    let mut table = Table::new(head.chain(columns));
    for (bytes, live) in cells(data, "copy-to-blob") {
        let row = GUESTS.iter().flat_map(|system| {
            let key = |row| Key::new(system, row).size(bytes).live(live);
            let blob = bandwidth(data, &key("copy-to-blob"));
            [
                short(blob),
                short(ratio(blob, bandwidth(data, &key("copy-to-ram")))),
            ]
        });
        table.row(size(bytes), row.collect());
    }
    table.text(
        "memcpy into a mapped blob, in a guest",
        "GB/s, and its ratio to memcpy into the guest's own memory.",
    )
}

fn vulkan(data: &Data) -> String {
    const PARTS: [&str; 4] = ["map", "touch", "ready", "free"];
    let columns = [DRIVER, VENUS]
        .iter()
        .flat_map(|system| PARTS.map(|part| format!("{system}: {part}")));
    let head = ["memory", "live"].map(str::to_owned).into_iter();
    let last = std::iter::once("ready, to Venus".to_owned());
    let mut table = Table::new(head.chain(columns).chain(last));
    for (prefix, kind) in [("vulkan", ""), ("vulkan dedicated", ", dedicated")] {
        for (bytes, live) in cells(data, &format!("{prefix}: ready")) {
            let median = |system: &str, part: &str| {
                let row = format!("{prefix}: {part}");
                data.median(&Key::new(system, &row).size(bytes).live(live))
            };
            let mut row = vec![live.to_string()];
            for system in [DRIVER, VENUS] {
                row.extend(PARTS.map(|part| short(median(system, part))));
            }
            let over = median(VENUS, "ready");
            row.push(short(ratio(median(DRIVER, "ready"), over)));
            table.row(format!("{}{kind}", size(bytes)), row);
        }
    }
    table.text(
        "vkAllocateMemory + vkMapMemory, first touch, vkFreeMemory, in a guest",
        "Microseconds, through the loader. \"Ready\" is until each page has been written.",
    )
}

fn suballocators(data: &Data) -> String {
    let mut table = Table::new(
        ["live"]
            .iter()
            .chain(&SUBALLOCATORS)
            .chain(&["to VMA"])
            .copied(),
    );
    for (bytes, live) in cells(data, "pair") {
        let median =
            |system| data.median(&Key::new(system, "pair").size(bytes).live(live).threads(1));
        let mut row: Vec<_> = SUBALLOCATORS
            .iter()
            .map(|system| short(median(system)))
            .collect();
        row.push(short(ratio(median("hostblob"), median("VMA"))));
        table.row(live.to_string(), row);
    }
    table.text("Allocate + map + free of 4 KiB", "Nanoseconds, one thread.")
}

fn threads(data: &Data) -> String {
    let mut text = String::new();
    for (row, title) in [
        (
            "pair of threads",
            "Allocate + map + free of 4 KiB by several threads",
        ),
        ("mixed pair of threads", "The same of 4 KiB to 1 MiB, mixed"),
    ] {
        let mut table = Table::new(
            ["threads"]
                .iter()
                .chain(&SUBALLOCATORS)
                .chain(&["to VMA"])
                .copied(),
        );
        let mut numbers: Vec<_> = data.of_row(row).map(|(key, _)| key.threads).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let median = |system| data.median(&Key::new(system, row).threads(number));
            let mut row: Vec<_> = SUBALLOCATORS
                .iter()
                .map(|system| short(median(system)))
                .collect();
            row.push(short(ratio(median("hostblob"), median("VMA"))));
            table.row(number.to_string(), row);
        }
        text += &table.text(
            title,
            "Nanoseconds of wall time for a pair, of all threads together.",
        );
    }
    text
}

fn pools(data: &Data) -> String {
    let mut table = Table::new(["counted"].iter().chain(&SUBALLOCATORS[..3]).copied());
    for (row, title) in [
        ("pool when live", "bytes of blocks per byte live"),
        (
            "pool after churn",
            "the same after random free and allocate",
        ),
    ] {
        let cells = SUBALLOCATORS[..3]
            .iter()
            .map(|system| short(data.median(&Key::new(system, row))));
        table.row(title, cells.collect());
    }
    let doorbells = data.median(&Key::new("hostblob", "doorbells").size(4096));
    table.row(
        "requests of the host per 4 KiB",
        vec![short(doorbells), NONE.to_owned(), NONE.to_owned()],
    );
    table.text("Pools", "Sizes of 4 KiB to 1 MiB.")
}

fn transfers(data: &Data) -> String {
    let mut table = Table::new([
        "size", "fill", "Vulkan's", "ratio", "copy", "Vulkan's", "ratio",
    ]);
    for (bytes, _) in cells(data, "fill") {
        let row = ["fill", "copy"].iter().flat_map(|row| {
            let of = |system| bandwidth(data, &Key::new(system, row).size(bytes));
            let (ours, theirs) = (of("hostblob"), of("Vulkan"));
            [short(ours), short(theirs), short(ratio(ours, theirs))]
        });
        table.row(size(bytes), row.collect());
    }
    table.text(
        "FILL and COPY on the host GPU, over the local socket",
        "GB/s from the call to the end of the fence, beside the same Vulkan calls made directly.",
    )
}

fn work(data: &Data) -> String {
    let mut table = Table::new(["of the device, for each", "0 live", "10,000 live"]);
    for (stage, title) in [
        ("submit", "SUBMIT_3D with CREATE"),
        ("create_blob", "RESOURCE_CREATE_BLOB"),
        ("map_blob", "RESOURCE_MAP_BLOB"),
        ("unmap_blob", "RESOURCE_UNMAP_BLOB"),
        ("unref", "RESOURCE_UNREF"),
    ] {
        let row = format!("instructions: {stage}");
        let cells = [0, 10_000]
            .iter()
            .map(|&live| short(data.median(&Key::new(DEVICE, &row).live(live))));
        table.row(format!("instructions: {title}"), cells.collect());
    }
    for (row, title) in [
        ("calls: create + map", "system calls: creation, clean range"),
        ("calls: unmap + unref", "system calls: end"),
        ("calls: life", "system calls: life, one after the other"),
    ] {
        let value = short(data.median(&Key::new(DEVICE, row)));
        table.row(title, vec![value, NONE.to_owned()]);
    }
    let lives = [0, 10_000].iter();
    let lives = lives.map(|&live| short(data.median(&Key::new(DEVICE, "life").live(live))));
    table.row("microseconds: life, one after the other", lives.collect());
    let bookkeeping = short(data.median(&Key::new(DEVICE, "bookkeeping").live(10_000)));
    table.row("bytes of bookkeeping", vec![NONE.to_owned(), bookkeeping]);
    let mut text = table.text(
        "The daemon's work",
        "Instructions by callgrind, in the thread that executes; system calls by strace.",
    );
    let mut table = Table::new(["system calls per blob, in a VM", "all threads, by name"]);
    for system in OURS {
        let total = data.median(&Key::new(system, "calls-per-blob"));
        let prefix = "calls-per-blob: ";
        let mut parts: Vec<_> = data
            .summary_of(system, prefix)
            .map(|(name, value)| (value, format!("{name} {}", short(Some(value)))))
            .collect();
        parts.sort_by(|one, other| other.0.total_cmp(&one.0));
        let parts: Vec<_> = parts.into_iter().map(|(_, text)| text).collect();
        if total.is_some() {
            table.rows.push(vec![
                format!("{system}: {}", short(total)),
                parts.join(", "),
            ]);
        }
    }
    text += &table.text(
        "System calls of hostblobd",
        "Of a blob of 4 KiB that is created, mapped, touched and released in a guest.",
    );
    let mut table = Table::new(["MiB of the window that have pages", ""]);
    for (row, title) in [
        ("resident at most", "with 256 MiB of a client"),
        ("resident when idle", "after they were freed, at the end"),
    ] {
        table.row(
            title,
            vec![short(data.median(&Key::new("hostblob, local socket", row)))],
        );
    }
    text + &table.text("Memory of the window", "Over time: see the plot.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::tests::RUN;

    #[test]
    fn numbers_for_people() {
        let words: Vec<_> = [0.0, 0.000244, 0.351, 9.994, 45.67, 1234.5]
            .map(|value| short(Some(value)))
            .into();
        assert_eq!(words, ["0", "2.44e-4", "0.351", "9.99", "45.7", "1234"]);
        assert_eq!(short(None), "-");
        assert_eq!([size(4096), size(64 << 20)], ["4 KiB", "64 MiB"]);
    }

    #[test]
    fn tables_have_what_was_measured() {
        let text = markdown(&Data::parse(RUN).unwrap());
        for line in [
            "| 4 KiB | 0 | 200 | - | 500 | - | 0.400 | 1.67 |",
            "| 4 KiB | 10000 | 220 | - | - | - | - | 1.83 |",
            "| 1 MiB | 10.4 | 0.980 | - | - | - | - | - | - |",
            "| 0 | 100 | 180 | - | - | 0.556 |",
            "| 4 KiB | 0 | - | - | 3.00 | - | - | - | 11000 | - | 2.73e-4 |",
            "- virglrenderer 1.1: not measured further: it ended",
        ] {
            assert!(text.contains(line), "no line {line:?} in\n{text}");
        }
        assert!(!text.contains("### FILL"), "a table of nothing:\n{text}");
        assert!(text.contains("A quick run"));
    }
}
