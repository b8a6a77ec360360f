//! What programs see that know Vulkan alone: stock ones, and allocators that others wrote, through the loader.

/// The one list of the checks of allocators: hands it to another macro.
#[macro_export]
macro_rules! for_each_allocator_check {
    ($macro:ident) => {
        $macro! {
            gpu_allocator {
                gpu_allocator_serves_each_location,
                gpu_allocator_keeps_buffers_apart,
            }
            vma {
                vma_serves_each_usage,
                vma_serves_each_memory_type,
                vma_counts_blocks_and_bytes,
                vma_pools_have_an_end,
                vma_defragments,
                vma_keeps_to_the_budget,
            }
        }
    };
}
