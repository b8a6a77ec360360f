//! The example of an embedding VMM does what it says.

use std::process::Command;

/// Cargo builds it before it runs the tests of its package.
#[test]
fn the_example_embeds_with_either_window() -> Result<(), Box<dyn std::error::Error>> {
    let mut path = std::env::current_exe()?;
    path.pop();
    path.set_file_name("examples");
    let output = Command::new(path.join("embed")).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let seen = text.matches("both are seen in the BAR").count();
    assert_eq!(seen, 2, "{text}");
    Ok(())
}
