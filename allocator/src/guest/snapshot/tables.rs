//! Contexts, memories and blobs: written, read into a plan, checked as a whole, and made.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use hostblob_capset::{Agreed, Offer};
use hostblob_protocol::request::{CreateFlags, Request as Requests};
use uuid::Uuid;

use super::contents::Contents;
use super::records::{
    self, AnswersRecord, BATCH, BlobRecord, ContextRecord, GuestRecord, HomeRecord, MemoryRecord,
    TypeRecord, tag,
};
use super::stream::Writer;
use super::{RestoreError, SaveError};
use crate::Error as Refusal;
use crate::blob::{Binding, Blob, Home, Memory, MemoryKey, Name};
use crate::context::{Context, ContextRef, MAX_CONTEXTS};
use crate::exports::{ExportError, Layout, MAX_BUFFERS, MAX_GUEST_BUFFERS};
use crate::guest::{Guest, MAX_RESOURCES, NO_TYPE};
use crate::provider::{Placement, Request};
use crate::quota::{Charge, Level, Quota};
use crate::window::{PAGE, Span};
use crate::work::Pending;

type Result<T> = std::result::Result<T, RestoreError>;

fn inconsistent<T>(reason: &'static str) -> Result<T> {
    Err(RestoreError::Inconsistent(reason))
}

fn check(holds: bool, reason: &'static str) -> Result<()> {
    if holds { Ok(()) } else { inconsistent(reason) }
}

/// The types of memory, as the guest was told.
fn types(guest: &Guest) -> impl Iterator<Item = TypeRecord> {
    (0..)
        .zip(&guest.capset.types)
        .map(|(index, told)| TypeRecord {
            properties: told.property_flags,
            device: guest.placement(index) != Placement::Window,
            cache: told.cache,
        })
}

/// Writes all tables, in an order that depends on nothing but what is in them.
pub(super) fn write(guest: &Guest, writer: &mut Writer<'_>) -> std::result::Result<(), SaveError> {
    let record = GuestRecord {
        window_size: guest.window.size(),
        last_key: guest.next_key,
        last_serial: guest.next_serial,
        types: types(guest).collect(),
    };
    writer.section(tag::GUEST, record.encode().bytes())?;
    let contexts: BTreeMap<_, _> = guest.contexts.iter().collect();
    for context in contexts.into_values() {
        writer.section(tag::CONTEXT, context_record(context).encode().bytes())?;
    }
    let memories: BTreeMap<_, _> = guest.memories.iter().collect();
    for (&key, memory) in &memories {
        let record = memory_record(*key, memory);
        writer.section(tag::MEMORY, record.encode().bytes())?;
    }
    for (&key, memory) in &memories {
        for names in memory.names.chunks(BATCH) {
            let payload = records::encode_names(*key, names);
            writer.section(tag::NAMES, payload.bytes())?;
        }
    }
    for (&key, memory) in &memories {
        let layouts = match (memory.shared().export, &guest.exports) {
            (Some(id), Some(exports)) => exports.layouts(id),
            _ => Vec::new(),
        };
        for layouts in layouts.chunks(BATCH) {
            let payload = records::encode_buffers(*key, layouts);
            writer.section(tag::BUFFERS, payload.bytes())?;
        }
    }
    let blobs: BTreeMap<_, _> = guest.blobs.iter().collect();
    for (resource, blob) in blobs {
        let record = BlobRecord {
            resource: *resource,
            context: blob.context,
            memory: blob.memory,
            shadow: blob.shadow,
            mappable: blob.mappable,
            mapped: blob.mapped,
            attached: blob.attached.clone(),
        };
        writer.section(tag::BLOB, record.encode().bytes())?;
    }
    Ok(())
}

fn context_record(context: &Context) -> ContextRecord {
    ContextRecord {
        me: context.me,
        name: context.name.clone(),
        answers: context.answers.map(|(key, agreed)| AnswersRecord {
            key,
            minor: agreed.minor,
            requests: agreed.requests,
            create_flags: agreed.create_flags,
        }),
    }
}

fn memory_record(key: MemoryKey, memory: &Memory) -> MemoryRecord {
    MemoryRecord {
        key,
        owner: memory.context,
        size: memory.size,
        memory_type: memory.memory_type,
        flags: memory.flags,
        binding: memory.binding,
        home: match &memory.home {
            Home::Nowhere => HomeRecord::Nowhere,
            Home::Window(lease) => HomeRecord::Window(lease.span().start()),
            Home::Parked(_) => HomeRecord::Parked,
            Home::Device { .. } if memory.attachment.is_some() => HomeRecord::Device,
            Home::Device { .. } => HomeRecord::NoDevice,
            // So is memory that is exported.
            Home::Exported { .. } => HomeRecord::NoDevice,
            // Foreign memory is a reason to save nothing.
            Home::Pages(_) | Home::Unbacked | Home::Foreign { .. } => HomeRecord::Guest,
        },
        uuid: memory.shared().uuid.map(Uuid::into_bytes),
        shown: memory.shared().export.is_some(),
        announced: memory.shared().announced,
        label: memory.label.as_deref().map(str::to_owned),
    }
}

