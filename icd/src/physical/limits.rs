//! `VkPhysicalDeviceLimits`: the required minimum of everything that this device has not, the true number of what it has
//! (Vulkan, "Required Limits").

use ash::vk;

use super::PhysicalDevice;

/// Where mapped memory begins, in bytes: what guest-ffi guarantees (`minMemoryMapAlignment`).
pub(crate) const MAP_ALIGNMENT: u64 = 64;
const ONE_SAMPLE: vk::SampleCountFlags = vk::SampleCountFlags::TYPE_1;
const SAMPLES: vk::SampleCountFlags = vk::SampleCountFlags::from_raw(
    vk::SampleCountFlags::TYPE_1.as_raw() | vk::SampleCountFlags::TYPE_4.as_raw(),
);

pub(super) fn limits(physical: &PhysicalDevice) -> vk::PhysicalDeviceLimits {
    let capset = physical.capset();
    vk::PhysicalDeviceLimits {
        // What there is.
        max_memory_allocation_count: capset.limits.max_context_blobs.max(4096),
        buffer_image_granularity: 1,
        min_memory_map_alignment: usize::try_from(MAP_ALIGNMENT).unwrap_or(usize::MAX),
        non_coherent_atom_size: u64::from(capset.non_coherent_atom_size),
        optimal_buffer_copy_offset_alignment: 1,
        optimal_buffer_copy_row_pitch_alignment: 1,
        discrete_queue_priorities: 2,
        // Of buffers that nothing reads but transfers.
        max_texel_buffer_elements: 65536,
        max_uniform_buffer_range: 16384,
        max_storage_buffer_range: 1 << 27,
        min_texel_buffer_offset_alignment: MAP_ALIGNMENT,
        min_uniform_buffer_offset_alignment: MAP_ALIGNMENT,
        min_storage_buffer_offset_alignment: MAP_ALIGNMENT,
        // Of images.
        max_image_dimension1_d: 4096,
        max_image_dimension2_d: 4096,
        max_image_dimension3_d: 256,
        max_image_dimension_cube: 4096,
        max_image_array_layers: 256,
        sampled_image_color_sample_counts: SAMPLES,
        sampled_image_integer_sample_counts: ONE_SAMPLE,
        sampled_image_depth_sample_counts: SAMPLES,
        sampled_image_stencil_sample_counts: SAMPLES,
        storage_image_sample_counts: ONE_SAMPLE,
        max_sample_mask_words: 1,
        // Of descriptors and samplers.
        max_push_constants_size: 128,
        max_sampler_allocation_count: 4000,
        max_bound_descriptor_sets: 4,
        max_per_stage_descriptor_samplers: 16,
        max_per_stage_descriptor_uniform_buffers: 12,
        max_per_stage_descriptor_storage_buffers: 4,
        max_per_stage_descriptor_sampled_images: 16,
        max_per_stage_descriptor_storage_images: 4,
        max_per_stage_descriptor_input_attachments: 4,
        max_per_stage_resources: 128,
        max_descriptor_set_samplers: 96,
        max_descriptor_set_uniform_buffers: 72,
        max_descriptor_set_uniform_buffers_dynamic: 8,
        max_descriptor_set_storage_buffers: 24,
        max_descriptor_set_storage_buffers_dynamic: 4,
        max_descriptor_set_sampled_images: 96,
        max_descriptor_set_storage_images: 24,
        max_descriptor_set_input_attachments: 4,
        sub_texel_precision_bits: 4,
        mipmap_precision_bits: 4,
        max_sampler_lod_bias: 2.0,
        max_sampler_anisotropy: 1.0,
        min_texel_offset: -8,
        max_texel_offset: 7,
        // Of vertices.
        max_vertex_input_attributes: 16,
        max_vertex_input_bindings: 16,
        max_vertex_input_attribute_offset: 2047,
        max_vertex_input_binding_stride: 2048,
        max_vertex_output_components: 64,
        max_draw_indexed_index_value: (1 << 24) - 1,
        max_draw_indirect_count: 1,
        // Of fragments and framebuffers.
        max_fragment_input_components: 64,
        max_fragment_output_attachments: 4,
        max_fragment_combined_output_resources: 4,
        sub_pixel_precision_bits: 4,
        max_viewports: 1,
        max_viewport_dimensions: [4096; 2],
        viewport_bounds_range: [-8192.0, 8191.0],
        max_framebuffer_width: 4096,
        max_framebuffer_height: 4096,
        max_framebuffer_layers: 256,
        framebuffer_color_sample_counts: SAMPLES,
        framebuffer_depth_sample_counts: SAMPLES,
        framebuffer_stencil_sample_counts: SAMPLES,
        framebuffer_no_attachments_sample_counts: SAMPLES,
        max_color_attachments: 4,
        point_size_range: [1.0; 2],
        line_width_range: [1.0; 2],
        standard_sample_locations: vk::TRUE,
        // Of compute.
        max_compute_shared_memory_size: 16384,
        max_compute_work_group_count: [65535; 3],
        max_compute_work_group_invocations: 128,
        max_compute_work_group_size: [128, 128, 64],
        // No query writes a timestamp.
        timestamp_period: 1.0,
        // Zeros: of features that are not there.
        ..Default::default()
    }
}
