//! Opening, asking, closing.

use std::time::Duration;

use super::handle::{self, call};
use super::status::hb_status;
use super::types::{hb_budget_info, hb_capabilities, hb_device, hb_open_info, hb_statistics};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::options::{Endpoint, OpenOptions};

/// Version of this library: major in the upper 16 bits, minor in the lower.
#[unsafe(no_mangle)]
pub extern "C" fn hb_version() -> u32 {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    part(env!("CARGO_PKG_VERSION_MAJOR")) << 16 | part(env!("CARGO_PKG_VERSION_MINOR"))
}

fn options(info: &hb_open_info, socket: Option<&str>, node: Option<&str>) -> Result<OpenOptions> {
    let endpoint = match (socket, node) {
        (None, None) => Endpoint::Environment,
        (Some(path), None) => Endpoint::Socket(path.into()),
        (None, Some(path)) => Endpoint::RenderNode(path.into()),
        (Some(_), Some(_)) => {
            return Err(Error::invalid("both socket_path and render_node are set"));
        }
    };
    let set = |value: u64| (value != 0).then_some(value);
    let capset_id = (info.capset_id != 0).then_some(info.capset_id);
    let mut options = OpenOptions {
        endpoint,
        capset_id,
        ..OpenOptions::default()
    };
    if info.timeout_ms != 0 {
        options.timeout = Duration::from_millis(u64::from(info.timeout_ms));
    }
    let pool = &mut options.pool;
    pool.first_block = set(info.first_block).unwrap_or(pool.first_block);
    pool.largest_block = set(info.largest_block).unwrap_or(pool.largest_block);
    pool.dedicated_above = match info.dedicated_above {
        1 => 0,
        value => set(value).unwrap_or(pool.dedicated_above),
    };
    Ok(options)
}

/// Opens a device and gives the caller its handle: see `hb_device_close`.
///
/// `info` may be NULL for defaults. `HB_ERROR_NO_DEVICE` where there is none, `HB_ERROR_INCOMPATIBLE` where host
/// and library have no version in common.
///
/// # Safety
/// `info` is NULL or points to `info->size` bytes with valid strings; `device` points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_device_open(
    info: *const hb_open_info,
    device: *mut *mut hb_device,
) -> hb_status {
    call(|| {
        crate::log_to_stderr();
        // SAFETY: as the caller promised.
        unsafe { handle::put(device, std::ptr::null_mut(), "device") }?;
        let options = if info.is_null() {
            OpenOptions::default()
        } else {
            // SAFETY: as the caller promised.
            let info = unsafe { handle::input(info) }?;
            // SAFETY: as the caller promised: the strings live as long as the call.
            let socket = unsafe { handle::string(info.socket_path, "socket_path") }?;
            // SAFETY: as above.
            let node = unsafe { handle::string(info.render_node, "render_node") }?;
            options(&info, socket, node)?
        };
        let opened = handle::hand_out(Device::open(&options)?);
        // SAFETY: as the caller promised.
        unsafe { handle::put(device, opened, "device") }
    })
}

/// Ends the device handle. NULL is fine.
///
/// Memory and fences from it live on, and the connection with them, until each is given back.
///
/// # Safety
/// `device` is NULL or from `hb_device_open`, and not used by any thread during or after this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_device_close(device: *mut hb_device) {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::give_back::<Device>(device) });
}

/// What the host said of itself. Set `capabilities->size` first.
///
/// # Safety
/// `device` is from `hb_device_open`; `capabilities` points to `capabilities->size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_device_capabilities(
    device: *const hb_device,
    capabilities: *mut hb_capabilities,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        let all = hb_capabilities::of(device);
        // SAFETY: as the caller promised.
        unsafe { handle::output(capabilities, &all, "hb_capabilities") }
    })
}

/// What the library has done and holds for this device. Set `statistics->size` first.
///
/// # Safety
/// `device` is from `hb_device_open`; `statistics` points to `statistics->size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_device_statistics(
    device: *const hb_device,
    statistics: *mut hb_statistics,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        let counted = unsafe { handle::get::<Device>(device) }?.statistics();
        let all = hb_statistics {
            size: 0,
            blocks: counted.blocks,
            block_bytes: counted.block_bytes,
            suballocations: counted.suballocations,
            suballocated_bytes: counted.suballocated_bytes,
            commands: counted.commands,
        };
        // SAFETY: as the caller promised.
        unsafe { handle::output(statistics, &all, "hb_statistics") }
    })
}

/// What a heap has for this context now. Asks the host. Set `budget->size` first.
///
/// # Safety
/// `device` is from `hb_device_open`; `budget` points to `budget->size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_budget(
    device: *const hb_device,
    heap: u32,
    budget: *mut hb_budget_info,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        let has = unsafe { handle::get::<Device>(device) }?.budget(heap)?;
        let all = hb_budget_info {
            size: 0,
            budget: has.budget,
            usage: has.usage,
        };
        // SAFETY: as the caller promised.
        unsafe { handle::output(budget, &all, "hb_budget_info") }
    })
}
