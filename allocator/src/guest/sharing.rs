//! Names beyond one context: memory that contexts of a guest share, by UUID or by a blob that was passed on.

use hostblob_protocol::request::{CreateFlags, Import, ImportResource, Share};
use uuid::Uuid;

use super::Guest;
use crate::Error;
use crate::blob::{Binding, MemoryKey, Name};
use crate::context::{ContextRef, Details};

impl Guest {
    /// RESOURCE_ASSIGN_UUID: the name under which a blob's memory is shared, the same for ever.
    pub fn assign_uuid(&mut self, resource_id: u32) -> Result<Uuid, Error> {
        let blob = self
            .blobs
            .get(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        let key = blob.memory.ok_or(Error::Orphaned(resource_id))?;
        let uuid = self.share_memory(key)?;
        if let Some(memory) = self.memories.get_mut(&key)
            && !std::mem::replace(&mut memory.shared_mut().announced, true)
        {
            self.object_changes.push((uuid, true));
        }
        Ok(uuid)
    }

    /// The owner agrees that whoever is told the UUID uses the memory. It is random, so nobody guesses it.
    pub(super) fn share_memory(&mut self, key: MemoryKey) -> Result<Uuid, Error> {
        let memory = self.memories.get(&key).ok_or(Error::NotShareable)?;
        if !memory.flags.contains(CreateFlags::SHAREABLE) {
            return Err(Error::NotShareable);
        }
        let uuid = memory.shared().uuid.unwrap_or_else(Uuid::new_v4);
        // First what can be refused: a name that host processes do not get is valid nowhere.
        self.show(key, uuid)?;
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.shared_mut().uuid = Some(uuid);
            self.uuids.insert(uuid, key);
        }
        Ok(uuid)
    }

    pub(crate) fn share(&mut self, context: u32, request: &Share) -> Result<Details, Error> {
        let key = self.named(context, request.client_id)?;
        let (high, low) = self.share_memory(key)?.as_u64_pair();
        Ok([high.swap_bytes(), low.swap_bytes()])
    }

    pub(crate) fn import(&mut self, context: u32, request: &Import) -> Result<Details, Error> {
        let uuid = Uuid::from_bytes(request.uuid);
        match self.uuids.get(&uuid) {
            Some(&key) => self.add_name(context, request.client_id, key),
            None => self.import_foreign(context, request.client_id, uuid),
        }
    }

    /// A blob that is attached to the context was passed on to its process: the guest's kernel says so.
    pub(crate) fn import_resource(
        &mut self,
        context: u32,
        request: &ImportResource,
    ) -> Result<Details, Error> {
        let me = self.context(context)?.me;
        let blob = self
            .blobs
            .get(&request.resource_id)
            .filter(|blob| blob.context == me || blob.attached.contains(&context))
            .ok_or(Error::UnknownResource(request.resource_id))?;
        let key = blob.memory.ok_or(Error::Orphaned(request.resource_id))?;
        self.add_name(context, request.client_id, key)
    }

    /// Gives a memory another name. A name of somebody else's memory counts as an object of the context, and costs no bytes.
    fn add_name(&mut self, context: u32, client_id: u64, key: MemoryKey) -> Result<Details, Error> {
        let limit = self.capset.limits.max_context_blobs;
        self.new_name(context, client_id)?;
        let asker = self
            .contexts
            .get_mut(&context)
            .ok_or(Error::UnknownContext(context))?;
        let memory = self
            .memories
            .get_mut(&key)
            .ok_or(Error::UnknownClientId(client_id))?;
        if asker.objects >= limit {
            return Err(Error::TooManyObjects(limit.into()));
        }
        asker.objects += 1;
        asker.names.insert(client_id, key);
        memory.names.push(Name {
            context: asker.me,
            client_id,
            imported: true,
        });
        Ok([u64::from(memory.memory_type), memory.size])
    }

    /// Takes a name away, wherever it is known. The memory stays.
    pub(crate) fn forget_name(&mut self, key: MemoryKey, context: ContextRef, client_id: u64) {
        let Some(memory) = self.memories.get_mut(&key) else {
            return;
        };
        let is_it = |name: &mut Name| name.context == context && name.client_id == client_id;
        for name in memory.names.extract_if(.., is_it).collect::<Vec<_>>() {
            self.forget(&name);
        }
    }

    /// What CREATE named is not named any more. A blob that was made of it meanwhile, and names that others gave it, end in their own ways.
    pub(super) fn forget_creation(&mut self, key: MemoryKey) {
        let Some(memory) = self.memories.get(&key) else {
            return;
        };
        let created = memory.names.iter().copied().find(|name| !name.imported);
        if let Some(name) = created {
            self.forget_name(key, name.context, name.client_id);
        }
        self.retire_unused(key);
    }

    /// Ends a memory without names, unless a blob still uses it.
    pub(crate) fn retire_unused(&mut self, key: MemoryKey) {
        if let Some(memory) = self.memories.get(&key)
            && memory.names.is_empty()
            && !matches!(memory.binding, Binding::Bound(_))
        {
            self.retire(key);
        }
    }

    /// A memory has lost a name.
    pub(super) fn forget(&mut self, name: &Name) {
        if let Some(context) = self.owner_mut(name.context) {
            context.names.remove(&name.client_id);
            if name.imported {
                context.objects = context.objects.saturating_sub(1);
            }
        }
    }
}
