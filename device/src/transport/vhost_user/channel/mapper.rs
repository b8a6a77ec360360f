//! What the queue thread wants of the VMM: ranges of the window, and objects of other devices.

use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hostblob_allocator::Mapping;
use hostblob_allocator::provider::Elsewhere;
use hostblob_allocator::window::Span;
use uuid::Uuid;
use vhost::vhost_user::message::{BackendReq, VhostUserMMap, VhostUserMMapFlags};
use vm_memory::ByteValued;

use super::requests::{Failure, Requests};
use super::{Channel, WINDOW_REGION};
use crate::ratelimit::RateLimiter;
use crate::transport::{MapperError, WindowMapper};

/// Maps ranges of the window, and looks objects up, through the channel. The queue thread has it.
#[derive(Debug)]
pub(in super::super) struct Mapper {
    channel: Arc<Channel>,
    window: OwnedFd,
    pub(super) requests: Requests,
    log: RateLimiter,
    /// Guests cause these as they like: they must not hide the others.
    lookup_log: RateLimiter,
}

impl Mapper {
    pub(in super::super) fn new(channel: Arc<Channel>, window: OwnedFd) -> Self {
        Self {
            requests: Requests::new(Arc::clone(&channel)),
            channel,
            window,
            log: RateLimiter::new(),
            lookup_log: RateLimiter::new(),
        }
    }

    /// QEMU answers first, and changes the memory then: what a guest wrote into a window that it does not reach yet would be lost. crosvm has
    /// done it all when it answers, and changes no memory.
    fn wait_until_done(&mut self, changes_before: u64) {
        let changes_memory = &mut self.requests.habits.changes_memory;
        if *changes_memory != Some(false) {
            let changed = self.channel.wait_for_change(changes_before);
            changes_memory.get_or_insert(changed);
        }
    }

    fn failed(&mut self, what: &str, span: Span, failure: &Failure) -> MapperError {
        let span = Range(span);
        self.log
            .warn(format_args!("the VMM did not {what} {span}: {failure}"));
        failure.into()
    }
}

fn body(span: Span, fd_offset: u64) -> VhostUserMMap {
    VhostUserMMap {
        shmid: WINDOW_REGION,
        padding: [0; 7],
        fd_offset,
        shm_offset: span.start(),
        len: span.len(),
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    }
}

impl WindowMapper for Mapper {
    fn map(&mut self, mapping: &Mapping) -> Result<(), MapperError> {
        let changes_before = self.channel.changes();
        let span = mapping.span;
        // Another file is mapped from its beginning on, the window's own at the same place.
        let (file, fd_offset) = match mapping.elsewhere.as_ref().map(Elsewhere::file) {
            // Memory of this process is not told to guests of another's.
            Some(None) => return Err(MapperError::NotAsked),
            Some(Some(file)) => (file.as_fd(), 0),
            None => (self.window.as_fd(), span.start()),
        };
        let body = body(span, fd_offset);
        self.requests
            .request(BackendReq::SHMEM_MAP, body.as_slice(), Some(file))
            .map_err(|failure| self.failed("map", span, &failure))?;
        self.wait_until_done(changes_before);
        log::debug!("the VMM mapped {}", Range(span));
        Ok(())
    }

    fn unmap(&mut self, span: Span) -> Result<(), MapperError> {
        let changes_before = self.channel.changes();
        let body = body(span, span.start());
        self.requests
            .request(BackendReq::SHMEM_UNMAP, body.as_slice(), None)
            .map_err(|failure| self.failed("unmap", span, &failure))?;
        // So that its change is not taken for that of the next mapping.
        self.wait_until_done(changes_before);
        log::debug!("the VMM unmapped {}", Range(span));
        Ok(())
    }

    fn can_look_up(&mut self) -> bool {
        let Some(socket) = self.channel.socket_for_objects() else {
            return false;
        };
        self.requests.belong_to(&socket);
        !self.requests.habits.keeps_descriptors
    }

    fn look_up(&mut self, uuid: [u8; 16]) -> Option<OwnedFd> {
        // A VMM that is silent costs one command its time, and those after it none.
        let answer = self.requests.catch_up().and_then(|()| {
            let request = BackendReq::SHARED_OBJECT_LOOKUP;
            self.requests.request(request, &uuid, None)
        });
        let failure = match answer {
            Ok(Some(descriptor)) => return Some(descriptor),
            Ok(None) => {
                // QEMU 11.1 loses one of its own descriptors each time.
                self.requests.habits.keeps_descriptors = true;
                Failure::NoDescriptor
            }
            Err(failure) => failure,
        };
        let uuid = Uuid::from_bytes(uuid);
        self.lookup_log.warn(format_args!(
            "the VMM gives no object of another device for the UUID {uuid}: {failure}"
        ));
        None
    }
}

/// A part of the window, for people.
struct Range(Span);

impl Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (start, length) = (self.0.start(), self.0.len());
        write!(f, "{length:#x} bytes at {start:#x} of the window")
    }
}
