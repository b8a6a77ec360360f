//! The examples of embedding VMMs do what they say.

use std::error::Error;
use std::process::Command;

/// Cargo builds the examples before it runs the tests of their package.
fn run(
    example: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<String, Box<dyn Error>> {
    let mut path = std::env::current_exe()?;
    path.pop();
    path.set_file_name("examples");
    let mut command = Command::new(path.join(example));
    let environment = environment.iter().copied();
    let output = command.args(arguments).envs(environment).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    Ok(text)
}

#[test]
fn the_example_embeds_with_either_window() -> Result<(), Box<dyn Error>> {
    let text = run("embed", &[], &[])?;
    let seen = text.matches("both are seen in the BAR").count();
    assert_eq!(seen, 2, "{text}");
    Ok(())
}

#[test]
fn the_example_maps_each_blob_with_any_provider() -> Result<(), Box<dyn Error>> {
    for provider in ["vulkan", "gl", "system"] {
        let text = run("each_blob", &[provider], &[])?;
        assert!(
            text.contains(
                "mapped from the window: new memory has 0, the guest wrote 1, the host GPU 42"
            ),
            "{text}"
        );
    }
    Ok(())
}

/// The test machine's driver has it; NVIDIA's has not.
#[test]
fn without_pinned_memory_the_example_maps_addresses() -> Result<(), Box<dyn Error>> {
    let without = ("MESA_EXTENSION_OVERRIDE", "-GL_AMD_pinned_memory");
    let text = run("each_blob", &["gl"], &[without])?;
    assert!(text.contains("mapped from an address of device memory: new memory has 0, the guest wrote 1, the host GPU 42"), "{text}");
    assert!(!text.contains("the window"), "{text}");
    Ok(())
}
