//! What must be true of a guest: contexts, memories and blobs in plain maps. Each method says whether the command succeeds.

use std::collections::BTreeMap;

/// Pages that all may hold.
pub const MEMORY_PAGES: u64 = 32;
/// Pages that one context may hold.
pub const CONTEXT_PAGES: u64 = 20;

type Key = usize;

#[derive(Debug)]
struct Memory {
    /// Who pays.
    owner: Key,
    /// What its owner calls it.
    name: Option<u64>,
    direct: bool,
    binding: Binding,
    /// What each page is full of.
    pages: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Binding {
    /// Of the device: no blob can be made of it.
    Never,
    Unbound,
    Ready,
    Bound,
}

#[derive(Debug)]
struct Blob {
    /// `None` where it died with its context.
    memory: Option<Key>,
    place: Option<u64>,
}

/// The model.
#[derive(Debug, Default)]
pub struct Model {
    /// By id; each life of one has a key.
    contexts: BTreeMap<u32, Key>,
    memories: BTreeMap<Key, Memory>,
    blobs: BTreeMap<u32, Blob>,
    last: Key,
    /// The GPU refuses its next work.
    pub refuses: bool,
}

impl Model {
    fn key(&mut self) -> Key {
        self.last += 1;
        self.last
    }

    /// Pages that are held.
    pub fn charged(&self) -> u64 {
        self.memories.values().map(Memory::size).sum()
    }

    fn has_room(&self, owner: Key, pages: u64) -> bool {
        let of = self
            .memories
            .values()
            .filter(|memory| memory.owner == owner);
        let used: u64 = of.map(Memory::size).sum();
        used + pages <= CONTEXT_PAGES && self.charged() + pages <= MEMORY_PAGES
    }

    /// What a context calls `client`.
    fn named(&self, context: u32, client: u64) -> Option<Key> {
        let owner = *self.contexts.get(&context)?;
        let mut all = self.memories.iter();
        let found = all.find(|(_, memory)| memory.owner == owner && memory.name == Some(client));
        found.map(|(key, _)| *key)
    }

    /// CTX_CREATE.
    pub fn open(&mut self, context: u32) -> bool {
        let is_new = context != 0 && !self.contexts.contains_key(&context);
        if is_new {
            let key = self.key();
            self.contexts.insert(context, key);
        }
        is_new
    }

    /// CTX_DESTROY: what is mapped stays until its blob goes.
    pub fn close(&mut self, context: u32) -> bool {
        let Some(owner) = self.contexts.remove(&context) else {
            return false;
        };
        let blobs = &mut self.blobs;
        self.memories.retain(|key, memory| {
            if memory.owner != owner {
                return true;
            }
            memory.name = None;
            let blob = blobs.values_mut().find(|blob| blob.memory == Some(*key));
            match blob {
                Some(blob) if blob.place.is_some() => true,
                Some(blob) => {
                    blob.memory = None;
                    false
                }
                None => false,
            }
        });
        true
    }

    fn insert(&mut self, owner: Key, name: Option<u64>, pages: u64, binding: Binding) -> Key {
        let key = self.key();
        let memory = Memory {
            owner,
            name,
            direct: binding == Binding::Ready,
            binding,
            pages: vec![0; pages as usize],
        };
        self.memories.insert(key, memory);
        key
    }

    /// CREATE, with MAP_DIRECTLY or without.
    pub fn create(&mut self, context: u32, client: u64, pages: u64, direct: bool) -> bool {
        let Some(owner) = self.creator(context, client, pages) else {
            return false;
        };
        let binding = if direct {
            Binding::Ready
        } else {
            Binding::Unbound
        };
        self.insert(owner, Some(client), pages, binding);
        true
    }

    /// CREATE of memory of the device, which the GPU may refuse.
    pub fn create_private(&mut self, context: u32, client: u64, pages: u64) -> bool {
        let owner = self.creator(context, client, pages);
        let Some(owner) = owner.filter(|_| self.does_work()) else {
            return false;
        };
        self.insert(owner, Some(client), pages, Binding::Never);
        true
    }

    fn creator(&self, context: u32, client: u64, pages: u64) -> Option<Key> {
        let owner = *self.contexts.get(&context)?;
        let is_new = client != 0 && pages != 0 && self.named(context, client).is_none();
        (is_new && self.has_room(owner, pages)).then_some(owner)
    }

    /// Whether the GPU does what it is asked now.
    fn does_work(&mut self) -> bool {
        !std::mem::take(&mut self.refuses)
    }

    /// BIND_CLIENT_ID.
    pub fn bind(&mut self, context: u32, client: u64) -> bool {
        let key = self.named(context, client);
        match key.and_then(|key| self.memories.get_mut(&key)) {
            Some(memory) if memory.binding == Binding::Unbound => {
                memory.binding = Binding::Ready;
                true
            }
            _ => false,
        }
    }

    /// FREE: the memory goes with its name, or with its blob.
    pub fn free(&mut self, context: u32, client: u64) -> bool {
        let Some(key) = self.named(context, client) else {
            return false;
        };
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.name = None;
            if memory.binding != Binding::Bound {
                self.memories.remove(&key);
            }
        }
        true
    }

