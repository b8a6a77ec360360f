//! What becomes of C arguments and of results.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ash::vk;

/// A C argument of type `C`, as our functions want it.
pub(crate) trait FromC<C> {
    /// Turns it.
    ///
    /// # Safety
    ///
    /// The argument is what the Vulkan specification asks of the command: handles are live, pointers are valid for reads, writes or
    /// both as the command does them, until it returns.
    unsafe fn from_c(argument: C) -> Self;
}

/// [`FromC::from_c`] where the type is inferred from the use.
///
/// # Safety
///
/// As [`FromC::from_c`].
pub(crate) unsafe fn from<C, T: FromC<C>>(argument: C) -> T {
    // SAFETY: the caller vouches for it.
    unsafe { T::from_c(argument) }
}

impl<T> FromC<T> for T {
    unsafe fn from_c(argument: T) -> T {
        argument
    }
}

impl<T> FromC<*const T> for &T {
    unsafe fn from_c(pointer: *const T) -> Self {
        // SAFETY: a pointer that may not be null, by the contract of the trait.
        unsafe { &*pointer }
    }
}

impl<T> FromC<*const T> for Option<&T> {
    unsafe fn from_c(pointer: *const T) -> Self {
        // SAFETY: null or valid, by the contract of the trait.
        unsafe { pointer.as_ref() }
    }
}

impl<T> FromC<*mut T> for &mut T {
    unsafe fn from_c(pointer: *mut T) -> Self {
        // SAFETY: not null, and initialised where the command reads it (a count, `sType` and `pNext`), by the contract of the trait.
        unsafe { &mut *pointer }
    }
}

impl FromC<*const c_char> for &CStr {
    unsafe fn from_c(pointer: *const c_char) -> Self {
        // SAFETY: a string that ends, by the contract of the trait.
        unsafe { CStr::from_ptr(pointer) }
    }
}

/// Where one value goes; what was there is not looked at.
pub(crate) struct Out<'a, T>(*mut T, PhantomData<&'a mut T>);

impl<T> FromC<*mut T> for Out<'_, T> {
    unsafe fn from_c(pointer: *mut T) -> Self {
        Self(pointer, PhantomData)
    }
}

impl<T> Out<'_, T> {
    /// Writes it.
    pub(crate) fn set(self, value: T) {
        // SAFETY: whoever made us vouched that the pointer is valid for a write of one value.
        unsafe { self.0.write(value) };
    }
}

/// Elements behind a pointer; how many, another argument says.
pub(crate) struct Array<'a, T>(*const T, PhantomData<&'a [T]>);

impl<T> FromC<*const T> for Array<'_, T> {
    unsafe fn from_c(pointer: *const T) -> Self {
        Self(pointer, PhantomData)
    }
}

impl<'a, T> Array<'a, T> {
    /// Its elements.
    ///
    /// # Safety
    ///
    /// `count` is the argument that belongs to it.
    pub(crate) unsafe fn take(self, count: u32) -> &'a [T] {
        // SAFETY: passed on.
        unsafe { slice(self.0, count) }
    }
}

/// The elements that a structure or a command points to. Empty where the pointer is null.
///
/// # Safety
///
/// The pointer is null, or `count` initialised elements are behind it, which nobody changes for the lifetime `'a`.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, count: u32) -> &'a [T] {
    if pointer.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { std::slice::from_raw_parts(pointer, count as usize) }
}

/// Room for elements that a command lists; none where the program asks how many there are.
pub(crate) struct List<'a, T>(*mut T, PhantomData<&'a mut [T]>);

impl<T> FromC<*mut T> for List<'_, T> {
    unsafe fn from_c(pointer: *mut T) -> Self {
        Self(pointer, PhantomData)
    }
}

impl<T> List<'_, T> {
    /// Tells how many there are, or puts as many as fit: each `put` gets the place and the item.
    ///
    /// # Safety
    ///
    /// `count` is the argument that belongs to it, and `put` is right for what is at the place before.
    pub(crate) unsafe fn fill<I>(
        self,
        count: &mut u32,
        items: &[I],
        mut put: impl FnMut(*mut T, &I),
    ) -> vk::Result {
        let all = u32::try_from(items.len()).unwrap_or(u32::MAX);
        if self.0.is_null() {
            *count = all;
            return vk::Result::SUCCESS;
        }
        let room = (*count).min(all);
        for (index, item) in items.iter().take(room as usize).enumerate() {
            // SAFETY: there is room for `count` elements, and `index` is below it.
            put(unsafe { self.0.add(index) }, item);
        }
        *count = room;
        if room < all {
            vk::Result::INCOMPLETE
        } else {
            vk::Result::SUCCESS
        }
    }
}

