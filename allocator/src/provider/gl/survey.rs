//! What the host's OpenGL offers for memory, for people: each display is opened, asked, tried, and closed.

use std::fmt;
use std::sync::Arc;
use std::thread;

use super::context::MessageCounter;
use super::facts::GlFacts;
use super::{Engine, GlError, egl, numbered};
use crate::provider::trial::ProbeOutcome;

/// An OpenGL device: what it says, and what it was found to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlReport {
    /// Its number, for `--device`.
    pub index: usize,
    /// What it says of itself.
    pub facts: GlFacts,
    /// What came of pinning window memory.
    pub pinned: ProbeOutcome,
    /// What came of persistent mapped buffers, which serve a VMM in its own process.
    pub persistent: ProbeOutcome,
}

impl fmt::Display for GlReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "OpenGL device {}: {}", self.index, self.facts)?;
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
    let (seen, last) = numbered(&displays, |display| {
        let engine = Engine::new(egl, display, false, None, &counter)?;
        Ok::<_, GlError>((
            engine.facts().clone(),
            engine.pinned.clone(),
            engine.persistent.clone(),
        ))
    });
    match last {
        Some(error) if seen.is_empty() => Err(error.to_string()),
        _ => Ok(seen.into_iter().map(report).collect()),
    }
}

fn report((index, it): (usize, (GlFacts, ProbeOutcome, ProbeOutcome))) -> GlReport {
    let (facts, pinned, persistent) = it;
    GlReport {
        index,
        facts,
        pinned,
        persistent,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::INSTALL;
    use super::*;

    /// Nobody asks for a display by its place among those that work.
    #[test]
    fn a_display_keeps_its_number_where_one_before_it_does_not_work() {
        let outcome = || ProbeOutcome::NotOffered("for a test".to_owned());
        let facts = survey().expect(INSTALL).swap_remove(0).facts;
        let (seen, last) = numbered(&[0, 1, 2], |display| match display {
            1 => Err("it does not work"),
            _ => Ok((facts.clone(), outcome(), outcome())),
        });
        assert_eq!(last, Some("it does not work"));
        let reports: Vec<GlReport> = seen.into_iter().map(report).collect();
        let texts = reports.iter().map(ToString::to_string);
        for (text, number) in texts.zip([0, 2]) {
            let expected = format!("OpenGL device {number}: {facts}\n");
            assert!(text.starts_with(&expected), "{text}");
        }
        assert_eq!(reports.len(), 2);
    }

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
