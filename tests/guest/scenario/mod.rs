//! What must hold over every transport and with every provider. A scenario is a function; `for_each_scenario` is the one list of them.
//!
//! A scenario may count on a daemon of its own (nobody else holds memory) with [`MEMORY_LIMIT`] and [`CONTEXT_LIMIT`]; it leaves nothing
//! behind, since others follow it in the same virtual machine.

pub mod basics;
pub mod gpu;
pub mod isolation;
pub mod lifetime;
pub mod limits;
pub mod sharing;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::capset::Provider;
use hostblob_guest::protocol::request::{Create, MemoryRange};
use hostblob_guest::{
    AllocateInfo, CacheMode, CreateFlags, Device, Endpoint, Fence, Memory, MemorySelector,
    OpenOptions, Status,
};

/// `--memory-limit` of the daemons that scenarios run against.
pub const MEMORY_LIMIT: u64 = 384 << 20;
/// `--context-limit` of them.
pub const CONTEXT_LIMIT: u64 = 256 << 20;
/// `--window` of most.
pub const WINDOW: u64 = 1 << 30;
/// `--window` of those for the scenarios in the list `small_window`.
pub const SMALL_WINDOW: u64 = 64 << 20;

/// Longest time that the host may take for anything here: emulated guests on busy machines included.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Passes the list of all scenarios to a macro, in groups: those for every transport, those that need a render node, and those that
/// need a window of [`SMALL_WINDOW`] bytes.
#[macro_export]
macro_rules! for_each_scenario {
    ($macro:ident) => {
        $macro! {
            any {
                basics::capset_is_readable_and_sensible,
                basics::allocate_write_read_4k,
                basics::allocate_write_read_1m,
                basics::allocate_write_read_64m,
                basics::small_memories_do_not_overlap,
                basics::plain_blobs_of_id_0,
                isolation::names_of_another_process_are_unknown,
                isolation::memory_written_by_another_process_comes_back_as_zeros,
                isolation::memory_filled_by_another_process_comes_back_as_zeros,
                isolation::memory_still_being_filled_comes_back_as_zeros,
                isolation::memory_freed_by_this_process_comes_back_as_zeros,
                gpu::fill_by_the_host_is_seen,
                gpu::copy_by_the_host_is_seen,
                gpu::copies_take_any_offset,
                gpu::work_is_done_in_order,
                gpu::private_memory_is_filled_and_copied,
                gpu::bad_ranges_are_refused,
                limits::cache_mode_mismatch_is_refused,
                limits::quota_of_the_context_is_refused_and_refunded,
                limits::quota_of_the_device_is_refused_and_refunded,
                limits::greedy_processes_leave_another_its_share,
                limits::senseless_creations_are_refused,
                lifetime::created_first_and_bound_later,
                lifetime::contents_survive_unmap,
                lifetime::ended_process_leaves_nothing,
                lifetime::killed_process_leaves_nothing,
                lifetime::contexts_come_and_go,
                lifetime::threads_share_a_device,
            }
            render_node {
                sharing::dma_buf_goes_to_another_process,
                sharing::memory_is_shared_by_uuid,
                sharing::gpu_works_on_guest_pages,
                sharing::transfers_move_the_bytes_asked_for,
                sharing::sync_file_signals,
            }
            small_window {
                limits::exhausted_window_is_refused_and_recovers,
            }
        }
    };
}

/// Where a scenario runs.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The daemon's local socket; `None` in a virtual machine.
    pub socket: Option<PathBuf>,
    /// The program `scenarios`, for peers.
    pub program: PathBuf,
    /// What the capset must say.
    pub provider: Option<Provider>,
}

impl Setup {
    /// A context of this process.
    pub fn open(&self) -> Result<Device> {
        let endpoint = self
            .socket
            .clone()
            .map_or(Endpoint::AnyRenderNode, Endpoint::Socket);
        let options = OpenOptions {
            endpoint,
            ..OpenOptions::default()
        };
        Device::open(&options).context("opening the device")
    }
}

/// What must hold.
pub type Scenario = fn(&Setup) -> Result<()>;

/// Groups of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// For every transport.
    Any,
    /// Needs a render node.
    RenderNode,
    /// Needs a window of [`SMALL_WINDOW`] bytes.
    SmallWindow,
}

macro_rules! registry {
    (any { $($a:ident::$an:ident,)* } render_node { $($r:ident::$rn:ident,)* } small_window { $($s:ident::$sn:ident,)* }) => {
        /// All scenarios.
        pub const SCENARIOS: &[(&str, Group, Scenario)] = &[
            $((stringify!($an), Group::Any, $a::$an),)*
            $((stringify!($rn), Group::RenderNode, $r::$rn),)*
            $((stringify!($sn), Group::SmallWindow, $s::$sn),)*
        ];
    };
}
for_each_scenario!(registry);

/// Runs the scenario of this name.
pub fn run(name: &str, setup: &Setup) -> Result<()> {
    let found = SCENARIOS.iter().find(|(found, _, _)| *found == name);
    let (_, _, scenario) = found.with_context(|| format!("there is no scenario {name}"))?;
    scenario(setup)
}

/// It was refused, with this status.
pub(crate) fn refused<T>(
    result: hostblob_guest::Result<T>,
    status: Status,
    what: &str,
) -> Result<()> {
    match result {
        Ok(_) => bail!("{what} was not refused"),
        Err(error) if error.status() == Some(status) => Ok(()),
        Err(error) => bail!("{what}: expected {status:?}, got {error:?}"),
    }
}

/// The host answers a request with this status.
pub(crate) fn answers(
    device: &Device,
    request: impl Into<hostblob_guest::Request>,
    status: Status,
) -> Result<()> {
    let request = request.into();
    let answer = device.request(&[request])?;
    ensure!(
        answer.status == status,
        "{request:?}: expected {status:?}, got {:?}",
        answer.status
    );
    Ok(())
}

/// Memory with a blob of its own.
pub(crate) fn own(device: &Device, size: u64) -> Result<Memory> {
    device
        .allocate(&AllocateInfo::new(size).dedicated())
        .with_context(|| format!("allocating {size} bytes"))
}

/// Waits for host work.
pub(crate) fn done(fence: hostblob_guest::Result<Fence>) -> Result<()> {
    Ok(fence?.wait(Some(PATIENCE))?)
}

/// Holds at last: what a process leaves behind is freed after its end, not before.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("not even after {PATIENCE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A creation as the protocol has it.
pub(crate) fn create(client_id: u64, size: u64, flags: CreateFlags) -> Create {
    Create {
        client_id,
        size,
        memory: MemorySelector::Properties(hostblob_guest::capset::MEMORY_PROPERTY_HOST_VISIBLE),
        flags,
        alignment: 0,
        expected_cache: CacheMode::Any,
    }
}

/// A range as the protocol has it.
pub(crate) fn range(client_id: u64, offset: u64, length: u64) -> MemoryRange {
    MemoryRange {
        client_id,
        offset,
        length,
    }
}
