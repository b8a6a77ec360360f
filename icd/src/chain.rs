//! `pNext` chains.

use std::ffi::c_void;

use ash::vk::{self, TaggedStructure};

/// The structure of this type in a chain that the program filled.
///
/// # Safety
///
/// `next` is null, or begins a valid chain that lives for `'a`.
pub(crate) unsafe fn find<'a, T: TaggedStructure>(next: *const c_void) -> Option<&'a T> {
    let mut next = next.cast::<vk::BaseInStructure<'_>>();
    // SAFETY: null or a structure that begins as all do.
    while let Some(structure) = unsafe { next.as_ref() } {
        if structure.s_type == T::STRUCTURE_TYPE {
            // SAFETY: `sType` says that it is one, and the program keeps it for `'a`.
            return Some(unsafe { &*next.cast::<T>() });
        }
        next = structure.p_next;
    }
    None
}

/// Calls `visit` with the type and the address of each structure of a chain that the driver fills.
///
/// # Safety
///
/// `next` is null, or begins a valid chain.
pub(crate) unsafe fn each(
    next: *mut c_void,
    mut visit: impl FnMut(vk::StructureType, *mut c_void),
) {
    let mut next = next.cast::<vk::BaseOutStructure<'_>>();
    // SAFETY: null or a structure that begins as all do.
    while let Some(structure) = unsafe { next.as_ref() } {
        let (this, kind) = (next, structure.s_type);
        next = structure.p_next;
        visit(kind, this.cast());
    }
}

/// A structure of a chain as what its `sType` says, for writing.
///
/// # Safety
///
/// It is one, nobody else uses it for `'a`.
pub(crate) unsafe fn as_mut<'a, T: TaggedStructure>(structure: *mut c_void) -> &'a mut T {
    // SAFETY: passed on.
    unsafe { &mut *structure.cast::<T>() }
}
