//! Decodes an envelope and executes its requests: one match, each arm one call.

use hostblob_capset::{Cache, Offer, negotiate};
use hostblob_protocol::answers::Answer;
use hostblob_protocol::request::{
    BindClientId, CacheMode, Copy, Create, CreateFlags, Fill, Free, Map, MemoryRange,
    MemorySelector, OpenAnswers, QueryBudget, Request, Unmap,
};
use hostblob_protocol::virtio_gpu::map_cache;
use hostblob_protocol::{Envelope, Status};

use super::{ContextRef, answers};
use crate::Error;
use crate::blob::{Binding, Home, Memory, MemoryKey, Name};
use crate::guest::Guest;
use crate::provider::{Placement, Request as Gpu};
use crate::quota::Charge;
use crate::work::Pending;

/// What a request answers besides its status.
pub(crate) type Details = [u64; 2];

pub(crate) const NOTHING: Details = [0; 2];

impl Guest {
    /// Executes the bytes of a SUBMIT_3D of this context; GPU work goes to the timeline of `ring`.
    ///
    /// A refused request is told to the guest in its answers ring, and to the caller only where there is no ring:
    /// `Ok` means that the guest learns how it went.
    pub fn submit(&mut self, context: u32, ring: u8, bytes: &[u8]) -> Result<(), Error> {
        self.context(context)?;
        let envelope = match Envelope::decode(bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                let sequence = Envelope::peek_sequence(bytes).unwrap_or(0);
                return self.answer_failure(context, sequence, 0, error.into());
            }
        };
        let before = self.work.submitted();
        let mut details = NOTHING;
        let mut wait = None;
        let mut index = 0;
        for (position, request) in (0..).zip(&envelope.requests) {
            index = position;
            let done = match (request, wait) {
                (_, Some(_)) => Err(Error::Argument {
                    field: "requests",
                    value: position.into(),
                    expected: "none after WAIT_RELEASED",
                }),
                (Request::WaitReleased(request), None) => {
                    self.wait_released(context, ring, request).map(|hold| {
                        wait = hold;
                        NOTHING
                    })
                }
                _ => self.execute(context, request),
            };
            match done {
                Ok(answered) => details = answered,
                Err(error) => {
                    if let Some(hold) = wait {
                        self.give_up_hold(hold);
                    }
                    self.note_work(context, ring, before);
                    log::debug!(
                        "context {context} ({}): request {index}: {error}",
                        envelope
                            .debug_name
                            .as_ref()
                            .map_or("", |name| name.name.as_str())
                    );
                    return self.answer_failure(context, envelope.sequence, index, error);
                }
            }
            if let (
                Request::Create(Create { client_id, .. }) | Request::Map(Map { client_id, .. }),
                Some(name),
            ) = (request, &envelope.debug_name)
            {
                self.label(context, *client_id, &name.name);
            }
        }
        self.note_work(context, ring, before);
        let answer = Answer {
            sequence: envelope.sequence,
            status: Status::Ok,
            index,
            details,
        };
        match wait {
            Some(hold) => self.answer_after(hold, before, answer),
            None => self.answer(context, before, answer),
        }
        Ok(())
    }

    fn execute(&mut self, context: u32, request: &Request) -> Result<Details, Error> {
        match request {
            Request::OpenAnswers(request) => self.open_answers(context, request),
            Request::Create(request) => self.create(context, request),
            Request::BindClientId(request) => self.bind(context, request),
            Request::Map(request) => self.check_map(context, request),
            Request::Unmap(request) => self.check_unmap(context, request),
            Request::Free(request) => self.free(context, request),
            Request::Flush(request) => self.check_range(context, &request.range),
            Request::Invalidate(request) => self.check_range(context, &request.range),
            Request::Fill(request) => self.fill(context, request),
            Request::Copy(request) => self.copy(context, request),
            Request::QueryBudget(request) => self.budget(context, request),
            Request::Import(request) => self.import(context, request),
            Request::ImportResource(request) => self.import_resource(context, request),
            Request::Share(request) => self.share(context, request),
            Request::Publish(request) => self.publish(context, request),
            Request::Withdraw(request) => self.withdraw(context, request),
            Request::Present(request) => self.present(context, request),
            // Begins in `submit`: its answer comes later.
            Request::WaitReleased(_) => Ok(NOTHING),
        }
    }

    /// GPU work that was submitted since `before` belongs to the ring's timeline.
    pub(crate) fn note_work(&mut self, context: u32, ring: u8, before: u64) {
        let last = self.work.submitted();
        if last > before
            && let Some(context) = self.contexts.get_mut(&context)
        {
            context.last_work.insert(ring, last);
        }
    }

    fn answer_failure(
        &mut self,
        context: u32,
        sequence: u64,
        index: u32,
        error: Error,
    ) -> Result<(), Error> {
        let has_ring = self.context(context)?.answers.is_some();
        if !has_ring || sequence == 0 {
            return Err(error);
        }
        let answer = Answer {
            sequence,
            status: error.status(),
            index,
            details: NOTHING,
        };
        self.answer(context, self.work.submitted(), answer);
        Ok(())
    }

    /// Answers now, or when the work since `before` is done.
    fn answer(&mut self, context: u32, before: u64, answer: Answer) {
        let Some(asker) = self.contexts.get(&context) else {
            return;
        };
        if answer.sequence == 0 {
            return;
        }
        let last = self.work.submitted();
        if last > before {
            self.deferred.push(asker.me, before + 1, last, answer);
        } else {
            self.write_answer(asker.me, &answer);
        }
    }

    pub(crate) fn write_answer(&self, context: ContextRef, answer: &Answer) {
        let ring = self
            .contexts
            .get(&context.id)
            .filter(|found| found.me == context)
            .and_then(|found| found.answers)
            .and_then(|(key, _)| self.memories.get(&key));
        if let Some(memory) = ring {
            answers::write(memory, answer);
        }
    }

    fn open_answers(&mut self, context: u32, request: &OpenAnswers) -> Result<Details, Error> {
        let theirs = Offer {
            major: request.major,
            minor: request.minor,
            requests: request.requests,
            create_flags: request.create_flags,
        };
        let agreed = negotiate(&self.capset.offer, &theirs)?;
        let me = self.context(context)?.me;
        let blob = self
            .blobs
            .get(&request.resource_id)
            .filter(|blob| blob.context == me)
            .ok_or(Error::UnknownResource(request.resource_id))?;
        let key = blob.memory.ok_or(Error::Orphaned(request.resource_id))?;
        let memory = self
            .memories
            .get(&key)
            .ok_or(Error::UnknownResource(request.resource_id))?;
        if !memory.names.is_empty() || !answers::initialise(memory) {
            return Err(Error::NotMappable(
                "an answers ring is a mapped blob of blob_id 0",
            ));
        }
        if let Some(context) = self.contexts.get_mut(&context) {
            context.answers = Some((key, agreed));
        }
        Ok(NOTHING)
    }

    fn create(&mut self, context: u32, request: &Create) -> Result<Details, Error> {
        let memory_type = self.check_create(context, request)?;
        let asker = self.context(context)?;
        if asker.names.contains_key(&request.client_id) {
            return Err(Error::ClientIdInUse(request.client_id));
        }
        let owner = asker.me;
        let charge = self.charge(context, request.size)?;
        let device = self.placement(memory_type) != Placement::Window;
        let key = self.insert_memory(Memory {
            names: vec![Name {
                context: owner,
                client_id: request.client_id,
                imported: false,
            }],
            flags: request.flags,
            binding: if request.flags.contains(CreateFlags::MAP_DIRECTLY) {
                Binding::Ready
            } else {
                Binding::Unbound
            },
            _charge: Some(charge),
            ..Memory::new(
                owner,
                request.size,
                memory_type,
                if device {
                    Home::Device { exposed_at: None }
                } else {
                    Home::Nowhere
                },
            )
        });
        if let Some(context) = self.contexts.get_mut(&context) {
            context.names.insert(request.client_id, key);
        }
        if device {
            let attachment = self.work.new_attachment();
            let allocate = Gpu::Allocate {
                attachment,
                length: request.size,
                memory_type,
            };
            self.work.submit(allocate, Pending::Attach(key, attachment));
            self.set_attachment(key, Some(attachment));
        }
        Ok([u64::from(memory_type), request.size])
    }

    fn check_create(&self, context: u32, request: &Create) -> Result<u32, Error> {
        let argument = |field, value, expected| Error::Argument {
            field,
            value,
            expected,
        };
        let flags = request.flags;
        if request.client_id == 0 {
            return Err(argument("client_id", 0, "not 0"));
        }
        self.check_size(request.size)?;
        let page = u64::from(self.capset.page_size);
        if request.alignment != 0
            && (!request.alignment.is_power_of_two() || request.alignment > page)
        {
            return Err(argument(
                "alignment",
                request.alignment,
                "0 or a power of two up to the page size",
            ));
        }
        if flags.contains(CreateFlags::MAP_DIRECTLY) && !flags.contains(CreateFlags::HOST_VISIBLE) {
            return Err(argument(
                "flags",
                flags.bits().into(),
                "MAP_DIRECTLY needs HOST_VISIBLE",
            ));
        }
        if self
            .context(context)?
            .answers
            .is_some_and(|(_, agreed)| !agreed.create_flags.contains(flags))
        {
            return Err(Error::Unsupported(
                "a flag that guest and host did not agree on",
            ));
        }
        let memory_type = self.select_type(request)?;
        let found = self.cache_of(memory_type);
        check_cache(request.expected_cache, found)?;
        Ok(memory_type)
    }

    fn select_type(&self, request: &Create) -> Result<u32, Error> {
        const HOST_VISIBLE: u32 = hostblob_capset::MEMORY_PROPERTY_HOST_VISIBLE;
        let capset = &self.capset;
        let must = if request.flags.contains(CreateFlags::HOST_VISIBLE) {
            HOST_VISIBLE
        } else {
            0
        };
        let none = |asked| Err(Error::NoMemoryType(asked));
        match request.memory {
            MemorySelector::Properties(properties) => capset
                .find_type(properties | must)
                .map_or_else(|| none(format!("properties {:#x}", properties | must)), Ok),
            MemorySelector::Index(index) => {
                let found = usize::try_from(index)
                    .ok()
                    .and_then(|i| capset.types.get(i));
                match found {
                    Some(found) if found.property_flags & must == must => Ok(index),
                    Some(_) => none(format!("HOST_VISIBLE: type {index} is not")),
                    None => none(format!("index {index} of {}", capset.types.len())),
                }
            }
        }
    }

    fn bind(&mut self, context: u32, request: &BindClientId) -> Result<Details, Error> {
        let key = self.named(context, request.client_id)?;
        let memory = self.memory_mut(key, request.client_id)?;
        if memory.binding != Binding::Unbound {
            return Err(Error::Bound(request.client_id));
        }
        if !memory.flags.contains(CreateFlags::HOST_VISIBLE) {
            return Err(Error::NotMappable("it was created without HOST_VISIBLE"));
        }
        memory.binding = Binding::Ready;
        Ok(NOTHING)
    }

    fn check_map(&mut self, context: u32, request: &Map) -> Result<Details, Error> {
        let memory = self.memory(self.named(context, request.client_id)?, request.client_id)?;
        if !memory.flags.contains(CreateFlags::HOST_VISIBLE) {
            return Err(Error::NotMappable("it was created without HOST_VISIBLE"));
        }
        if request.access.is_empty() {
            return Err(Error::Argument {
                field: "access",
                value: 0,
                expected: "READ, WRITE or both",
            });
        }
        let found = self.cache_of(memory.memory_type);
        check_cache(request.expected_cache, found)?;
        Ok([u64::from(map_info(found)), 0])
    }

    fn check_unmap(&mut self, context: u32, request: &Unmap) -> Result<Details, Error> {
        self.named(context, request.client_id)?;
        Ok(NOTHING)
    }

    fn free(&mut self, context: u32, request: &Free) -> Result<Details, Error> {
        let key = self.named(context, request.client_id)?;
        let me = self.context(context)?.me;
        self.forget_name(key, me, request.client_id);
        self.retire_unused(key);
        Ok(NOTHING)
    }

    /// Every type that is offered is coherent (`vkFlushMappedMemoryRanges` has no work to do), so there is nothing but to
    /// check, as the Vulkan specification words it: multiples of `nonCoherentAtomSize`, or up to the end.
    fn check_range(&mut self, context: u32, range: &MemoryRange) -> Result<Details, Error> {
        let memory = self.memory(self.named(context, range.client_id)?, range.client_id)?;
        let slice = memory.slice(range.offset, range.length)?;
        let atom = u64::from(self.capset.non_coherent_atom_size);
        let to_the_end = slice.offset.saturating_add(slice.length) == memory.size;
        let expected = "a multiple of nonCoherentAtomSize";
        if !slice.offset.is_multiple_of(atom) {
            return Err(Error::Argument {
                field: "offset",
                value: slice.offset,
                expected,
            });
        }
        if !slice.length.is_multiple_of(atom) && !to_the_end {
            return Err(Error::Argument {
                field: "length",
                value: slice.length,
                expected,
            });
        }
        Ok(NOTHING)
    }

    fn fill(&mut self, context: u32, request: &Fill) -> Result<Details, Error> {
        let range = &request.range;
        let key = self.named(context, range.client_id)?;
        let slice = self
            .memory(key, range.client_id)?
            .slice(range.offset, range.length)?;
        for (field, value) in [("offset", slice.offset), ("length", slice.length)] {
            if !value.is_multiple_of(4) {
                return Err(Error::Argument {
                    field,
                    value,
                    expected: "a multiple of 4",
                });
            }
        }
        let job = self.jobs(context, 1)?;
        let attachment = self.attach(key)?;
        let fill = Gpu::Fill {
            attachment,
            offset: slice.offset,
            length: slice.length,
            value: request.value,
        };
        self.work.submit(fill, Pending::Job(job));
        Ok(NOTHING)
    }

    fn copy(&mut self, context: u32, request: &Copy) -> Result<Details, Error> {
        let from = &request.source;
        let source = self.named(context, from.client_id)?;
        let destination = self.named(context, request.destination_client_id)?;
        let read = self
            .memory(source, from.client_id)?
            .slice(from.offset, from.length)?;
        let written = self
            .memory(destination, request.destination_client_id)?
            .slice(request.destination_offset, from.length)?;
        if source == destination && read.overlaps(written) {
            return Err(Error::Argument {
                field: "destination_offset",
                value: written.offset,
                expected: "ranges of one memory that do not overlap",
            });
        }
        let job = self.jobs(context, 1)?;
        let source = self.attach(source)?;
        let destination = self.attach(destination)?;
        let copy = Gpu::Copy {
            source,
            source_offset: read.offset,
            destination,
            destination_offset: written.offset,
            length: read.length,
        };
        self.work.submit(copy, Pending::Job(job));
        Ok(NOTHING)
    }

    fn budget(&mut self, context: u32, request: &QueryBudget) -> Result<Details, Error> {
        let heap = usize::try_from(request.heap)
            .ok()
            .and_then(|index| self.capset.heaps.get(index))
            .ok_or(Error::Argument {
                field: "heap",
                value: request.heap.into(),
                expected: "an index into the capset's heaps",
            })?;
        let quota = &self.context(context)?.quota;
        let budget = quota.used().saturating_add(quota.left()).min(heap.size);
        Ok([budget, quota.used()])
    }

    pub(crate) fn named(&self, context: u32, client_id: u64) -> Result<MemoryKey, Error> {
        let context = self.context(context)?;
        context
            .names
            .get(&client_id)
            .copied()
            .ok_or(Error::UnknownClientId(client_id))
    }

    pub(crate) fn memory(&self, key: MemoryKey, client_id: u64) -> Result<&Memory, Error> {
        self.memories
            .get(&key)
            .map(Box::as_ref)
            .ok_or(Error::UnknownClientId(client_id))
    }

    pub(crate) fn memory_mut(
        &mut self,
        key: MemoryKey,
        client_id: u64,
    ) -> Result<&mut Memory, Error> {
        self.memories
            .get_mut(&key)
            .map(Box::as_mut)
            .ok_or(Error::UnknownClientId(client_id))
    }

    pub(crate) fn charge(&self, context: u32, size: u64) -> Result<Charge, Error> {
        let asker = self.context(context)?;
        let limit = self.capset.limits.max_context_blobs;
        if asker.objects >= limit {
            return Err(Error::TooManyObjects(limit.into()));
        }
        Ok(Charge::new(&asker.quota, size)?)
    }

    pub(crate) fn check_size(&self, size: u64) -> Result<(), Error> {
        let argument = |expected| {
            Err(Error::Argument {
                field: "size",
                value: size,
                expected,
            })
        };
        let capset = &self.capset;
        if size == 0 || !size.is_multiple_of(u64::from(capset.page_size)) {
            return argument("a multiple of the capset's page size, not 0");
        }
        if size > capset.limits.max_blob_size {
            return argument("at most the capset's largest blob");
        }
        Ok(())
    }

    pub(crate) fn cache_of(&self, memory_type: u32) -> Cache {
        usize::try_from(memory_type)
            .ok()
            .and_then(|index| self.capset.types.get(index))
            .map_or(Cache::Cached, |found| found.cache)
    }

    pub(crate) fn placement(&self, memory_type: u32) -> Placement {
        let description = self.host.provider.description();
        description
            .placement(memory_type)
            .unwrap_or(Placement::Window)
    }
}

/// `VIRTIO_GPU_MAP_CACHE_*` of a cache mode.
pub(crate) fn map_info(cache: Cache) -> u32 {
    match cache {
        Cache::Cached => map_cache::CACHED,
        Cache::Uncached => map_cache::UNCACHED,
        Cache::WriteCombined => map_cache::WC,
    }
}

fn check_cache(expected: CacheMode, found: Cache) -> Result<(), Error> {
    let found = match found {
        Cache::Cached => CacheMode::Cached,
        Cache::Uncached => CacheMode::Uncached,
        Cache::WriteCombined => CacheMode::WriteCombined,
    };
    if expected == CacheMode::Any || expected == found {
        Ok(())
    } else {
        Err(Error::CacheMode { expected, found })
    }
}
