//! What the sections hold, as plain values: written from a guest, and read before anything of a guest is changed.

use hostblob_capset::Cache;
use hostblob_protocol::request::{CreateFlags, MAX_DEBUG_NAME};

use super::stream::{Fields, FormatError, Payload};
use crate::blob::{Binding, MemoryKey, Name};
use crate::context::ContextRef;
use crate::exports::Layout;

/// Kinds of sections, in the order in which they come.
pub(super) mod tag {
    pub(in super::super) const GUEST: u32 = 1;
    pub(in super::super) const CONTEXT: u32 = 2;
    pub(in super::super) const MEMORY: u32 = 3;
    pub(in super::super) const NAMES: u32 = 4;
    pub(in super::super) const BUFFERS: u32 = 5;
    pub(in super::super) const BLOB: u32 = 6;
    pub(in super::super) const CONTENT: u32 = 7;
}

/// Names, or buffers, in one section.
pub(super) const BATCH: usize = 4096;

/// Longest name of a context. A guest's are shorter.
const MAX_NAME: u16 = 255;

/// Types of memory that a host may have: Vulkan's `VK_MAX_MEMORY_TYPES`, with room.
const MAX_TYPES: u32 = 256;

const DEBUG_NAME_BYTES: u16 = 64;
const _: () = assert!(DEBUG_NAME_BYTES as usize == MAX_DEBUG_NAME);

