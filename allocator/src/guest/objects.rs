//! Objects of other devices of the VM, which a guest imports by their UUIDs.
//!
//! Where they are only the VMM knows, and only the transport can ask it. So whoever executes a command asks first what it wants
//! ([`Guest::wanted_object`]), finds that, and lends it for this one command ([`Guest::lend_object`]). What the command
//! does not import is closed after it: a guest cannot make anybody keep descriptors.

use std::os::fd::OwnedFd;

use hostblob_protocol::Envelope;
use uuid::Uuid;

use super::Guest;
use crate::Error;
use crate::exports::{ExportError, Foreign, NotImportable};

/// What the VMM has under a UUID.
#[derive(Debug)]
pub(super) struct LentObject {
    uuid: Uuid,
    memory: Result<Foreign, NotImportable>,
}

impl Guest {
    /// The object of another device that the bytes of a SUBMIT_3D import: the first UUID that is neither of this guest's memory nor a
    /// token of the export socket. One a command, so that what a command can cost the VMM, and its answers cost the guest, has a bound.
    pub fn wanted_object(&self, context: u32, bytes: &[u8]) -> Option<Uuid> {
        self.context(context).ok()?;
        let exports = self.exports.as_ref();
        let is_known = |uuid: &Uuid| {
            self.uuids.contains_key(uuid)
                || exports.is_some_and(|exports| exports.has_import(uuid.into_bytes()))
        };
        let mut imports = Envelope::imports(bytes).into_iter().map(Uuid::from_bytes);
        imports.find(|uuid| !is_known(uuid))
    }

    /// The object that is wanted, until [`Guest::return_object`]. The error is what its import is refused with.
    pub fn lend_object(&mut self, uuid: Uuid, descriptor: OwnedFd) -> Result<(), NotImportable> {
        let memory = Foreign::check(descriptor);
        let checked = memory.as_ref().map(|_| ()).map_err(|error| *error);
        self.lent_object = Some(LentObject { uuid, memory });
        checked
    }

    /// The command is over. What it imported it has.
    pub fn return_object(&mut self) {
        self.lent_object = None;
    }

    /// What was lent under this UUID.
    pub(super) fn borrowed_object(&self, uuid: Uuid) -> Result<Foreign, Error> {
        let lent = self.lent_object.as_ref().filter(|lent| lent.uuid == uuid);
        match &lent.ok_or(Error::UnknownUuid(uuid))?.memory {
            Ok(memory) => Ok(memory.clone()),
            Err(error) => Err(ExportError::NotImportable(*error).into()),
        }
    }
}
