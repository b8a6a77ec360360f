use std::cell::RefCell;

use super::*;

struct Thing(#[expect(dead_code, reason = "dropped with it")] std::rc::Rc<()>);

objects! { Thing = vk::Event, DEVICE; }

/// What was asked of the callbacks.
#[derive(Default)]
struct Log {
    allocated: Vec<(usize, usize, i32)>,
    live: Vec<(*mut c_void, Layout)>,
    refuse: bool,
}

unsafe extern "system" fn allocation(
    log: *mut c_void,
    size: usize,
    alignment: usize,
    scope: vk::SystemAllocationScope,
) -> *mut c_void {
    // SAFETY: the tests pass a log that lives on.
    let log = unsafe { &*log.cast::<RefCell<Log>>() };
    let mut log = log.borrow_mut();
    if log.refuse {
        return std::ptr::null_mut();
    }
    let layout = Layout::from_size_align(size, alignment).unwrap();
    // SAFETY: the size is not 0.
    let memory = unsafe { std::alloc::alloc(layout) }.cast();
    log.allocated.push((size, alignment, scope.as_raw()));
    log.live.push((memory, layout));
    memory
}

unsafe extern "system" fn free_it(log: *mut c_void, memory: *mut c_void) {
    // SAFETY: as above.
    let log = unsafe { &*log.cast::<RefCell<Log>>() };
    let mut log = log.borrow_mut();
    let at = log.live.iter().position(|(live, _)| *live == memory);
    let (_, layout) = log.live.swap_remove(at.expect("it was allocated here"));
    // SAFETY: it came from `allocation`.
    unsafe { std::alloc::dealloc(memory.cast(), layout) };
}

fn callbacks(log: &RefCell<Log>) -> Option<Callbacks> {
    let raw = vk::AllocationCallbacks {
        p_user_data: std::ptr::from_ref(log).cast_mut().cast(),
        pfn_allocation: Some(allocation),
        pfn_free: Some(free_it),
        ..Default::default()
    };
    // SAFETY: a valid structure.
    unsafe { FromC::from_c(std::ptr::from_ref(&raw)) }
}

#[test]
fn objects_live_in_the_memory_of_the_callbacks() {
    let (log, value) = (RefCell::<Log>::default(), std::rc::Rc::new(()));
    let handle = create(Thing(value.clone()), callbacks(&log)).unwrap();
    let expected = (
        size_of::<Slot<Thing>>(),
        align_of::<Slot<Thing>>(),
        vk::SystemAllocationScope::DEVICE.as_raw(),
    );
    assert_eq!(log.borrow().allocated, [expected]);
    // SAFETY: the first word of a live object.
    let word = unsafe { *slot_of::<Thing>(handle).cast::<usize>() };
    assert_eq!(word, LOADER_MAGIC);
    assert_eq!(std::rc::Rc::strong_count(&value), 2);
    // SAFETY: live, and not used again.
    unsafe { Owned::<Thing>::new(handle) }.destroy(callbacks(&log));
    assert!(log.borrow().live.is_empty());
    assert_eq!(std::rc::Rc::strong_count(&value), 1, "dropped");
}

#[test]
fn a_refused_allocation_is_an_error_and_drops_the_value() {
    let (log, value) = (RefCell::<Log>::default(), std::rc::Rc::new(()));
    log.borrow_mut().refuse = true;
    let refused = create(Thing(value.clone()), callbacks(&log));
    assert_eq!(refused, Err(vk::Result::ERROR_OUT_OF_HOST_MEMORY));
    assert_eq!(std::rc::Rc::strong_count(&value), 1);
    // SAFETY: a null handle.
    unsafe { Owned::<Thing>::new(vk::Event::null()) }.destroy(None);
}
