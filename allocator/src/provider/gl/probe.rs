//! What a context really does, as opposed to what it says: a page of a scratch file pinned, written by the CPU, copied by
//! the GPU into its own memory and out again, read back and compared, as `trial` says.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;

use super::buffer::{Budget, GlBytes};
use super::commands::Commands;
use super::context::Gl;
use super::persistent::Persistent;
use crate::provider::desk::At;
use crate::provider::trial::{ProbeOutcome, Scratch, Trial};
use crate::provider::{Elsewhere, ProviderError};

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

/// Whether persistent mapped buffers serve.
pub(super) fn persistent(commands: &mut Commands, buffers: &Persistent) -> ProbeOutcome {
    let length = rustix::param::page_size() as u64;
    let mut attempt = || {
        let scratch = Scratch::new(length)?;
        let mut attempt = MappedAttempt {
            source: buffers.allocate(length)?,
            destination: buffers.allocate(length)?,
            scratch: &scratch,
            length,
            commands,
        };
        let outcome = scratch.exercise(&mut attempt);
        if outcome.is_err() {
            let _ = finish(attempt.commands);
        }
        outcome
    };
    let outcome = attempt().map_or_else(|outcome| outcome, |()| ProbeOutcome::Works);
    buffers.collect();
    outcome
}

/// Persistent mapped buffers, on trial: the file is the staging area.
struct MappedAttempt<'a> {
    source: GlBytes,
    destination: GlBytes,
    scratch: &'a Scratch,
    length: u64,
    commands: &'a mut Commands,
}

impl MappedAttempt<'_> {
    fn read_back(&self, from: &GlBytes, offset: u64) -> Result<(), ProviderError> {
        let to = self.scratch.file.mapping().range(offset, self.length)?;
        copy_bytes(address(from, self.length)?, to, self.length)
    }
}

impl Trial for MappedAttempt<'_> {
    fn copy(&mut self) -> Result<(), ProviderError> {
        let staging = self.scratch.file.mapping();
        let from = staging.range(self.scratch.source(), self.length)?;
        copy_bytes(from, address(&self.source, self.length)?, self.length)?;
        let start = |bytes| At { bytes, offset: 0 };
        let (source, destination) = (start(&self.source), start(&self.destination));
        self.commands.copy(&source, &destination, self.length)?;
        finish(self.commands)?;
        self.read_back(&self.destination, self.scratch.destination())
    }

    fn fill(&mut self, value: u32) -> Result<(), ProviderError> {
        self.commands.fill(&self.source, 0, self.length, value)?;
        finish(self.commands)?;
        self.read_back(&self.source, self.scratch.source())
    }
}

fn address(bytes: &GlBytes, length: u64) -> Result<NonNull<c_void>, ProviderError> {
    match bytes.address(length)? {
        Elsewhere::Address(address) => Ok(address.base()),
        Elsewhere::File(_) => Err(ProviderError::Driver("a file".to_owned())),
    }
}

fn copy_bytes(
    from: NonNull<c_void>,
    to: NonNull<c_void>,
    length: u64,
) -> Result<(), ProviderError> {
    let length =
        usize::try_from(length).map_err(|_| ProviderError::Invalid("length".to_owned()))?;
    // SAFETY: a range of the scratch file and a mapped buffer of that size, both alive in the callers.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr().cast::<u8>(), to.as_ptr().cast(), length)
    };
    Ok(())
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
