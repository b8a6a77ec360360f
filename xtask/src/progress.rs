//! Long work says what it does and how long it took, on standard error.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;

/// Runs a step that may take a while: a line when it begins, the time when it ends.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("xtask: {what} ... ");
    // A line without its end is shown at once where somebody looks.
    let _ = std::io::stderr().flush();
    let start = Instant::now();
    let result = work();
    match &result {
        Ok(_) => eprintln!("done ({:.1} s)", start.elapsed().as_secs_f32()),
        Err(_) => eprintln!("failed"),
    }
    result
}

/// One line of information.
pub fn note(what: &str) {
    eprintln!("xtask: {what}");
}