/// A type of memory, as the guest was told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TypeRecord {
    pub(super) properties: u32,
    /// The bytes live in device memory.
    pub(super) device: bool,
    pub(super) cache: Cache,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GuestRecord {
    pub(super) window_size: u64,
    pub(super) last_key: MemoryKey,
    pub(super) last_serial: u64,
    pub(super) types: Vec<TypeRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AnswersRecord {
    pub(super) key: MemoryKey,
    pub(super) minor: u16,
    pub(super) requests: u64,
    pub(super) create_flags: CreateFlags,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContextRecord {
    pub(super) me: ContextRef,
    pub(super) name: String,
    pub(super) answers: Option<AnswersRecord>,
}

/// Where a memory's bytes were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HomeRecord {
    Nowhere,
    /// In the window, at this offset.
    Window(u64),
    Parked,
    Device,
    /// In device memory that could not be allocated: there are none.
    NoDevice,
    /// In the guest's pages, or in none yet.
    Guest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryRecord {
    pub(super) key: MemoryKey,
    pub(super) owner: ContextRef,
    pub(super) size: u64,
    pub(super) memory_type: u32,
    pub(super) flags: CreateFlags,
    pub(super) binding: Binding,
    pub(super) home: HomeRecord,
    pub(super) uuid: Option<[u8; 16]>,
    /// Host processes see it, where there are any.
    pub(super) shown: bool,
    /// Other devices of the VM were told of it.
    pub(super) announced: bool,
    pub(super) label: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlobRecord {
    pub(super) resource: u32,
    pub(super) context: ContextRef,
    pub(super) memory: Option<MemoryKey>,
    pub(super) shadow: Option<MemoryKey>,
    pub(super) mappable: bool,
    pub(super) mapped: bool,
    pub(super) attached: Vec<u32>,
}

fn cache_number(cache: Cache) -> u8 {
    match cache {
        Cache::Cached => 0,
        Cache::Uncached => 1,
        Cache::WriteCombined => 2,
    }
}

fn put_context(payload: Payload, context: ContextRef) -> Payload {
    payload
        .put(context.id.to_le_bytes())
        .put(context.serial.to_le_bytes())
}

fn take_context(fields: &mut Fields<'_>) -> Result<ContextRef, FormatError> {
    Ok(ContextRef {
        id: fields.u32()?,
        serial: fields.u64()?,
    })
}

fn take_flags(fields: &mut Fields<'_>) -> Result<CreateFlags, FormatError> {
    CreateFlags::from_bits(fields.u32()?).ok_or_else(|| fields.wrong("unknown flags"))
}

/// Keys begin at 1.
fn put_key(payload: Payload, key: Option<MemoryKey>) -> Payload {
    payload.put(key.unwrap_or(0).to_le_bytes())
}

fn take_key(fields: &mut Fields<'_>) -> Result<Option<MemoryKey>, FormatError> {
    Ok(Some(fields.u64()?).filter(|key| *key != 0))
}

impl GuestRecord {
    pub(super) fn encode(&self) -> Payload {
        let count = u32::try_from(self.types.len()).unwrap_or(MAX_TYPES);
        let payload = Payload::new()
            .put(self.window_size.to_le_bytes())
            .put(self.last_key.to_le_bytes())
            .put(self.last_serial.to_le_bytes())
            .put(count.to_le_bytes());
        self.types.iter().fold(payload, |payload, memory_type| {
            payload
                .put(memory_type.properties.to_le_bytes())
                .flag(memory_type.device)
                .put([cache_number(memory_type.cache)])
        })
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("guest", payload);
        let mut guest = Self {
            window_size: fields.u64()?,
            last_key: fields.u64()?,
            last_serial: fields.u64()?,
            types: Vec::new(),
        };
        let count = fields.u32()?;
        if count > MAX_TYPES {
            return Err(fields.wrong("more types of memory than any host has"));
        }
        for _ in 0..count {
            guest.types.push(TypeRecord {
                properties: fields.u32()?,
                device: fields.flag()?,
                cache: match fields.u8()? {
                    0 => Cache::Cached,
                    1 => Cache::Uncached,
                    2 => Cache::WriteCombined,
                    _ => return Err(fields.wrong("an unknown cache mode")),
                },
            });
        }
        fields.end()?;
        Ok(guest)
    }
}

impl ContextRecord {
    pub(super) fn encode(&self) -> Payload {
        let payload = put_context(Payload::new(), self.me)
            .text(&self.name, MAX_NAME)
            .flag(self.answers.is_some());
        match &self.answers {
            None => payload,
            Some(answers) => payload
                .put(answers.key.to_le_bytes())
                .put(answers.minor.to_le_bytes())
                .put(answers.requests.to_le_bytes())
                .put(answers.create_flags.bits().to_le_bytes()),
        }
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("context", payload);
        let me = take_context(&mut fields)?;
        let name = fields.text(MAX_NAME.into())?.to_owned();
        if name.chars().any(char::is_control) {
            // It goes to the log.
            return Err(fields.wrong("control characters in its name"));
        }
        let answers = if fields.flag()? {
            Some(AnswersRecord {
                key: fields.u64()?,
                minor: fields.u16()?,
                requests: fields.u64()?,
                create_flags: take_flags(&mut fields)?,
            })
        } else {
            None
        };
        fields.end()?;
        Ok(Self { me, name, answers })
    }
}

impl MemoryRecord {
    pub(super) fn encode(&self) -> Payload {
        let (binding, resource) = match self.binding {
            Binding::Unbound => (0, 0),
            Binding::Ready => (1, 0),
            Binding::Bound(resource) => (2, resource),
        };
        let (home, offset) = match self.home {
            HomeRecord::Nowhere => (0, 0),
            HomeRecord::Window(offset) => (1, offset),
            HomeRecord::Parked => (2, 0),
            HomeRecord::Device => (3, 0),
            HomeRecord::NoDevice => (4, 0),
            HomeRecord::Guest => (5, 0_u64),
        };
        let payload = put_context(Payload::new().put(self.key.to_le_bytes()), self.owner)
            .put(self.size.to_le_bytes())
            .put(self.memory_type.to_le_bytes())
            .put(self.flags.bits().to_le_bytes())
            .put([binding])
            .put(resource.to_le_bytes())
            .put([home])
            .put(offset.to_le_bytes())
            .flag(self.uuid.is_some())
            .put(self.uuid.unwrap_or_default())
            .flag(self.shown)
            .flag(self.announced)
            .flag(self.label.is_some());
        payload.text(self.label.as_deref().unwrap_or_default(), DEBUG_NAME_BYTES)
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("memory", payload);
        let memory = Self {
            key: fields.u64()?,
            owner: take_context(&mut fields)?,
            size: fields.u64()?,
            memory_type: fields.u32()?,
            flags: take_flags(&mut fields)?,
            binding: match (fields.u8()?, fields.u32()?) {
                (0, 0) => Binding::Unbound,
                (1, 0) => Binding::Ready,
                (2, resource) => Binding::Bound(resource),
                _ => return Err(fields.wrong("an unknown binding")),
            },
            home: match (fields.u8()?, fields.u64()?) {
                (0, 0) => HomeRecord::Nowhere,
                (1, offset) => HomeRecord::Window(offset),
                (2, 0) => HomeRecord::Parked,
                (3, 0) => HomeRecord::Device,
                (4, 0) => HomeRecord::NoDevice,
                (5, 0) => HomeRecord::Guest,
                _ => return Err(fields.wrong("an unknown place")),
            },
            uuid: match (fields.flag()?, fields.uuid()?) {
                (true, uuid) => Some(uuid),
                (false, uuid) if uuid == [0; 16] => None,
                _ => return Err(fields.wrong("a UUID that it has not")),
            },
            shown: fields.flag()?,
            announced: fields.flag()?,
            label: match (fields.flag()?, fields.text(MAX_DEBUG_NAME)?) {
                (true, label) => Some(label.to_owned()),
                (false, "") => None,
                _ => return Err(fields.wrong("a label that it has not")),
            },
        };
        fields.end()?;
        Ok(memory)
    }
}

/// Names of a memory, after those of earlier sections.
pub(super) fn encode_names(key: MemoryKey, names: &[Name]) -> Payload {
    let payload = Payload::new().put(key.to_le_bytes());
    names.iter().fold(payload, |payload, name| {
        put_context(payload, name.context)
            .put(name.client_id.to_le_bytes())
            .flag(name.imported)
    })
}

pub(super) fn decode_names(payload: &[u8]) -> Result<(MemoryKey, Vec<Name>), FormatError> {
    let mut fields = Fields::new("names", payload);
    let key = fields.u64()?;
    let mut names = Vec::new();
    while !fields.is_empty() {
        names.push(Name {
            context: take_context(&mut fields)?,
            client_id: fields.u64()?,
            imported: fields.flag()?,
        });
    }
    Ok((key, names))
}

/// Buffers that a memory shows to host processes.
pub(super) fn encode_buffers(key: MemoryKey, layouts: &[Layout]) -> Payload {
    let payload = Payload::new().put(key.to_le_bytes());
    layouts.iter().fold(payload, |payload, layout| {
        payload
            .put(layout.offset.to_le_bytes())
            .put(layout.width.to_le_bytes())
            .put(layout.height.to_le_bytes())
            .put(layout.stride.to_le_bytes())
            .put(layout.fourcc.to_le_bytes())
            .put(layout.modifier.to_le_bytes())
    })
}

pub(super) fn decode_buffers(payload: &[u8]) -> Result<(MemoryKey, Vec<Layout>), FormatError> {
    let mut fields = Fields::new("buffers", payload);
    let key = fields.u64()?;
    let mut layouts = Vec::new();
    while !fields.is_empty() {
        layouts.push(Layout {
            offset: fields.u64()?,
            width: fields.u32()?,
            height: fields.u32()?,
            stride: fields.u32()?,
            fourcc: fields.u32()?,
            modifier: fields.u64()?,
        });
    }
    Ok((key, layouts))
}

impl BlobRecord {
    pub(super) fn encode(&self) -> Payload {
        let payload = put_context(
            Payload::new().put(self.resource.to_le_bytes()),
            self.context,
        );
        let payload = put_key(put_key(payload, self.memory), self.shadow)
            .flag(self.mappable)
            .flag(self.mapped);
        self.attached.iter().fold(payload, |payload, context| {
            payload.put(context.to_le_bytes())
        })
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("blob", payload);
        let mut blob = Self {
            resource: fields.u32()?,
            context: take_context(&mut fields)?,
            memory: take_key(&mut fields)?,
            shadow: take_key(&mut fields)?,
            mappable: fields.flag()?,
            mapped: fields.flag()?,
            attached: Vec::new(),
        };
        while !fields.is_empty() {
            blob.attached.push(fields.u32()?);
        }
        Ok(blob)
    }
}

/// Bytes of a memory, from `offset` on.
pub(super) fn encode_content(key: MemoryKey, offset: u64) -> Payload {
    Payload::new()
        .put(key.to_le_bytes())
        .put(offset.to_le_bytes())
}

pub(super) fn decode_content(payload: &[u8]) -> Result<(MemoryKey, u64, &[u8]), FormatError> {
    let mut fields = Fields::new("content", payload);
    let (key, offset) = (fields.u64()?, fields.u64()?);
    Ok((key, offset, fields.rest()))
}