struct PlannedContext {
    record: ContextRecord,
    /// Memories that it owns, and its names for those of others.
    objects: u32,
    client_ids: HashSet<u64>,
}

struct PlannedMemory {
    record: MemoryRecord,
    /// On this host.
    memory_type: u32,
    names: Vec<Name>,
    layouts: Vec<Layout>,
}

/// Tables that were read. Each entry was checked by itself, and against what came before.
#[derive(Default)]
pub(super) struct Plan {
    guest: Option<GuestRecord>,
    /// The kind of section that came last.
    kind: u32,
    contexts: BTreeMap<u32, PlannedContext>,
    serials: HashSet<u64>,
    memories: BTreeMap<MemoryKey, PlannedMemory>,
    /// Bytes of all memories that are the host's.
    bytes: u64,
    uuids: HashSet<[u8; 16]>,
    buffers: usize,
    blobs: BTreeMap<u32, BlobRecord>,
}

impl Plan {
    /// Reads a section; whether it is one of a table, in its place.
    pub(super) fn take(&mut self, guest: &Guest, kind: u32, payload: &[u8]) -> Result<bool> {
        if kind < self.kind || (self.guest.is_none() != (kind == tag::GUEST)) {
            return Ok(false);
        }
        self.kind = kind;
        match kind {
            tag::GUEST => self.take_guest(guest, GuestRecord::decode(payload)?)?,
            tag::CONTEXT => self.take_context(ContextRecord::decode(payload)?)?,
            tag::MEMORY => self.take_memory(guest, MemoryRecord::decode(payload)?)?,
            tag::NAMES => {
                let (key, names) = records::decode_names(payload)?;
                self.take_names(guest, key, names)?;
            }
            tag::BUFFERS => {
                let (key, layouts) = records::decode_buffers(payload)?;
                self.take_buffers(guest, key, layouts)?;
            }
            tag::BLOB => self.take_blob(BlobRecord::decode(payload)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_guest(&mut self, guest: &Guest, record: GuestRecord) -> Result<()> {
        let here = guest.window.size();
        if record.window_size != here {
            return Err(RestoreError::Window {
                saved: record.window_size,
                here,
            });
        }
        // Nobody counts so far; near the end of all numbers the next one would not exist.
        let countable = |number: u64| number < u64::MAX / 2;
        check(
            countable(record.last_key) && countable(record.last_serial),
            "numbers that no guest reaches",
        )?;
        if !record.types.iter().copied().eq(types(guest)) {
            log::info!(
                "the snapshot was made under other types of memory: memory goes to types of the same properties; \
                 a guest that chooses types by their number chooses among the old ones until it asks again"
            );
        }
        self.guest = Some(record);
        Ok(())
    }

    /// Whether a guest may have had such a context.
    fn could_be(&self, context: ContextRef) -> bool {
        let last = self.guest.as_ref().map_or(0, |guest| guest.last_serial);
        context == ContextRef::NOBODY || context.id != 0 && (1..=last).contains(&context.serial)
    }

    fn could_be_key(&self, key: MemoryKey) -> bool {
        let last = self.guest.as_ref().map_or(0, |guest| guest.last_key);
        (1..=last).contains(&key)
    }

    fn live(&mut self, context: ContextRef) -> Option<&mut PlannedContext> {
        self.contexts
            .get_mut(&context.id)
            .filter(|found| found.record.me == context)
    }

    fn take_context(&mut self, record: ContextRecord) -> Result<()> {
        if self.contexts.len() >= MAX_CONTEXTS {
            return Err(Refusal::TooManyContexts(MAX_CONTEXTS).into());
        }
        let me = record.me;
        check(
            me != ContextRef::NOBODY && self.could_be(me),
            "a context that cannot be",
        )?;
        check(self.serials.insert(me.serial), "two contexts of one serial")?;
        if let Some(answers) = &record.answers {
            check(self.could_be_key(answers.key), "a ring that cannot be")?;
            let known =
                answers.minor <= Offer::EVERYTHING.minor && answers.requests & !Requests::ALL == 0;
            if !known {
                return Err(RestoreError::Missing("a newer version of the protocol"));
            }
        }
        let planned = PlannedContext {
            record,
            objects: 0,
            client_ids: HashSet::new(),
        };
        check(
            self.contexts.insert(me.id, planned).is_none(),
            "two contexts of one id",
        )
    }

    fn count_object(&mut self, guest: &Guest, context: ContextRef) -> Result<()> {
        let limit = guest.capset.limits.max_context_blobs;
        if let Some(context) = self.live(context) {
            if context.objects >= limit {
                return Err(Refusal::TooManyObjects(limit.into()).into());
            }
            context.objects += 1;
        }
        Ok(())
    }

    fn take_memory(&mut self, guest: &Guest, record: MemoryRecord) -> Result<()> {
        check(self.could_be_key(record.key), "a memory that cannot be")?;
        check(self.could_be(record.owner), "an owner that cannot be")?;
        guest.check_size(record.size)?;
        let memory_type = self.memory_type(guest, record.memory_type)?;
        let in_device = guest.placement(memory_type) == Placement::Device;
        let is_guests = record.home == HomeRecord::Guest;
        check(
            is_guests == (record.owner == ContextRef::NOBODY),
            "pages of the guest belong to nobody, and nothing else does",
        )?;
        check(
            in_device == matches!(record.home, HomeRecord::Device | HomeRecord::NoDevice),
            "bytes where their type has none",
        )?;
        let flags = record.flags;
        check(
            !flags.contains(CreateFlags::HOST_VISIBLE) || !in_device && !is_guests,
            "device memory, or the guest's, that is host-visible",
        )?;
        check(
            !flags.contains(CreateFlags::MAP_DIRECTLY) && record.binding != Binding::Ready
                || flags.contains(CreateFlags::HOST_VISIBLE),
            "mappable memory that is not host-visible",
        )?;
        check(
            !is_guests || matches!(record.binding, Binding::Bound(_)),
            "pages of the guest without a blob",
        )?;
        match record.uuid {
            Some(uuid) => {
                check(
                    flags.contains(CreateFlags::SHAREABLE),
                    "a UUID of memory that is not shareable",
                )?;
                check(self.uuids.insert(uuid), "two memories of one UUID")?;
            }
            None => check(
                !record.shown && !record.announced,
                "exported memory without a UUID",
            )?,
        }
        if is_guests {
            check(
                self.memories.len() < MAX_RESOURCES.saturating_mul(2),
                "more memories than blobs can have",
            )?;
        } else {
            // Charged for good later; here it bounds the table.
            let quota = &guest.host.quota;
            let sum = self.bytes.checked_add(record.size);
            match sum.filter(|sum| *sum <= quota.limit()) {
                Some(sum) => self.bytes = sum,
                None => {
                    return Err(RestoreError::Limit(crate::quota::Exceeded {
                        level: Level::Device,
                        what: "bytes",
                        asked: record.size,
                        used: self.bytes,
                        limit: quota.limit(),
                    }));
                }
            }
        }
        self.count_object(guest, record.owner)?;
        let key = record.key;
        let planned = PlannedMemory {
            record,
            memory_type,
            names: Vec::new(),
            layouts: Vec::new(),
        };
        check(
            self.memories.insert(key, planned).is_none(),
            "two memories of one key",
        )
    }

    /// The type of this host that is as the saved one was: the same, or one with more properties.
    fn memory_type(&self, guest: &Guest, saved: u32) -> Result<u32> {
        if saved == NO_TYPE {
            // Nobody chose one, and its host had none in the window.
            return Ok(guest.plain_type().unwrap_or(NO_TYPE));
        }
        let saved = usize::try_from(saved)
            .ok()
            .and_then(|index| self.guest.as_ref()?.types.get(index))
            .copied()
            .ok_or(RestoreError::Inconsistent("a type that its host had not"))?;
        let found = (0..).zip(types(guest));
        let fits = |here: &TypeRecord| {
            here.device == saved.device
                && (saved.device || here.cache == saved.cache)
                && here.properties & saved.properties == saved.properties
        };
        let mut fitting: Vec<(u32, TypeRecord)> = found.filter(|(_, here)| fits(here)).collect();
        // Stable, and the order of types is their rank.
        fitting.sort_by_key(|(_, here)| here.properties != saved.properties);
        match fitting.first() {
            Some((index, _)) => Ok(*index),
            None => Err(RestoreError::NoMemoryType {
                properties: saved.properties,
                device: saved.device,
                cache: saved.cache,
            }),
        }
    }

    fn take_names(&mut self, guest: &Guest, key: MemoryKey, names: Vec<Name>) -> Result<()> {
        let Some(memory) = self.memories.get(&key) else {
            return inconsistent("names of a memory that is not there");
        };
        let owner = memory.record.owner;
        let mut own = memory.names.iter().any(|name| !name.imported);
        for name in &names {
            let context = self.live(name.context).ok_or(RestoreError::Inconsistent(
                "a name in a context that is gone",
            ))?;
            check(
                name.client_id != 0 && context.client_ids.insert(name.client_id),
                "a client id that is 0 or used twice",
            )?;
            if name.imported {
                self.count_object(guest, name.context)?;
            } else {
                check(
                    !own && name.context == owner,
                    "a name that is neither the owner's nor imported",
                )?;
                own = true;
            }
        }
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.names.extend(names);
        }
        Ok(())
    }

    fn take_buffers(&mut self, guest: &Guest, key: MemoryKey, layouts: Vec<Layout>) -> Result<()> {
        let Some(memory) = self.memories.get_mut(&key) else {
            return inconsistent("buffers of a memory that is not there");
        };
        check(
            memory.record.shown,
            "buffers of memory that is not exported",
        )?;
        if guest.exports.is_none() {
            return Err(RestoreError::Missing("an export socket"));
        }
        self.buffers = self.buffers.saturating_add(layouts.len());
        check(
            self.buffers <= MAX_GUEST_BUFFERS
                && memory.layouts.len().saturating_add(layouts.len()) <= MAX_BUFFERS,
            "more buffers than a guest may publish",
        )?;
        memory.layouts.extend(layouts);
        Ok(())
    }

    fn take_blob(&mut self, record: BlobRecord) -> Result<()> {
        if self.blobs.len() >= MAX_RESOURCES {
            return Err(Refusal::TooManyObjects(MAX_RESOURCES as u64).into());
        }
        check(
            record.resource != 0 && self.could_be(record.context),
            "a blob that cannot be",
        )?;
        let mut seen = BTreeSet::new();
        for id in &record.attached {
            check(
                self.contexts.contains_key(id) && seen.insert(*id),
                "a blob attached to a context that is gone, or twice",
            )?;
        }
        let bound = |key: MemoryKey| {
            let memory = self.memories.get(&key).map(|memory| &memory.record);
            memory.filter(|memory| memory.binding == Binding::Bound(record.resource))
        };
        let stranger = RestoreError::Inconsistent("a blob of memory that knows nothing of it");
        let memory = record.memory.map(bound);
        let shadow = record.shadow.map(bound);
        if matches!(memory, Some(None)) || matches!(shadow, Some(None)) {
            return Err(stranger);
        }
        let (memory, shadow) = (memory.flatten(), shadow.flatten());
        if let Some(shadow) = shadow {
            check(
                shadow.home == HomeRecord::Guest
                    && memory.is_none_or(|memory| {
                        memory.home != HomeRecord::Guest && memory.size == shadow.size
                    }),
                "guest pages beside memory that is not the host's, or of another size",
            )?;
        }
        check(
            !record.mapped
                || record.mappable
                    && memory.is_some_and(|memory| matches!(memory.home, HomeRecord::Window(_))),
            "a mapped blob that is not in the window",
        )?;
        check(
            self.blobs.insert(record.resource, record).is_none(),
            "two blobs of one id",
        )
    }

    /// What only the whole tells.
    fn check_whole(&self) -> Result<()> {
        for (&key, memory) in &self.memories {
            match memory.record.binding {
                Binding::Bound(resource) => {
                    let blob = self.blobs.get(&resource);
                    let mine =
                        |blob: &BlobRecord| blob.memory == Some(key) || blob.shadow == Some(key);
                    check(blob.is_some_and(mine), "memory of a blob that is not there")?;
                }
                Binding::Ready | Binding::Unbound => check(
                    !memory.names.is_empty(),
                    "memory without a name and without a blob",
                )?,
            }
        }
        Ok(())
    }

    /// Makes all of it. Where that fails, the caller resets the guest.
    pub(super) fn install(self, guest: &mut Guest) -> Result<Contents> {
        self.check_whole()?;
        let Some(record) = self.guest else {
            return inconsistent("there is no guest in it");
        };
        guest.next_key = guest.next_key.max(record.last_key);
        guest.next_serial = guest.next_serial.max(record.last_serial);
        for (id, planned) in self.contexts {
            let context = context(guest, planned)?;
            guest.contexts.insert(id, context);
        }
        let mut quotas = HashMap::new();
        let mut layouts = Vec::new();
        for (key, mut planned) in self.memories {
            let buffers = std::mem::take(&mut planned.layouts);
            let shown = planned.record.shown.then_some(planned.record.uuid);
            install_memory(guest, key, planned, &mut quotas)?;
            if let Some(uuid) = shown.flatten() {
                layouts.push((key, Uuid::from_bytes(uuid), buffers));
            }
        }
        for (resource, record) in self.blobs {
            let blob = Blob {
                context: record.context,
                memory: record.memory,
                shadow: record.shadow,
                mappable: record.mappable,
                mapped: record.mapped,
                attached: record.attached,
            };
            guest.blobs.insert(resource, Box::new(blob));
        }
        allocate_device_memory(guest)?;
        // Last: from here on host processes may see it.
        for (key, uuid, buffers) in layouts {
            guest.show(key, uuid)?;
            publish(guest, key, buffers).map_err(Refusal::Export)?;
        }
        Ok(Contents::new(guest))
    }
}

fn context(guest: &Guest, planned: PlannedContext) -> Result<Context> {
    let ContextRecord { me, name, answers } = planned.record;
    let mut context = Context::new(guest, me, name)?;
    context.objects = planned.objects;
    context.answers = answers.map(|answers| {
        let agreed = Agreed {
            minor: answers.minor,
            requests: answers.requests,
            create_flags: answers.create_flags,
        };
        (answers.key, agreed)
    });
    Ok(context)
}

fn install_memory(
    guest: &mut Guest,
    key: MemoryKey,
    planned: PlannedMemory,
    quotas: &mut HashMap<(u32, u64), Arc<Quota>>,
) -> Result<()> {
    let record = planned.record;
    let owner = record.owner;
    let charge = if record.home == HomeRecord::Guest {
        None
    } else {
        let quota = match guest.owner_mut(owner) {
            Some(context) => Arc::clone(&context.quota),
            // Its owner is gone, and its blob was still in use then.
            None => {
                let quota = quotas.entry((owner.id, owner.serial));
                Arc::clone(quota.or_insert_with(|| guest.host.context_quota()))
            }
        };
        Some(Charge::new(&quota, record.size)?)
    };
    let home = match record.home {
        HomeRecord::Nowhere | HomeRecord::Parked => Home::Nowhere,
        HomeRecord::Device | HomeRecord::NoDevice => Home::Device { exposed_at: None },
        HomeRecord::Guest => Home::Unbacked,
        HomeRecord::Window(offset) => {
            let span = Span::new(offset, record.size, guest.window.size());
            let span = span.map_err(Refusal::Place)?;
            check(
                offset.is_multiple_of(u64::from(guest.capset.page_size).max(PAGE)),
                "a place in the window that is not aligned for this host",
            )?;
            let lease = guest.window.place(span, key);
            Home::Window(lease.map_err(|_| {
                RestoreError::Inconsistent("two memories at one place of the window")
            })?)
        }
    };
    for name in &planned.names {
        if let Some(context) = guest.owner_mut(name.context) {
            context.names.insert(name.client_id, key);
        }
    }
    let uuid = record.uuid.map(Uuid::from_bytes);
    if let Some(uuid) = uuid {
        guest.uuids.insert(uuid, key);
        if record.announced {
            guest.object_changes.push((uuid, true));
        }
    }
    let allocate = record.home == HomeRecord::Device;
    let mut memory = Box::new(Memory {
        names: planned.names,
        label: record.label.map(String::into_boxed_str),
        flags: record.flags,
        binding: record.binding,
        _charge: charge,
        ..Memory::new(owner, record.size, planned.memory_type, home)
    });
    if uuid.is_some() {
        let shared = memory.shared_mut();
        (shared.uuid, shared.announced) = (uuid, record.announced);
    }
    guest.memories.insert(key, memory);
    if record.home == HomeRecord::Parked {
        guest.settle(key)?;
    }
    if allocate {
        let attachment = guest.work.new_attachment();
        let request = Request::Allocate {
            attachment,
            length: record.size,
            memory_type: planned.memory_type,
        };
        let pending = Pending::Attach(key, attachment);
        guest.work.submit(request, pending);
        guest.set_attachment(key, Some(attachment));
    }
    Ok(())
}

/// What was asked for above is there, or the restore fails.
fn allocate_device_memory(guest: &mut Guest) -> Result<()> {
    Ok(guest.finish_work()?)
}

fn publish(
    guest: &Guest,
    key: MemoryKey,
    layouts: Vec<Layout>,
) -> std::result::Result<(), ExportError> {
    let id = guest
        .memories
        .get(&key)
        .and_then(|memory| memory.shared().export);
    if let (Some(id), Some(exports)) = (id, &guest.exports) {
        for layout in layouts {
            exports.publish(id, layout)?;
        }
    }
    Ok(())
}
