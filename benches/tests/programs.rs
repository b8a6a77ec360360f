//! The programs of the bench that need neither a GPU nor a virtual machine: what they print is what the report reads.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold must stop them"
)]

use std::process::Command;

use hostblob_benches::record::Record;

/// Runs it, and returns its records.
fn run(program: &str, arguments: &[&str]) -> Vec<Record> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines()
        .map(|line| serde_json::from_str(line.strip_prefix("bench ").unwrap()).unwrap())
        .collect()
}

#[test]
fn lives_are_timed_in_batches() {
    let records = run(env!("CARGO_BIN_EXE_bench-commands"), &["40", "10", "60"]);
    let [record] = records.as_slice() else {
        panic!("{records:?}");
    };
    assert_eq!(
        (record.row.as_str(), record.live, record.samples.len()),
        ("life", 10, 3)
    );
    assert!(record.samples.iter().all(|&time| time > 0.0));
}

#[test]
fn bookkeeping_is_counted_and_does_not_include_the_bytes_themselves() {
    let records = run(env!("CARGO_BIN_EXE_bench-bytes"), &["1000"]);
    let [record] = records.as_slice() else {
        panic!("{records:?}");
    };
    assert_eq!((record.row.as_str(), record.live), ("bookkeeping", 1000));
    let [bytes] = record.samples.as_slice() else {
        panic!("{record:?}");
    };
    assert!((8.0..4096.0).contains(bytes), "{bytes}");
}

#[test]
fn wrong_arguments_are_told() {
    for program in [
        env!("CARGO_BIN_EXE_bench-library"),
        env!("CARGO_BIN_EXE_bench-transfers"),
        env!("CARGO_BIN_EXE_bench-commands"),
        env!("CARGO_BIN_EXE_bench-bytes"),
        env!("CARGO_BIN_EXE_bench-resident"),
        env!("CARGO_BIN_EXE_bench-report"),
    ] {
        let output = Command::new(program).output().unwrap();
        assert!(!output.status.success(), "{program}");
        assert!(!output.stderr.is_empty(), "{program} says nothing");
    }
}
