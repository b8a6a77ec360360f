//! Buffers inside shareable memory that host processes look at, as a `wl_shm_pool` has them: described, shown, waited for.

use std::time::{Duration, Instant};

use hostblob_protocol::request::{
    ALL_BUFFERS, Present, Publish, WaitReleased, Withdraw, request_bit,
};
use hostblob_protocol::{Request, Status};

use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::memory::{Memory, Own};
use crate::session::check;

/// The host waits no longer for one request.
const LONGEST_WAIT: Duration = Duration::from_hours(24);

/// A buffer in memory: the arguments of SET_SCANOUT_BLOB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferInfo {
    /// First byte in the memory. It names the buffer.
    pub offset: u64,
    /// Pixels in a row; not 0.
    pub width: u32,
    /// Rows; not 0. `stride * height` bytes from `offset` on lie inside the memory.
    pub height: u32,
    /// Bytes from one row to the next; not 0.
    pub stride: u32,
    /// `DRM_FORMAT_*`; 0 where the bytes are no image.
    pub fourcc: u32,
    /// `DRM_FORMAT_MOD_*`; 0 is `DRM_FORMAT_MOD_LINEAR`.
    pub modifier: u64,
}

impl BufferInfo {
    /// Bytes: all rows.
    pub fn size(&self) -> u64 {
        u64::from(self.stride) * u64::from(self.height)
    }
}

/// All methods need memory that was allocated shareable ([`Status::NotShareable`]) and a host that serves them
/// ([`Status::Unsupported`]).
impl Memory {
    /// Describes a buffer in the memory to host processes. Another one at the same offset takes the place of the first.
    ///
    /// [`Status::InvalidArgument`] where width, height or stride is 0, [`Status::OutOfRange`] where it does not lie inside the memory.
    pub fn publish(&self, info: &BufferInfo) -> Result<()> {
        let what = "publish";
        let own = self.shareable(what)?;
        if info.width == 0 || info.height == 0 || info.stride == 0 {
            return Err(Error::invalid(format!(
                "a buffer of {} x {} pixels and {} bytes a row",
                info.width, info.height, info.stride
            )));
        }
        self.range(info.offset, info.size(), what)?;
        let publish = Publish {
            client_id: own.client_id,
            offset: info.offset,
            width: info.width,
            height: info.height,
            stride: info.stride,
            fourcc: info.fourcc,
            modifier: info.modifier,
        };
        own.ask(publish.into(), request_bit::PUBLISH, what)
    }

    /// Takes the description of the buffer at `offset` back: host processes no longer see it.
    pub fn withdraw(&self, offset: u64) -> Result<()> {
        let what = "withdraw";
        let own = self.shareable(what)?;
        let client_id = own.client_id;
        let withdraw = Withdraw { client_id, offset };
        own.ask(withdraw.into(), request_bit::WITHDRAW, what)
    }

    /// The published buffer at `offset` has new contents: host processes that have the memory open use it from now on, until each says
    /// that it has released it ([`Memory::wait_released`]). Host GPU work that writes to it is done before.
    pub fn present(&self, offset: u64) -> Result<()> {
        let what = "present";
        let own = self.shareable(what)?;
        let client_id = own.client_id;
        let present = Present { client_id, offset };
        own.ask(present.into(), request_bit::PRESENT, what)
    }

    /// Waits until no host process uses the buffer at `offset` any more; with [`ALL_BUFFERS`], until none uses any buffer or has the
    /// memory open. `None` waits as long as the device lives; zero only asks.
    ///
    /// [`Error::Timeout`] when the time was over first. Other threads use the device meanwhile. At most [`MOST_WAITS`](crate::MOST_WAITS) of a device
    /// last at the same time ([`Status::TooManyObjects`]).
    pub fn wait_released(&self, offset: u64, timeout: Option<Duration>) -> Result<()> {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            let (own, wait) = self.wait_request(offset, timeout)?;
            return own.ask(wait.into(), request_bit::WAIT_RELEASED, WAIT);
        }
        let over = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = over.map_or(LONGEST_WAIT, |over| {
                over.saturating_duration_since(Instant::now())
            });
            let left = left.min(LONGEST_WAIT);
            let fence = self.released_fence(offset, Some(left))?;
            let late = Instant::now() + left + self.session().transport().timeout();
            match fence.outcome(Some(late)) {
                // Of a part of the time, or by a clock that is ahead of ours.
                Some(Err(Error::Timeout)) if over.is_none_or(|over| Instant::now() < over) => {}
                Some(outcome) => return outcome,
                None => return Err(Error::DeviceLost("a wait was never answered".to_owned())),
            }
        }
    }

    /// The fence of such a wait: signalled when no host process uses the buffer, or, with [`Error::Timeout`] as its outcome, when the
    /// time is over. `None`, or more than a day, is a day.
    ///
    /// It counts as a wait until then, dropped or not. The memory lives as long.
    pub fn released_fence(&self, offset: u64, timeout: Option<Duration>) -> Result<Fence> {
        let (own, wait) = self.wait_request(offset, timeout)?;
        own.session.needs(request_bit::WAIT_RELEASED, WAIT)?;
        let sent = own.session.send_wait(wait.into(), WAIT)?;
        Ok(Fence::new(own.session.clone(), sent, WAIT))
    }

    fn wait_request(&self, offset: u64, timeout: Option<Duration>) -> Result<(&Own, WaitReleased)> {
        let own = self.shareable(WAIT)?;
        if offset != ALL_BUFFERS && offset >= self.size() {
            return Err(Error::status_of(Status::OutOfRange, WAIT));
        }
        let timeout = timeout.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        let wait = WaitReleased {
            client_id: own.client_id,
            offset,
            timeout: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
        };
        Ok((own, wait))
    }
}

const WAIT: &str = "wait for a release";

impl Own {
    fn ask(&self, request: Request, bit: u64, what: &str) -> Result<()> {
        self.session.needs(bit, what)?;
        check(&self.session.ask(&[request], None)?, what)
    }
}
