//! Who asks: one guest process's connection.

pub(crate) mod answers;
mod execute;

pub(crate) use execute::{Details, NOTHING, map_info};

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hostblob_capset::Agreed;

use crate::blob::MemoryKey;
use crate::guest::HoldId;
use crate::quota::Quota;

/// Contexts that one guest may have: bounds the table that a guest can grow.
pub const MAX_CONTEXTS: usize = 4096;

/// Who a context was: ids are used again, serials are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContextRef {
    pub(crate) id: u32,
    pub(crate) serial: u64,
}

impl ContextRef {
    /// No context: guest pages belong to the guest as a whole.
    pub(crate) const NOBODY: Self = Self { id: 0, serial: 0 };
}

/// A virtio-gpu context of our capset.
#[derive(Debug)]
pub(crate) struct Context {
    /// Who it is.
    pub(crate) me: ContextRef,
    /// For the log.
    pub(crate) name: String,
    /// Memories by client id.
    pub(crate) names: HashMap<u64, MemoryKey>,
    /// Memories, named or not, that are charged to the context, and its names for those of others.
    pub(crate) objects: u32,
    pub(crate) quota: Arc<Quota>,
    /// The memory that holds the answers ring, and what guest and host agreed on.
    pub(crate) answers: Option<(MemoryKey, Agreed)>,
    /// The last GPU work of each ring.
    pub(crate) last_work: BTreeMap<u8, u64>,
    /// What each ring waits for besides work.
    pub(crate) holds: Vec<(u8, HoldId)>,
}