    /// RESOURCE_CREATE_BLOB with a client id, or 0.
    pub fn blob(&mut self, context: u32, resource: u32, client: u64, pages: u64) -> bool {
        let Some(&owner) = self.contexts.get(&context) else {
            return false;
        };
        if resource == 0 || self.blobs.contains_key(&resource) || pages == 0 {
            return false;
        }
        let memory = if client == 0 {
            if !self.has_room(owner, pages) {
                return false;
            }
            self.insert(owner, None, pages, Binding::Bound)
        } else {
            let key = self.named(context, client);
            let fits = |memory: &Memory| memory.binding == Binding::Ready && memory.size() == pages;
            match key.filter(|key| self.memories.get(key).is_some_and(fits)) {
                Some(key) => key,
                None => return false,
            }
        };
        if let Some(memory) = self.memories.get_mut(&memory) {
            memory.binding = Binding::Bound;
        }
        let blob = Blob {
            memory: Some(memory),
            place: None,
        };
        self.blobs.insert(resource, blob);
        true
    }

    fn size_of(&self, blob: &Blob) -> Option<u64> {
        Some(self.memories.get(&blob.memory?)?.size())
    }

    /// RESOURCE_MAP_BLOB: nobody else may be there.
    pub fn map(&mut self, resource: u32, page: u64) -> bool {
        let Some(blob) = self
            .blobs
            .get(&resource)
            .filter(|blob| blob.place.is_none())
        else {
            return false;
        };
        let Some(size) = self.size_of(blob) else {
            return false;
        };
        let is_taken = self.blobs.values().any(|other| {
            let (Some(place), Some(length)) = (other.place, self.size_of(other)) else {
                return false;
            };
            place < page + size && page < place + length
        });
        if !is_taken && let Some(blob) = self.blobs.get_mut(&resource) {
            blob.place = Some(page);
        }
        !is_taken
    }

    /// RESOURCE_UNMAP_BLOB.
    pub fn unmap(&mut self, resource: u32) -> bool {
        let blob = self.blobs.get_mut(&resource);
        blob.is_some_and(|blob| blob.place.take().is_some())
    }

    /// RESOURCE_UNREF: memory that has a name of its own stays.
    pub fn unref(&mut self, resource: u32) -> bool {
        let Some(blob) = self.blobs.remove(&resource) else {
            return false;
        };
        if let Some(key) = blob.memory
            && let Some(memory) = self.memories.get_mut(&key)
        {
            memory.binding = Binding::Unbound;
            if memory.direct || memory.name.is_none() {
                self.memories.remove(&key);
            }
        }
        true
    }

    /// A write through the window: where.
    pub fn write(&mut self, resource: u32, page: u64, value: u32) -> Option<u64> {
        let blob = self.blobs.get(&resource)?;
        let place = blob.place?;
        *self
            .memories
            .get_mut(&blob.memory?)?
            .pages
            .get_mut(page as usize)? = value;
        Some(place + page)
    }

    fn pages(&mut self, context: u32, client: u64, page: u64, pages: u64) -> Option<&mut [u32]> {
        let key = self.named(context, client).filter(|_| pages > 0)?;
        let range = page as usize..(page + pages) as usize;
        self.memories.get_mut(&key)?.pages.get_mut(range)
    }

    /// FILL.
    pub fn fill(&mut self, context: u32, client: u64, page: u64, pages: u64, value: u32) -> bool {
        if self.pages(context, client, page, pages).is_none() || !self.does_work() {
            return false;
        }
        let found = self.pages(context, client, page, pages);
        found.map(|pages| pages.fill(value)).is_some()
    }

    /// COPY of pages; within one memory they must not overlap.
    pub fn copy(&mut self, context: u32, from: (u64, u64), to: (u64, u64), pages: u64) -> bool {
        if from.0 == to.0 && from.1 < to.1 + pages && to.1 < from.1 + pages {
            return false;
        }
        let source = self.pages(context, from.0, from.1, pages);
        let Some(source) = source.map(|pages| pages.to_vec()) else {
            return false;
        };
        if self.pages(context, to.0, to.1, pages).is_none() || !self.does_work() {
            return false;
        }
        let found = self.pages(context, to.0, to.1, pages);
        found.map(|pages| pages.copy_from_slice(&source)).is_some()
    }

    /// What each page of the window is full of where a blob is mapped, but for resources from `rings` on.
    pub fn visible(&self, rings: u32) -> Vec<(u64, u32)> {
        let mut visible = Vec::new();
        for blob in self.blobs.range(..rings).map(|(_, blob)| blob) {
            let memory = blob.memory.and_then(|key| self.memories.get(&key));
            if let (Some(place), Some(memory)) = (blob.place, memory) {
                visible.extend((place..).zip(memory.pages.iter().copied()));
            }
        }
        visible
    }
}

impl Memory {
    fn size(&self) -> u64 {
        self.pages.len() as u64
    }
}
