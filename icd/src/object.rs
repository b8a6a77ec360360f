//! Objects behind Vulkan handles: made and freed through the program's allocation callbacks.
//!
//! All begin with the word that the loader wants in dispatchable ones: it puts its dispatch table there. What an object owns besides
//! (lists, names, the guest library's memory) comes from the process's own allocator.

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr::NonNull;

use ash::vk::{self, Handle};

use crate::entry::arguments::FromC;

/// What the first word of a dispatchable object is until the loader has it (`ICD_LOADER_MAGIC`).
const LOADER_MAGIC: usize = 0x01CD_C0DE;

/// The program's `VkAllocationCallbacks`.
#[derive(Clone, Copy)]
pub(crate) struct Callbacks(vk::AllocationCallbacks<'static>);

// SAFETY: functions, and a pointer that only they use; the specification lets a driver call them from any thread that calls it.
unsafe impl Send for Callbacks {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Callbacks {}

impl FromC<*const vk::AllocationCallbacks<'_>> for Option<Callbacks> {
    unsafe fn from_c(pointer: *const vk::AllocationCallbacks<'_>) -> Self {
        // SAFETY: null or valid, by the contract of the trait.
        let callbacks = unsafe { pointer.as_ref() }?;
        Some(Callbacks(vk::AllocationCallbacks {
            p_user_data: callbacks.p_user_data,
            pfn_allocation: callbacks.pfn_allocation,
            pfn_reallocation: callbacks.pfn_reallocation,
            pfn_free: callbacks.pfn_free,
            pfn_internal_allocation: callbacks.pfn_internal_allocation,
            pfn_internal_free: callbacks.pfn_internal_free,
            ..Default::default()
        }))
    }
}

fn allocate(
    layout: Layout,
    scope: vk::SystemAllocationScope,
    callbacks: Option<Callbacks>,
) -> *mut c_void {
    match callbacks {
        Some(Callbacks(callbacks)) => match callbacks.pfn_allocation {
            // SAFETY: size and alignment are of a type, so neither is 0 and the alignment is a power of two; the function and its
            // pointer are the program's.
            Some(allocation) => unsafe {
                allocation(callbacks.p_user_data, layout.size(), layout.align(), scope)
            },
            None => std::ptr::null_mut(),
        },
        // SAFETY: a slot has its loader word, so its size is not 0.
        None => unsafe { std::alloc::alloc(layout) }.cast(),
    }
}

fn free(pointer: *mut c_void, layout: Layout, callbacks: Option<Callbacks>) {
    match callbacks {
        Some(Callbacks(callbacks)) => {
            if let Some(free) = callbacks.pfn_free {
                // SAFETY: the memory came from callbacks that are compatible with these, by the valid usage of each vkDestroy command.
                unsafe { free(callbacks.p_user_data, pointer) };
            }
        }
        // SAFETY: it came from `allocate` without callbacks, by the same valid usage, and with the same layout.
        None => unsafe { std::alloc::dealloc(pointer.cast(), layout) },
    }
}

/// A type of object.
pub(crate) trait Object: Sized {
    /// Its Vulkan handle.
    type Handle: Handle + Copy;
    /// How long the memory is needed, for the callbacks.
    const SCOPE: vk::SystemAllocationScope = vk::SystemAllocationScope::OBJECT;
}

#[repr(C)]
pub(crate) struct Slot<T> {
    loader: usize,
    value: T,
}

/// Makes an object, freed by [`Owned::destroy`] with compatible callbacks.
pub(crate) fn create<T: Object>(
    value: T,
    callbacks: Option<Callbacks>,
) -> Result<T::Handle, vk::Result> {
    let memory = allocate(Layout::new::<Slot<T>>(), T::SCOPE, callbacks);
    let slot =
        NonNull::new(memory.cast::<Slot<T>>()).ok_or(vk::Result::ERROR_OUT_OF_HOST_MEMORY)?;
    // SAFETY: fresh memory of this layout.
    unsafe {
        slot.write(Slot {
            loader: LOADER_MAGIC,
            value,
        });
    }
    Ok(T::Handle::from_raw(slot.as_ptr().expose_provenance() as u64))
}

fn slot_of<T: Object>(handle: T::Handle) -> *mut Slot<T> {
    let address = usize::try_from(handle.as_raw()).unwrap_or(0);
    std::ptr::with_exposed_provenance_mut(address)
}

/// The object behind a handle.
///
/// # Safety
///
/// The handle is not null, of this type, and live for `'a`.
pub(crate) unsafe fn get<'a, T: Object>(handle: T::Handle) -> &'a T {
    let slot = slot_of::<T>(handle);
    // SAFETY: `create` made it, and it is live, by this function's contract. Only the loader's word is ever written to from outside.
    unsafe { &(*slot).value }
}

/// [`get`] for a handle that may be null.
///
/// # Safety
///
/// The handle is null, or as for [`get`].
pub(crate) unsafe fn get_optional<'a, T: Object>(handle: T::Handle) -> Option<&'a T> {
    if handle.is_null() {
        return None;
    }
    // SAFETY: passed on.
    Some(unsafe { get::<T>(handle) })
}

/// A handle that is to be destroyed. May be none.
pub(crate) struct Owned<T>(Option<NonNull<Slot<T>>>);

impl<T: Object> Owned<T> {
    /// Takes a handle for destruction.
    ///
    /// # Safety
    ///
    /// The handle is null, or live, of this type, and never used again.
    pub(crate) unsafe fn new(handle: T::Handle) -> Self {
        Self(NonNull::new(slot_of::<T>(handle)))
    }

    /// Ends the object. `callbacks` are compatible with those that it was made with.
    pub(crate) fn destroy(self, callbacks: Option<Callbacks>) {
        let Some(slot) = self.0 else { return };
        // SAFETY: live until now and ours alone, by the contract of `new`.
        unsafe { slot.drop_in_place() };
        free(slot.as_ptr().cast(), Layout::new::<Slot<T>>(), callbacks);
    }

    /// The object, before it ends.
    pub(crate) fn get(&self) -> Option<&T> {
        // SAFETY: live, by the contract of `new`.
        let slot = self.0.map(|slot| unsafe { slot.as_ref() });
        slot.map(|slot| &slot.value)
    }
}

/// Says which type is behind which handle.
macro_rules! objects {
    ($($type:ty = $handle:ty $(, $scope:ident)?;)*) => {$(
        impl $crate::object::Object for $type {
            type Handle = $handle;
            $(const SCOPE: vk::SystemAllocationScope = vk::SystemAllocationScope::$scope;)?
        }

        impl $crate::entry::arguments::FromC<$handle> for &$type {
            unsafe fn from_c(handle: $handle) -> Self {
                // SAFETY: a live handle, by the contract of the trait.
                unsafe { $crate::object::get::<$type>(handle) }
            }
        }

        impl $crate::entry::arguments::FromC<$handle> for Option<&$type> {
            unsafe fn from_c(handle: $handle) -> Self {
                // SAFETY: null or a live handle, by the contract of the trait.
                unsafe { $crate::object::get_optional::<$type>(handle) }
            }
        }

        impl $crate::entry::arguments::FromC<$handle> for $crate::object::Owned<$type> {
            unsafe fn from_c(handle: $handle) -> Self {
                // SAFETY: a command that takes it so destroys it, and the program does not use it again.
                unsafe { $crate::object::Owned::new(handle) }
            }
        }
    )*};
}
pub(crate) use objects;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test states what it expects"
)]
mod tests;
