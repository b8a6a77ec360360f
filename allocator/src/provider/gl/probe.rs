//! What a context really does, as opposed to what it says: a page of a scratch file pinned, written by the CPU, copied by
//! the GPU into its own memory and out again, read back and compared, as `trial` says.

use std::rc::Rc;

use super::buffer::{Budget, GlBytes};
use super::commands::Commands;
use super::context::Gl;
use crate::provider::ProviderError;
use crate::provider::desk::At;
use crate::provider::trial::{ProbeOutcome, Scratch, Trial};

/// Whether pinned memory serves.
pub(super) fn pinned(gl: &Rc<Gl>, commands: &mut Commands, budget: &Rc<Budget>) -> ProbeOutcome {
    if !gl.facts.pinned_memory {
        return ProbeOutcome::NotOffered("no GL_AMD_pinned_memory".to_owned());
    }
    match attempt(gl, commands, budget) {
        Ok(()) => ProbeOutcome::Works,
        Err(outcome) => outcome,
    }
}

fn attempt(gl: &Rc<Gl>, commands: &mut Commands, budget: &Rc<Budget>) -> Result<(), ProbeOutcome> {
    let page = rustix::param::page_size() as u64;
    let scratch = Scratch::new(page)?;
    let pin = |offset| GlBytes::pin(gl, &scratch.file, offset, page);
    let mut attempt = Attempt {
        source: pin(scratch.source())?,
        destination: pin(scratch.destination())?,
        local: GlBytes::allocate(budget, page)?,
        length: page,
        commands,
    };
    let outcome = scratch.exercise(&mut attempt);
    if outcome.is_err() {
        // Whatever failed, nothing of ours may be pending when the buffers go.
        let _ = attempt.finish();
    }
    outcome
}

/// Pinned memory, on trial.
struct Attempt<'a> {
    source: GlBytes,
    destination: GlBytes,
    local: GlBytes,
    length: u64,
    commands: &'a mut Commands,
}

impl Attempt<'_> {
    fn finish(&mut self) -> Result<(), ProviderError> {
        finish(self.commands)
    }
}

impl Trial for Attempt<'_> {
    fn copy(&mut self) -> Result<(), ProviderError> {
        let start = |bytes| At { bytes, offset: 0 };
        let (from, by, to) = (&self.source, &self.local, &self.destination);
        self.commands.copy(&start(from), &start(by), self.length)?;
        self.commands.copy(&start(by), &start(to), self.length)?;
        self.finish()
    }

    fn fill(&mut self, value: u32) -> Result<(), ProviderError> {
        self.commands.fill(&self.source, 0, self.length, value)?;
        self.finish()
    }
}

/// Whether device-local memory can be had, filled, and waited for: what everything here is built on.
pub(super) fn local(commands: &mut Commands, budget: &Rc<Budget>) -> Result<(), ProviderError> {
    let bytes = GlBytes::allocate(budget, rustix::param::page_size() as u64)?;
    commands.fill(&bytes, 0, bytes.own_size(), 0)?;
    finish(commands)
}

fn finish(commands: &mut Commands) -> Result<(), ProviderError> {
    let number = commands.submit()?;
    commands.wait(number)
}
