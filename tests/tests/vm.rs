//! In a guest of stock QEMU: every scenario, the kernel's ioctls alone, latencies, the demo, the C example. Vulkan on the host.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use hostblob_tests::report;
use hostblob_tests::scenario::{SMALL_WINDOW, WINDOW};
use xtask::build;
use xtask::vm::{Output, Vm};

use crate::fixture::{self, Provider};

/// What one boot had to say of its scenarios.
struct Boot {
    seen: HashMap<String, Option<String>>,
    output: Output,
}

impl Boot {
    fn new(group: &str, window: u64) -> Self {
        let daemon = fixture::vm_daemon(Provider::Vulkan, window);
        let arguments = ["--provider", "vulkan", "--group", group];
        let output =
            fixture::run_in_guest(&daemon, &fixture::guest_program("scenarios"), &arguments);
        fixture::finish(daemon);
        Self {
            seen: report::parse(&output.stdout),
            output,
        }
    }

    fn check(&self, name: &str) {
        match self.seen.get(name) {
            Some(None) => {}
            Some(Some(failure)) => panic!("{failure}"),
            None => panic!(
                "it was not run:\n{}\n--- console\n{}",
                self.output.stdout, self.output.console
            ),
        }
    }
}

/// Scenarios share a boot; each is a test of its own all the same.
fn boot(group: &'static str) -> &'static Boot {
    static ANY: OnceLock<Boot> = OnceLock::new();
    static SMALL: OnceLock<Boot> = OnceLock::new();
    match group {
        "any" => ANY.get_or_init(|| Boot::new(group, WINDOW)),
        _ => SMALL.get_or_init(|| Boot::new(group, SMALL_WINDOW)),
    }
}

macro_rules! tests {
    (any { $($a:ident::$any:ident,)* } render_node { $($r:ident::$node:ident,)* } small_window { $($s:ident::$small:ident,)* }) => {
        mod vfio_user {
            $(#[test] fn $any() { super::boot("any").check(stringify!($any)); })*
            $(#[test] fn $node() { super::boot("any").check(stringify!($node)); })*
            $(#[test] fn $small() { super::boot("small_window").check(stringify!($small)); })*
        }
    };
}
hostblob_tests::for_each_scenario!(tests);

/// One boot of its own kind, and the whole of the program's output.
fn run(program: PathBuf, arguments: &[&str]) -> String {
    let daemon = fixture::vm_daemon(Provider::Vulkan, WINDOW);
    let output = fixture::run_in_guest(&daemon, &program, arguments);
    fixture::succeeded(&output);
    fixture::finish(daemon);
    output.stdout
}

#[test]
fn raw_program_handles_10000_blobs() {
    let text = run(fixture::guest_program("raw_blobs"), &["10000"]);
    assert!(
        text.contains("10000 blobs created, mapped, read as zeros, written and freed"),
        "{text}"
    );
    assert!(
        text.contains("10000 blobs live at once, each with its own bytes"),
        "{text}"
    );
    print!("{text}");
}

#[test]
fn latency_with_10000_live_blobs() {
    let text = run(fixture::guest_program("latency"), &["100"]);
    for row in [
        r#""what":"blob of 4 KiB: create + map + mmap","live":10000"#,
        r#""what":"host GPU copy of 1 MiB, until its fence""#,
    ] {
        assert!(text.contains(row), "no row {row}:\n{text}");
    }
    assert!(text.contains("latency: [{\"what\":"), "{text}");
    print!("{text}");
}

#[test]
fn demo_tells_its_story() {
    let text = run(fixture::guest_program("demo"), &[]);
    assert!(
        text.contains("guest: found llvmpipe") || text.contains("provider: Vulkan"),
        "{text}"
    );
    assert!(text.contains("all 16777216 bytes are right"), "{text}");
    assert!(text.contains("unknown there"), "{text}");
}

/// guest-ffi/examples/allocate_copy.c, linked statically against the C library.
fn c_example() -> PathBuf {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = PROGRAM.get_or_init(|| {
        let library = build::guest_library("hostblob-guest", "libhostblob_guest.a")
            .expect("the static library builds");
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("allocate_copy");
        let source = build::workspace().join("guest-ffi");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-static", "-o"])
            .arg(&program);
        compiler.arg("-I").arg(source.join("include"));
        compiler
            .arg(source.join("examples/allocate_copy.c"))
            .arg(library);
        let output = compiler
            .output()
            .expect("a C compiler: run `cargo xtask setup`");
        assert!(
            output.status.success(),
            "cc: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        (folder, program)
    });
    program.clone()
}

#[test]
fn c_example_in_the_guest() {
    let text = run(c_example(), &[]);
    assert!(
        text.contains("device: ") && text.lines().any(|line| line.trim_end() == "ok"),
        "{text}"
    );
}

#[test]
fn c_example_over_the_socket() {
    for provider in [Provider::System, Provider::Vulkan] {
        let daemon = fixture::daemon(provider, WINDOW)
            .start()
            .expect("hostblobd starts");
        let mut example = Command::new(c_example());
        let output = example
            .env("HOSTBLOB_SOCKET", daemon.local_socket())
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            text.starts_with("device: ") && text.ends_with("\nok\n"),
            "{text}"
        );
        fixture::finish(daemon);
    }
}

/// A device that nobody serves is QEMU's to refuse; a guest without one gets a plain answer from the library.
#[test]
fn guest_without_a_device_is_told_so() {
    let _slot = fixture::slot();
    let vm = Vm::builder(fixture::environment())
        .program(fixture::guest_program("demo"), [] as [&str; 0]);
    let output = vm.run().expect("the guest runs");
    assert_eq!(output.status, Some(1), "{}", output.stdout);
    assert!(
        output.stdout.contains("no hostblob device"),
        "{}",
        output.stdout
    );
    fixture::clean_console(&output);
}
