//! Capabilities (capabilities(7)), and programs that have more than who starts them.

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::SandboxError;

/// The calling thread, and what it starts, has no capability and gets none.
///
/// # Errors
/// Where the system refuses it.
pub(crate) fn drop_privileges() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(|e| SandboxError::new("no new privileges", e))?;
    for capability in CapabilitySet::all() {
        // Who has not the right to do this has no capability that it would bound.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let _ = clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|e| SandboxError::new("capabilities", e))
}
