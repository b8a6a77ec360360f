//! Who asks: one guest process's connection.

pub(crate) mod answers;
mod execute;

pub(crate) use execute::{Details, NOTHING, map_info};

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hostblob_capset::Agreed;

use crate::blob::MemoryKey;
use crate::guest::{Guest, MAX_TRANSFER_ROWS};
use crate::quota::{Exceeded, Quota};

/// Contexts that one guest may have: bounds the table that a guest can grow.
pub const MAX_CONTEXTS: usize = 4096;

/// FILLs, COPYs and rows of transfers that one context may have under way: the largest transfer.
pub(crate) const MAX_CONTEXT_JOBS: u64 = MAX_TRANSFER_ROWS;
/// Those that each context may have under way for sure, whatever others have.
const SHARE_OF_JOBS: u64 = 16;
/// Those of all contexts of a guest: each can have its share.
pub(crate) const MAX_GUEST_JOBS: u64 = SHARE_OF_JOBS * MAX_CONTEXTS as u64;

/// Memories of host processes and other devices that one context may have imported: each is a descriptor and a mapping of the driver's process.
pub(crate) const MAX_CONTEXT_IMPORTS: u64 = 128;
/// Those of all contexts of a guest: fewer than the descriptors that a process has by default.
pub(crate) const MAX_GUEST_IMPORTS: u64 = 512;

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
    /// Work of the GPU that it has under way.
    pub(crate) jobs: Arc<Quota>,
    /// Memory of host processes and other devices that it has imported.
    pub(crate) imports: Arc<Quota>,
    /// The memory that holds the answers ring, and what guest and host agreed on.
    pub(crate) answers: Option<(MemoryKey, Agreed)>,
    /// The last GPU work of each ring.
    pub(crate) last_work: BTreeMap<u8, u64>,
}

impl Context {
    /// A context of this guest, with its share of everything.
    pub(crate) fn new(guest: &Guest, me: ContextRef, name: String) -> Result<Self, Exceeded> {
        let (bytes, limits) = (&guest.host.quota, &guest.capset.limits);
        let share = guest.host.config.context_share;
        Ok(Self {
            me,
            name,
            names: HashMap::new(),
            objects: 0,
            quota: Quota::with_share(bytes, limits.max_context_bytes, share)?,
            jobs: Quota::with_share(&guest.all_jobs, MAX_CONTEXT_JOBS, SHARE_OF_JOBS)?,
            imports: Quota::context(&guest.all_imports, MAX_CONTEXT_IMPORTS),
            answers: None,
            last_work: BTreeMap::new(),
        })
    }

    /// The context ends. What somebody still sees or works on stays charged, and nothing else.
    pub(crate) fn end_shares(&self) {
        self.quota.end_share();
        self.jobs.end_share();
    }
}
