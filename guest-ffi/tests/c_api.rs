//! The C API, called from C and, with arguments that C programs get wrong, from here.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test calls as C does"
)]
#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod fake;

use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null, null_mut};

use fake::{Fake, Script};
use hostblob_guest::ffi::device::*;
use hostblob_guest::ffi::fence::*;
use hostblob_guest::ffi::memory::*;
use hostblob_guest::ffi::status::hb_status::*;
use hostblob_guest::ffi::status::*;
use hostblob_guest::ffi::types::*;

fn last_error() -> String {
    // SAFETY: the text lives until this thread's next failing call.
    unsafe { CStr::from_ptr(hb_last_error()) }
        .to_str()
        .unwrap()
        .to_owned()
}

fn open_info(path: &CStr) -> hb_open_info {
    hb_open_info {
        size: size_of::<hb_open_info>(),
        socket_path: path.as_ptr(),
        render_node: null(),
        capset_id: 0,
        timeout_ms: 5000,
        first_block: 0,
        largest_block: 0,
        dedicated_above: 0,
    }
}

fn allocate_info(bytes: u64) -> hb_allocate_info {
    hb_allocate_info {
        size: size_of::<hb_allocate_info>(),
        bytes,
        alignment: 0,
        memory_type: HB_MEMORY_TYPE_ANY,
        required_properties: 2,
        flags: 0,
        expected_cache: 0,
        name: null(),
    }
}

/// A device on a fake daemon, opened as C does.
fn open(script: Script) -> (Fake, *mut hb_device) {
    let fake = Fake::start(script);
    let path = CString::new(fake.path.to_str().unwrap()).unwrap();
    let mut device = null_mut();
    // SAFETY: all pointers are to locals of the right types.
    let status = unsafe { hb_device_open(&open_info(&path), &mut device) };
    assert_eq!(status, HB_OK, "{}", last_error());
    (fake, device)
}

