//! What the host's OpenGL offers for memory, for people: each display is opened, asked, tried, and closed.

use std::fmt;
use std::sync::Arc;
use std::thread;

use super::context::MessageCounter;
use super::facts::GlFacts;
use super::{Engine, egl};
use crate::provider::trial::ProbeOutcome;

/// An OpenGL device: what it says, and what it was found to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlReport {
    /// What it says of itself.
    pub facts: GlFacts,
    /// What came of pinning window memory.
    pub pinned: ProbeOutcome,
    /// What came of persistent mapped buffers, which serve a VMM in its own process.
    pub persistent: ProbeOutcome,
}

impl fmt::Display for GlReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.facts)?;
        writeln!(f, "  window memory by pinned memory: {}", self.pinned)?;
        write!(
            f,
            "  for a VMM in the same process, persistent mapped buffers: {}",
            self.persistent
        )
    }
}

/// Asks each of the host's OpenGL devices. The error is one line: what is missing.
pub fn survey() -> Result<Vec<GlReport>, String> {
    // On a thread of its own: the caller's may have a context current, which is none of ours.
    let thread = thread::Builder::new()
        .name("hb-gl-survey".to_owned())
        .spawn(look)
        .map_err(|error| format!("no thread: {error}"))?;
    thread
        .join()
        .unwrap_or_else(|_| Err("the driver made its thread panic".to_owned()))
}

fn look() -> Result<Vec<GlReport>, String> {
    let egl = egl::load().map_err(|error| error.to_string())?;
    let displays = egl::displays(egl).map_err(|error| error.to_string())?;
    let counter = Arc::new(MessageCounter::default());
    let mut reports = Vec::new();
    let mut last = None;
    for display in displays {
        match Engine::new(egl, &display, false, None, &counter) {
            Ok(engine) => reports.push(GlReport {
                facts: engine.facts().clone(),
                pinned: engine.pinned.clone(),
                persistent: engine.persistent.clone(),
            }),
            Err(error) => last = Some(error.to_string()),
        }
    }
    match last {
        Some(error) if reports.is_empty() => Err(error),
        _ => Ok(reports),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::INSTALL;
    use super::*;

    /// The test machine has libegl1 and libgl1-mesa-dri: llvmpipe at least.
    #[test]
    fn the_host_is_described() {
        let reports = survey().expect(INSTALL);
        let report = reports.first().expect(INSTALL);
        assert!(report.facts.version.starts_with("4."), "{report}");
        assert!(
            report.facts.buffer_storage,
            "core since OpenGL 4.4: {report}"
        );
        println!("{report}");
        // A second time: nothing was left behind.
        let again = survey().expect(INSTALL);
        assert_eq!(again.len(), reports.len());
        assert_eq!(again[0].facts.renderer, report.facts.renderer);
        assert_eq!(again[0].pinned, report.pinned);
        assert_eq!(report.persistent, ProbeOutcome::Works, "{report}");
    }
}
