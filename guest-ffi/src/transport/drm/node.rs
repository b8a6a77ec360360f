//! Finding the render node that is ours, and opening a context on it.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{CAPS_SIZE, control, failed, uapi};
use crate::error::{Error, Result};
use crate::options::ENV_CAPSET_ID;
use crate::transport::RING_COUNT;

const DEVICES: &str = "/dev/dri";
const DRIVER_NAME: &[u8] = b"virtio_gpu";

/// Capset ids that every kernel keeps apart. Linux up to 6.12 at least shifts an `int` to note which capsets there are, so a context
/// of a higher id is refused (or the wrong bit is set), and copies an `int` of that set to SUPPORTED_CAPSET_IDS.
const SAFE_CAPSETS: u32 = c_int::BITS - 1;

/// Render nodes in the order of their numbers.
pub(super) fn list() -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(DEVICES) {
        Ok(entries) => entries,
        Err(error) => return Err(Error::NoDevice(format!("{DEVICES}: {error}"))),
    };
    let mut nodes: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("renderD"))
        })
        .collect();
    nodes.sort();
    Ok(nodes)
}

/// Opens a node and checks that hostblob can be reached through it.
pub(super) fn open(path: &Path, capset_id: u32) -> Result<OwnedFd> {
    let no_device = |reason: String| Error::NoDevice(format!("{}: {reason}", path.display()));
    let node = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| no_device(errno.to_string()))?;
    let driver = driver_name(node.as_fd()).map_err(|errno| no_device(errno.to_string()))?;
    if driver != DRIVER_NAME {
        return Err(no_device(format!(
            "the driver is {}",
            String::from_utf8_lossy(&driver)
        )));
    }
    let needed = [
        (uapi::PARAM_3D_FEATURES, "3D commands (virgl)"),
        (uapi::PARAM_RESOURCE_BLOB, "blob resources"),
        (uapi::PARAM_HOST_VISIBLE, "a host-visible window"),
        (uapi::PARAM_CONTEXT_INIT, "contexts of a capset"),
    ];
    for (param, what) in needed {
        if get_param(node.as_fd(), param).unwrap_or(0) == 0 {
            return Err(no_device(format!(
                "the device or the kernel has not: {what}"
            )));
        }
    }
    let capsets = get_param(node.as_fd(), uapi::PARAM_SUPPORTED_CAPSET_IDS).unwrap_or(0);
    if capset_id < SAFE_CAPSETS && capsets & (1 << capset_id) == 0 {
        return Err(no_device(format!(
            "no capset {capset_id} (set {capsets:#x})"
        )));
    }
    // Asking for the capset itself tells about the ids that the set above cannot.
    read_capset(node.as_fd(), capset_id)
        .map_err(|error| no_device(format!("no capset {capset_id}: {error}")))?;
    Ok(node)
}

fn driver_name(node: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut name = vec![0; 64];
    let mut version = uapi::Version {
        name_len: name.len() as u64,
        name: name.as_mut_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    control(node, &mut version)?;
    name.truncate(usize::try_from(version.name_len).unwrap_or(0));
    Ok(name)
}

fn get_param(node: BorrowedFd<'_>, param: u64) -> Result<u64, Errno> {
    // The kernel writes an `int`; the room for a u64 keeps us safe from one that writes its whole set.
    let mut value = 0_u64;
    let address = std::ptr::from_mut(&mut value).expose_provenance() as u64;
    control(
        node,
        &mut uapi::GetParam {
            param,
            value: address,
        },
    )?;
    Ok(u64::from_le(value))
}

pub(super) fn read_capset(node: BorrowedFd<'_>, capset_id: u32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; CAPS_SIZE];
    let mut caps = uapi::GetCaps {
        cap_set_id: capset_id,
        cap_set_ver: hostblob_capset::VERSION,
        addr: bytes.as_mut_ptr().expose_provenance() as u64,
        size: u32::try_from(bytes.len()).unwrap_or(0),
        pad: 0,
    };
    control(node, &mut caps).map_err(|errno| failed("DRM_IOCTL_VIRTGPU_GET_CAPS", errno))?;
    Ok(bytes)
}

/// Makes the open file a context of our capset.
pub(super) fn init_context(node: BorrowedFd<'_>, capset_id: u32) -> Result<()> {
    let params = [
        uapi::ContextSetParam {
            param: uapi::CONTEXT_PARAM_CAPSET_ID,
            value: u64::from(capset_id),
        },
        uapi::ContextSetParam {
            param: uapi::CONTEXT_PARAM_NUM_RINGS,
            value: u64::from(RING_COUNT),
        },
    ];
    let mut init = uapi::ContextInit {
        num_params: u32::try_from(params.len()).unwrap_or(0),
        pad: 0,
        ctx_set_params: params.as_ptr().expose_provenance() as u64,
    };
    control(node, &mut init).map_err(|errno| match errno {
        Errno::INVAL if capset_id >= SAFE_CAPSETS => Error::NoDevice(format!(
            "this kernel makes no contexts of capset {capset_id}: start hostblobd with --capset-id below {SAFE_CAPSETS}, and set {ENV_CAPSET_ID}"
        )),
        _ => failed("DRM_IOCTL_VIRTGPU_CONTEXT_INIT", errno),
    })
}