impl<T: Copy> List<'_, T> {
    /// [`List::fill`] with the items themselves.
    ///
    /// # Safety
    ///
    /// `count` is the argument that belongs to it.
    pub(crate) unsafe fn copy(self, count: &mut u32, items: &[T]) -> vk::Result {
        let put = |place: *mut T, item: &T| {
            // SAFETY: `fill` gives a place for one; what was there is overwritten, and has nothing to drop.
            unsafe { place.write(*item) };
        };
        // SAFETY: the caller vouches for the count, and `put` reads nothing.
        unsafe { self.fill(count, items, put) }
    }
}

/// What a function of ours returns, as a command's result.
pub(crate) trait Answer<R> {
    /// Turns it.
    fn answer(self) -> R;
}

impl<R> Answer<R> for R {
    fn answer(self) -> R {
        self
    }
}

impl Answer<vk::Result> for () {
    fn answer(self) -> vk::Result {
        vk::Result::SUCCESS
    }
}

impl Answer<vk::Result> for Result<(), vk::Result> {
    fn answer(self) -> vk::Result {
        self.err().unwrap_or(vk::Result::SUCCESS)
    }
}

impl Answer<vk::Result> for Result<vk::Result, vk::Result> {
    fn answer(self) -> vk::Result {
        self.unwrap_or_else(|error| error)
    }
}

/// A result of a command that did not do what it is for.
pub(crate) trait Refusal {
    /// After a panic.
    const FAILED: Self;
    /// Where this device has not what is asked for.
    const REFUSED: Self;
}

impl Refusal for () {
    const FAILED: Self = ();
    const REFUSED: Self = ();
}

impl Refusal for vk::Result {
    const FAILED: Self = vk::Result::ERROR_UNKNOWN;
    // In the list of every command that makes something.
    const REFUSED: Self = vk::Result::ERROR_OUT_OF_DEVICE_MEMORY;
}

impl Refusal for vk::PFN_vkVoidFunction {
    const FAILED: Self = None;
    const REFUSED: Self = None;
}

/// Runs the body of a command: a panic goes no further.
pub(crate) fn guard<T: Answer<R>, R: Refusal>(type_name: &str, body: impl FnOnce() -> T) -> R {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(answer) => answer.answer(),
        Err(_) => {
            log::error!("{type_name}: internal error; its message is above");
            R::FAILED
        }
    }
}

/// A command of what this device has not.
pub(crate) fn refuse<R: Refusal>(type_name: &str) -> R {
    let name = type_name.strip_prefix("PFN_").unwrap_or(type_name);
    log::debug!("{name}: not served; this device has memory, buffers and transfers");
    R::REFUSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted_then_copied_as_far_as_there_is_room() {
        let copied = |room: u32| {
            let (mut count, mut places) = (room, [9_u32; 4]);
            // SAFETY: the array outlives the list, which has no other owner.
            let list = unsafe { List::from_c(places.as_mut_ptr()) };
            // SAFETY: at most as many places as there are.
            let result = unsafe { list.copy(&mut count, &[1, 2, 3]) };
            (result, count, places)
        };
        assert_eq!(copied(0), (vk::Result::INCOMPLETE, 0, [9; 4]));
        assert_eq!(copied(2), (vk::Result::INCOMPLETE, 2, [1, 2, 9, 9]));
        assert_eq!(copied(3), (vk::Result::SUCCESS, 3, [1, 2, 3, 9]));
        assert_eq!(copied(4), (vk::Result::SUCCESS, 3, [1, 2, 3, 9]));
        let mut count = 7;
        // SAFETY: null asks for the count.
        let nowhere = unsafe { List::from_c(std::ptr::null_mut::<u32>()) };
        // SAFETY: as above.
        let result = unsafe { nowhere.copy(&mut count, &[1, 2, 3]) };
        assert_eq!((result, count), (vk::Result::SUCCESS, 3));
    }
}