#[test]
fn a_life_in_c() {
    let (_fake, device) = open(Script::default());
    // SAFETY: numbers alone, and zero is one.
    let zero = || unsafe { std::mem::zeroed::<hb_capabilities>() };
    // SAFETY: handles are live, and all other pointers are to locals of the right types.
    unsafe {
        let mut all = hb_capabilities {
            size: size_of::<hb_capabilities>(),
            ..zero()
        };
        assert_eq!(hb_device_capabilities(device, &mut all), HB_OK);
        assert_eq!(CStr::from_ptr(all.device_name.as_ptr()), c"fake device");
        assert_eq!(
            (all.type_count, all.types[2].cache),
            (3, HB_CACHE_WRITE_COMBINED)
        );
        // An older program, with a shorter structure: the rest is untouched.
        let mut old = hb_capabilities {
            size: 24,
            max_memory_bytes: 77,
            ..zero()
        };
        assert_eq!(hb_device_capabilities(device, &mut old), HB_OK);
        assert_eq!(
            (old.size, old.window_size, old.max_memory_bytes),
            (24, fake::WINDOW, 77)
        );

        let (mut a, mut b) = (null_mut(), null_mut());
        let name = c"from C";
        let info = hb_allocate_info {
            name: name.as_ptr(),
            ..allocate_info(4096)
        };
        assert_eq!(hb_allocate(device, &info, &mut a), HB_OK);
        let info = hb_allocate_info {
            flags: HB_ALLOCATE_DEDICATED,
            ..info
        };
        assert_eq!(hb_allocate(device, &info, &mut b), HB_OK);
        let (mut from, mut to): (*mut c_void, *mut c_void) = (null_mut(), null_mut());
        assert_eq!(hb_memory_map(a, null(), &mut from), HB_OK);
        let map = hb_map_info {
            size: 16,
            expected_cache: 0,
            access: HB_ACCESS_READ,
        };
        assert_eq!(hb_memory_map(b, &map, &mut to), HB_OK);
        from.cast::<u32>().write_volatile(0x1234_5678);
        let mut fence = null_mut();
        assert_eq!(hb_copy(device, a, 0, b, 4, 4, &mut fence), HB_OK);
        assert_eq!(hb_fence_wait(fence, HB_WAIT_FOREVER), HB_OK);
        assert_eq!(to.cast::<u32>().add(1).read_volatile(), 0x1234_5678);
        let mut fd = 5;
        assert_eq!(hb_fence_fd(fence, &mut fd), HB_ERROR_UNSUPPORTED);
        assert_eq!(fd, -1);
        hb_fence_destroy(fence);
        assert_eq!(hb_fill(device, b, 0, HB_WHOLE_SIZE, 9, null_mut()), HB_OK);

        let mut where_ = hb_memory_info {
            size: size_of::<hb_memory_info>(),
            ..std::mem::zeroed()
        };
        assert_eq!(hb_memory_get_info(a, &mut where_), HB_OK);
        assert_eq!((where_.bytes, where_.suballocated), (4096, 1));
        let mut count = hb_statistics {
            size: size_of::<hb_statistics>(),
            ..std::mem::zeroed()
        };
        assert_eq!(hb_device_statistics(device, &mut count), HB_OK);
        assert_eq!(count.suballocations, 1);
        let mut budget = hb_budget_info {
            size: size_of::<hb_budget_info>(),
            budget: 1,
            usage: 1,
        };
        assert_eq!(hb_budget(device, 0, &mut budget), HB_OK);
        assert_eq!(hb_budget(device, 1, &mut budget), HB_ERROR_INVALID_ARGUMENT);
        hb_device_close(device);
        from.cast::<u32>().write_volatile(1);
        hb_memory_free(a);
        hb_memory_free(b);
    }
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    let (_fake, device) = open(Script::default());
    // SAFETY: what is wrong in each call is what it documents to refuse.
    unsafe {
        let mut memory = null_mut();
        let info = allocate_info(64);
        assert_eq!(
            hb_allocate(null_mut(), &info, &mut memory),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert!(last_error().contains("device handle"), "{}", last_error());
        assert_eq!(
            hb_allocate(device, null(), &mut memory),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            hb_allocate(device, &info, null_mut()),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(hb_allocate(device, &info, &mut memory), HB_OK);
        // A handle of another kind.
        assert_eq!(hb_fence_wait(memory.cast(), 0), HB_ERROR_INVALID_ARGUMENT);
        assert!(last_error().contains("is not a fence"), "{}", last_error());
        assert_eq!(
            hb_allocate(memory.cast(), &info, &mut null_mut()),
            HB_ERROR_INVALID_ARGUMENT
        );
        hb_fence_destroy(memory.cast());

        let mut none = null_mut();
        let mut refused = |info: &hb_allocate_info| {
            none = device.cast();
            let status = hb_allocate(device, info, &mut none);
            assert!(none.is_null(), "outputs are cleared");
            status
        };
        assert_eq!(
            refused(&hb_allocate_info { size: 8, ..info }),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            refused(&hb_allocate_info {
                size: 1 << 40,
                ..info
            }),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            refused(&hb_allocate_info { bytes: 0, ..info }),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            refused(&hb_allocate_info { flags: 8, ..info }),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            refused(&hb_allocate_info {
                expected_cache: 4,
                ..info
            }),
            HB_ERROR_INVALID_ARGUMENT
        );
        let latin1 = c"\xff";
        let named = hb_allocate_info {
            name: latin1.as_ptr(),
            ..info
        };
        assert_eq!(refused(&named), HB_ERROR_INVALID_ARGUMENT);
        assert_eq!(
            refused(&hb_allocate_info {
                memory_type: 77,
                ..info
            }),
            HB_ERROR_INVALID_MEMORY_TYPE
        );

        #[repr(C)]
        struct Newer(hb_allocate_info, u64);
        let mut newer = Newer(
            hb_allocate_info {
                size: size_of::<Newer>(),
                ..info
            },
            0,
        );
        let mut another = null_mut();
        assert_eq!(
            hb_allocate(device, (&raw const newer).cast(), &mut another),
            HB_OK
        );
        hb_memory_free(another);
        newer.1 = 1;
        let status = hb_allocate(device, (&raw const newer).cast(), &mut another);
        assert_eq!(
            status, HB_ERROR_UNSUPPORTED_VERSION,
            "a field that we would ignore"
        );

        assert_eq!(
            hb_memory_import(device, -1, &mut another),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            hb_memory_import(device, 0, &mut another),
            HB_ERROR_UNSUPPORTED
        );
        assert_eq!(
            hb_memory_map(memory, null(), null_mut()),
            HB_ERROR_INVALID_ARGUMENT
        );
        let map = hb_map_info {
            size: 16,
            expected_cache: 0,
            access: 4,
        };
        assert_eq!(
            hb_memory_map(memory, &map, &mut null_mut()),
            HB_ERROR_INVALID_ARGUMENT
        );
        hb_memory_free(null_mut());
        hb_fence_destroy(null_mut());
        hb_device_close(null_mut());
        hb_memory_free(memory);
        hb_device_close(device);

        let mut device = null_mut();
        let both = open_info(c"/a");
        let both = hb_open_info {
            render_node: c"/b".as_ptr(),
            ..both
        };
        assert_eq!(
            hb_device_open(&both, &mut device),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            hb_device_open(&open_info(c"/nonexistent"), &mut device),
            HB_ERROR_NO_DEVICE
        );
        assert!(last_error().contains("/nonexistent"), "{}", last_error());
    }
}

/// Where cargo puts the libraries of the package under test: beside the test.
fn libraries() -> PathBuf {
    std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned()
}

fn compile(name: &str, source: &str, link: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = libraries().join(format!("{name}-{}", std::process::id()));
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-o"])
        .arg(&program)
        .arg(root.join(source))
        .arg("-I")
        .arg(root.join("include"))
        .arg("-L")
        .arg(libraries())
        .args(link)
        .output()
        .unwrap();
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    program
}

fn run_example(program: &Path) {
    let fake = Fake::start(Script::default());
    let run = Command::new(program)
        .env("HOSTBLOB_SOCKET", &fake.path)
        .env("LD_LIBRARY_PATH", program.with_extension("d"))
        .env("HOSTBLOB_LOG", "info")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{out}{err}");
    assert_eq!(out, "device: fake device (fake driver)\nok\n");
    assert!(
        err.contains("hostblob: info: hostblob: fake device"),
        "{err}"
    );
}

#[test]
fn the_example_works_with_the_static_library() {
    let link = ["-l:libhostblob_guest.a", "-lpthread", "-ldl", "-lm"];
    let program = compile("allocate_copy_static", "examples/allocate_copy.c", &link);
    run_example(&program);
    let nowhere = Command::new(&program)
        .env("HOSTBLOB_SOCKET", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    let text = String::from_utf8_lossy(&nowhere.stderr);
    assert!(
        text.starts_with("hb_device_open: no hostblob device ("),
        "{text}"
    );
    std::fs::remove_file(program).unwrap();
}

#[test]
fn the_example_works_with_the_shared_library_under_its_own_name() {
    let program = compile(
        "allocate_copy_shared",
        "examples/allocate_copy.c",
        &["-lhostblob_guest"],
    );
    let folder = program.with_extension("d");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(
        libraries().join("libhostblob_guest.so"),
        folder.join("libhostblob_guest.so.0"),
    )
    .unwrap();
    run_example(&program);
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::remove_file(program).unwrap();
}
