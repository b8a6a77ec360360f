//! In a guest of stock QEMU, over vfio-user and over vhost-user: every scenario, the kernel's ioctls alone, the demo, the C example.
//! Vulkan on the host.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use hostblob_export::Client;
use hostblob_tests::pattern;
use hostblob_tests::peer::{PEER_FILL, SEED};
use hostblob_tests::report;
use hostblob_tests::scenario::{SMALL_WINDOW, WINDOW};
use rustix::fs::{MemfdFlags, SealFlags};
use xtask::build;
use xtask::daemon::Daemon;
use xtask::vm::{Output, Transport, Vm};

use crate::fixture::{self, Provider};

/// What one boot had to say of its scenarios.
struct Boot {
    seen: HashMap<String, Option<String>>,
    output: Output,
}

impl Boot {
    fn new(transport: Transport, group: &str, window: u64) -> Self {
        let daemon = fixture::vm_daemon(transport, Provider::Vulkan, window);
        Self::with(daemon, &["--group", group])
    }

    /// A boot of these scenarios.
    fn with(daemon: Daemon, scenarios: &[&str]) -> Self {
        let arguments = [&["--provider", "vulkan"], scenarios].concat();
        let output =
            fixture::run_in_guest(&daemon, &fixture::guest_program("scenarios"), &arguments);
        fixture::finish(daemon);
        print!("{}", output.stdout);
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

/// A boot for each transport; none where it failed.
type Boots = [OnceLock<Option<Boot>>; 2];

/// Scenarios share a boot; each is a test of its own all the same.
fn boot(transport: Transport, group: &'static str) -> &'static Boot {
    static ANY: Boots = [const { OnceLock::new() }; 2];
    static SMALL: Boots = [const { OnceLock::new() }; 2];
    let (boots, window) = match group {
        "any" => (&ANY, WINDOW),
        _ => (&SMALL, SMALL_WINDOW),
    };
    fixture::once(&boots[transport as usize], || {
        Boot::new(transport, group, window)
    })
}

macro_rules! tests {
    ($($list:tt)*) => {
        over_transport! { vfio_user VfioUser $($list)* }
        over_transport! { vhost_user VhostUser $($list)* }
    };
}

macro_rules! over_transport {
    (
        $module:ident $transport:ident
        any { $($a:ident::$any:ident,)* } render_node { $($r:ident::$node:ident,)* } small_window { $($s:ident::$small:ident,)* }
    ) => {
        mod $module {
            const TRANSPORT: super::Transport = super::Transport::$transport;
            $(#[test] fn $any() { super::boot(TRANSPORT, "any").check(stringify!($any)); })*
            $(#[test] fn $node() { super::boot(TRANSPORT, "any").check(stringify!($node)); })*
            $(#[test] fn $small() { super::boot(TRANSPORT, "small_window").check(stringify!($small)); })*
            #[test] fn raw_program_handles_10000_blobs() { super::raw_program_handles_10000_blobs(TRANSPORT); }
            #[test] fn demo_tells_its_story() { super::demo_tells_its_story(TRANSPORT); }
            #[test] fn c_example_in_the_guest() { super::c_example_in_the_guest(TRANSPORT); }
        }
    };
}
hostblob_tests::for_each_scenario!(tests);

/// One boot of its own kind, and the whole of the program's output.
fn run(transport: Transport, program: PathBuf, arguments: &[&str]) -> String {
    let daemon = fixture::vm_daemon(transport, Provider::Vulkan, WINDOW);
    let output = fixture::run_in_guest(&daemon, &program, arguments);
    fixture::succeeded(&output);
    fixture::finish(daemon);
    output.stdout
}

/// Each blob a mapping of its own. Here are the scenarios where that matters; others map more blobs than a VMM takes.
mod vhost_user_on_demand {
    use super::*;

    fn daemon() -> Daemon {
        fixture::daemon(Provider::Vulkan, WINDOW)
            .transport(Transport::VhostUser)
            .args(["--window-mode", "on-demand"])
            .start()
            .expect("hostblobd starts")
    }

    fn boot(names: &[&str]) -> &'static Boot {
        static BOOT: OnceLock<Option<Boot>> = OnceLock::new();
        let new = || std::panic::catch_unwind(|| Boot::with(daemon(), names)).ok();
        let boot = BOOT.get_or_init(new);
        boot.as_ref()
            .expect("the boot, which failed in another test too")
    }

    macro_rules! scenarios {
        ($($name:ident,)*) => {
            const NAMES: &[&str] = &[$(stringify!($name)),*];
            $(#[test] fn $name() { boot(NAMES).check(stringify!($name)); })*
        };
    }

    scenarios! {
        allocate_write_read_4k,
        allocate_write_read_1m,
        allocate_write_read_64m,
        small_memories_do_not_overlap,
        memory_written_by_another_process_comes_back_as_zeros,
        memory_filled_by_another_process_comes_back_as_zeros,
        memory_still_being_filled_comes_back_as_zeros,
        memory_freed_by_this_process_comes_back_as_zeros,
        contents_survive_unmap,
        killed_process_leaves_nothing,
    }

    #[test]
    fn raw_program_handles_200_blobs() {
        let daemon = daemon();
        let program = fixture::guest_program("raw_blobs");
        let output = fixture::run_in_guest(&daemon, &program, &["200"]);
        fixture::succeeded(&output);
        fixture::finish(daemon);
        let live = "200 blobs live at once, each with its own bytes";
        assert!(output.stdout.contains(live), "{}", output.stdout);
        print!("{}", output.stdout);
    }

    /// Memory of this process, mapped into a guest by its token: the same bytes on both sides.
    #[test]
    fn memory_of_a_host_process_is_mapped() {
        const SIZE: u64 = 1 << 20;
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("export.sock");
        let daemon = fixture::daemon(Provider::Vulkan, WINDOW)
            .transport(Transport::VhostUser)
            .args(["--window-mode", "on-demand", "--export-socket"])
            .args([&socket])
            .start()
            .expect("hostblobd starts");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = File::from(rustix::fs::memfd_create("ours", flags).expect("a memfd"));
        memory.set_len(SIZE).expect("its size");
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).expect("its seal");
        let bytes = pattern::bytes(SEED, 0, SIZE);
        memory.write_all_at(&bytes, 0).expect("its bytes");
        let mut client = Client::connect(&socket).expect("the export socket");
        let token = client.hand_in(&memory).expect("a token").to_string();
        let program = fixture::guest_program("scenarios");
        let arguments = ["--peer", "map_foreign", &token];
        let output = fixture::run_in_guest(&daemon, &program, &arguments);
        fixture::succeeded(&output);
        let mut seen = vec![0; bytes.len()];
        memory.read_exact_at(&mut seen, 0).expect("its bytes");
        let (filled, written) = seen.split_at(4096);
        let fill = PEER_FILL.to_le_bytes();
        assert!(filled.chunks(4).all(|word| word == fill), "the GPU's");
        assert!(
            written == &pattern::bytes(SEED + 1, 0, SIZE)[4096..],
            "the processor's"
        );
        drop(client);
        fixture::finish(daemon);
    }

    /// The guest's program is refused. QEMU, the guest and the daemon go on: the program says why it ends.
    #[test]
    fn more_blobs_than_a_vmm_takes_are_refused() {
        let daemon = daemon();
        let program = fixture::guest_program("raw_blobs");
        let output = fixture::run_in_guest(&daemon, &program, &["600"]);
        let log = daemon.log();
        fixture::finish(daemon);
        assert_eq!(output.status, Some(1), "{}", output.stdout);
        let all = format!("{}{}", output.stdout, output.console);
        assert!(all.contains("live blob 448"), "{all}");
        assert!(log.contains("448 blobs are mapped"), "{log}");
    }
}

fn raw_program_handles_10000_blobs(transport: Transport) {
    let text = run(transport, fixture::guest_program("raw_blobs"), &["10000"]);
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
    let text = run(
        Transport::VfioUser,
        fixture::guest_program("latency"),
        &["100"],
    );
    let row = |title: &str, live: &str| {
        text.lines()
            .any(|line| line.starts_with(title) && line.split_whitespace().any(|word| word == live))
    };
    for (title, live) in [
        ("create + map + mmap", "10000"),
        ("round trip of an empty command", "1"),
        ("host GPU copy, until its fence", "2"),
    ] {
        assert!(
            row(title, live),
            "no row {title:?} with {live} live:\n{text}"
        );
    }
    print!("{text}");
}

fn demo_tells_its_story(transport: Transport) {
    let text = run(transport, fixture::guest_program("demo"), &["--brief"]);
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
        let library = fixture::guest().join("libhostblob_guest.a");
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

fn c_example_in_the_guest(transport: Transport) {
    let text = run(transport, c_example(), &[]);
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
