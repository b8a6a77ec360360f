//! Hosts without EGL, or without a driver: hostblob starts, and says what to install.
//!
//! What the dynamic linker finds is a matter of the process, so the tests run themselves again with another environment.

use std::process::Command;

use super::*;

const MARK: &str = "HOSTBLOB_TEST_WITHOUT";

/// Runs the named test again with `variable` set; what it printed.
fn again(test: &str, variable: &str, value: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(MARK, "1")
        .env(variable, value)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}\n{errors}");
    text
}

fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// All that a host without OpenGL does: it says why, and goes on.
fn without_gl(error: &GlError) {
    let text = error.to_string();
    assert!(text.contains("libgl1-mesa-dri"), "{text}");
    assert!(!text.contains('\n'), "{text}");
    assert!(survey().is_err());
    assert!(open(Choice::Gl, &Options::default()).is_err());
    assert!(open(Choice::System, &Options::default()).is_ok());
    println!("{text}");
}

#[test]
fn a_host_without_libegl_starts() {
    if is_child() {
        let error = GlProvider::new(&Options::default()).unwrap_err();
        assert!(matches!(error, GlError::NoLoader { .. }), "{error}");
        without_gl(&error);
        return;
    }
    // An empty file of that name, found first, is a library that cannot be loaded.
    let folder = std::env::temp_dir().join(format!("hostblob-no-egl-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("libEGL.so.1"), b"").unwrap();
    let test = "provider::gl::tests::missing::a_host_without_libegl_starts";
    again(test, "LD_LIBRARY_PATH", folder.to_str().unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// As NVIDIA's driver has it.
#[test]
fn without_pinned_memory_buffers_have_addresses() {
    if is_child() {
        let provider = provider(&Options {
            validation: true,
            ..Options::default()
        });
        assert!(!provider.serves_window());
        assert_eq!(provider.persistent(), &ProbeOutcome::Works);
        let text = &provider.description().attach_strategy;
        assert!(text.contains("persistent mapped buffers"), "{text}");
        assert!(contract::exported_type(&provider).is_some());
        contract::exported_memory_is_the_gpus_and_the_cpus(&provider);
        finish(provider);
        return;
    }
    let test = "provider::gl::tests::missing::without_pinned_memory_buffers_have_addresses";
    again(test, "MESA_EXTENSION_OVERRIDE", "-GL_AMD_pinned_memory");
}

#[test]
fn a_host_without_a_driver_starts() {
    if is_child() {
        let error = GlProvider::new(&Options::default()).unwrap_err();
        assert!(matches!(error, GlError::NoDisplay { .. }), "{error}");
        without_gl(&error);
        return;
    }
    let test = "provider::gl::tests::missing::a_host_without_a_driver_starts";
    again(test, "__EGL_VENDOR_LIBRARY_DIRS", "/nonexistent");
}
