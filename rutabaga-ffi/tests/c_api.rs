//! The C interface, called from C, with the sanitizers watching; and the library as a VMM's loader sees it.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What rutabaga_gfx_ffi.h 0.1.6 declares. The last three are behind RUTABAGA_GFX_FFI_UNSTABLE there.
const FUNCTIONS: [&str; 26] = [
    "rutabaga_calculate_capset_mask",
    "rutabaga_init",
    "rutabaga_finish",
    "rutabaga_get_num_capsets",
    "rutabaga_get_capset_info",
    "rutabaga_get_capset",
    "rutabaga_context_create",
    "rutabaga_context_destroy",
    "rutabaga_context_attach_resource",
    "rutabaga_context_detach_resource",
    "rutabaga_resource_create_3d",
    "rutabaga_resource_attach_backing",
    "rutabaga_resource_detach_backing",
    "rutabaga_resource_transfer_read",
    "rutabaga_resource_transfer_write",
    "rutabaga_resource_create_blob",
    "rutabaga_resource_unref",
    "rutabaga_resource_export_blob",
    "rutabaga_resource_map",
    "rutabaga_resource_unmap",
    "rutabaga_resource_map_info",
    "rutabaga_submit_command",
    "rutabaga_create_fence",
    "rutabaga_snapshot",
    "rutabaga_restore",
    "rutabaga_resource_import",
];

const SONAME: &str = "librutabaga_gfx_ffi.so.0";

/// A folder of this test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("c-api-{name}-{}", std::process::id());
        let folder = libraries().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// The library, under the name that programs look for.
    fn with_library(name: &str) -> Self {
        let folder = Self::new(name);
        let library = libraries().join("librutabaga_gfx_ffi.so");
        std::fs::copy(library, folder.0.join(SONAME)).unwrap();
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where cargo puts the libraries of the package under test: beside the test.
fn libraries() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().to_owned()
}

fn must(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Compiles life.c against the library in a folder.
fn compile(folder: &Folder, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.0.join("life");
    must(
        Command::new("cc")
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-o"])
            .arg(&program)
            .arg(root.join("tests/life.c"))
            .arg(folder.0.join(SONAME))
            .arg("-I")
            .arg(root.join("include"))
            .args(flags)
            .arg("-lpthread"),
    );
    program
}

fn run(program: &Path, library: &Folder, scenario: &str, provider: &str) -> Output {
    Command::new(program)
        .arg(scenario)
        .env("LD_LIBRARY_PATH", &library.0)
        .env("HOSTBLOB_PROVIDER", provider)
        .output()
        .unwrap()
}

#[test]
fn each_return_code_from_c() {
    let folder = Folder::with_library("life");
    let program = compile(&folder, &["-fsanitize=address,undefined"]);
    for scenario in [
        "life",
        "window",
        "guest_pages",
        "fences",
        "both",
        "two_dimensions",
        "nonsense",
        "beginnings",
    ] {
        let output = run(&program, &folder, scenario, "system");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{scenario}: {out}{err}");
        assert_eq!(out, format!("{scenario} ok\n"), "{err}");
    }
}

/// The host's best: where that is system memory, it is the test above without sanitizers.
#[test]
fn on_the_gpu() {
    let folder = Folder::with_library("gpu");
    let program = compile(&folder, &[]);
    for scenario in ["life", "guest_pages", "fences"] {
        let output = run(&program, &folder, scenario, "auto");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{scenario}: {out}{err}");
    }
}

/// A program that was linked against another library of that name needs a library path, and nothing else.
#[test]
fn another_library_is_replaced_by_its_path_alone() {
    let theirs = Folder::new("theirs");
    let stub = FUNCTIONS.map(|name| format!("int {name}(void) {{ return -38; }}\n"));
    let source = theirs.0.join("stub.c");
    std::fs::write(&source, stub.concat()).unwrap();
    let soname = format!("-Wl,-soname,{SONAME}");
    must(
        Command::new("cc")
            .args(["-shared", "-fPIC", &soname, "-o"])
            .arg(theirs.0.join(SONAME))
            .arg(&source),
    );
    let program = compile(&theirs, &[]);
    let refused = run(&program, &theirs, "life", "system");
    assert!(text(&refused.stderr).contains("rutabaga_init(&builder, &vmm->device) is -38, not 0"));
    let ours = Folder::with_library("ours");
    let output = run(&program, &ours, "life", "system");
    assert_eq!(
        text(&output.stdout),
        "life ok\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_symbols_are_those_of_the_header() {
    let library = libraries().join("librutabaga_gfx_ffi.so");
    let symbols = must(
        Command::new("nm")
            .args(["--dynamic", "--defined-only", "--format=just-symbols"])
            .arg(&library),
    );
    let mut symbols: Vec<_> = text(&symbols.stdout).lines().map(str::to_owned).collect();
    symbols.sort();
    let mut functions = FUNCTIONS.map(str::to_owned);
    functions.sort();
    assert_eq!(symbols, functions);
    let header = include_str!("../include/rutabaga_gfx/rutabaga_gfx_ffi.h");
    for function in FUNCTIONS {
        assert!(
            header.contains(&format!("\nint32_t {function}(")),
            "{function}"
        );
    }
    let dynamic = must(Command::new("readelf").arg("--dynamic").arg(&library));
    assert!(text(&dynamic.stdout).contains(&format!("soname: [{SONAME}]")));
}
