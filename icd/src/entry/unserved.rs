//! Core commands of what this device has not: images, pipelines, descriptors, queries and render passes.
//!
//! Whatever would make one of their objects fails with an error that the specification lists for it. So no valid program comes to the
//! others, which do nothing; their answer stands for one that has no object. Barriers and device masks belong here too: the host
//! executes in order, and there is one device.

use std::ffi::c_void;

use ash::vk;

use super::{Command, refused};

refused! { DEVICE
    PFN_vkBindImageMemory(vk::Device, vk::Image, vk::DeviceMemory, vk::DeviceSize) -> vk::Result;
    PFN_vkGetImageMemoryRequirements(vk::Device, vk::Image, *mut vk::MemoryRequirements);
    PFN_vkGetImageSparseMemoryRequirements(vk::Device, vk::Image, *mut u32, *mut vk::SparseImageMemoryRequirements);
    PFN_vkQueueBindSparse(vk::Queue, u32, *const vk::BindSparseInfo<'_>, vk::Fence) -> vk::Result;
    PFN_vkCreateQueryPool(
        vk::Device, *const vk::QueryPoolCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::QueryPool
    ) -> vk::Result;
    PFN_vkDestroyQueryPool(vk::Device, vk::QueryPool, *const vk::AllocationCallbacks<'_>);
    PFN_vkGetQueryPoolResults(vk::Device, vk::QueryPool, u32, u32, usize, *mut c_void, vk::DeviceSize, vk::QueryResultFlags) -> vk::Result;
    PFN_vkCreateBufferView(
        vk::Device, *const vk::BufferViewCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::BufferView
    ) -> vk::Result;
    PFN_vkDestroyBufferView(vk::Device, vk::BufferView, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreateImage(vk::Device, *const vk::ImageCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::Image) -> vk::Result;
    PFN_vkDestroyImage(vk::Device, vk::Image, *const vk::AllocationCallbacks<'_>);
    PFN_vkGetImageSubresourceLayout(vk::Device, vk::Image, *const vk::ImageSubresource, *mut vk::SubresourceLayout);
    PFN_vkCreateImageView(
        vk::Device, *const vk::ImageViewCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::ImageView
    ) -> vk::Result;
    PFN_vkDestroyImageView(vk::Device, vk::ImageView, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreateShaderModule(
        vk::Device, *const vk::ShaderModuleCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::ShaderModule
    ) -> vk::Result;
    PFN_vkDestroyShaderModule(vk::Device, vk::ShaderModule, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreatePipelineCache(
        vk::Device, *const vk::PipelineCacheCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::PipelineCache
    ) -> vk::Result;
    PFN_vkDestroyPipelineCache(vk::Device, vk::PipelineCache, *const vk::AllocationCallbacks<'_>);
    PFN_vkGetPipelineCacheData(vk::Device, vk::PipelineCache, *mut usize, *mut c_void) -> vk::Result;
    PFN_vkMergePipelineCaches(vk::Device, vk::PipelineCache, u32, *const vk::PipelineCache) -> vk::Result;
    PFN_vkCreateGraphicsPipelines(
        vk::Device, vk::PipelineCache, u32, *const vk::GraphicsPipelineCreateInfo<'_>, *const vk::AllocationCallbacks<'_>,
        *mut vk::Pipeline
    ) -> vk::Result;
    PFN_vkCreateComputePipelines(
        vk::Device, vk::PipelineCache, u32, *const vk::ComputePipelineCreateInfo<'_>, *const vk::AllocationCallbacks<'_>,
        *mut vk::Pipeline
    ) -> vk::Result;
    PFN_vkDestroyPipeline(vk::Device, vk::Pipeline, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreatePipelineLayout(
        vk::Device, *const vk::PipelineLayoutCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::PipelineLayout
    ) -> vk::Result;
    PFN_vkDestroyPipelineLayout(vk::Device, vk::PipelineLayout, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreateSampler(vk::Device, *const vk::SamplerCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::Sampler) -> vk::Result;
    PFN_vkDestroySampler(vk::Device, vk::Sampler, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreateDescriptorSetLayout(
        vk::Device, *const vk::DescriptorSetLayoutCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::DescriptorSetLayout
    ) -> vk::Result;
    PFN_vkDestroyDescriptorSetLayout(vk::Device, vk::DescriptorSetLayout, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreateDescriptorPool(
        vk::Device, *const vk::DescriptorPoolCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::DescriptorPool
    ) -> vk::Result;
    PFN_vkDestroyDescriptorPool(vk::Device, vk::DescriptorPool, *const vk::AllocationCallbacks<'_>);
    PFN_vkResetDescriptorPool(vk::Device, vk::DescriptorPool, vk::DescriptorPoolResetFlags) -> vk::Result;
    PFN_vkAllocateDescriptorSets(vk::Device, *const vk::DescriptorSetAllocateInfo<'_>, *mut vk::DescriptorSet) -> vk::Result;
    PFN_vkFreeDescriptorSets(vk::Device, vk::DescriptorPool, u32, *const vk::DescriptorSet) -> vk::Result;
    PFN_vkUpdateDescriptorSets(vk::Device, u32, *const vk::WriteDescriptorSet<'_>, u32, *const vk::CopyDescriptorSet<'_>);
    PFN_vkCreateFramebuffer(
        vk::Device, *const vk::FramebufferCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::Framebuffer
    ) -> vk::Result;
    PFN_vkDestroyFramebuffer(vk::Device, vk::Framebuffer, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreateRenderPass(
        vk::Device, *const vk::RenderPassCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::RenderPass
    ) -> vk::Result;
    PFN_vkDestroyRenderPass(vk::Device, vk::RenderPass, *const vk::AllocationCallbacks<'_>);
    PFN_vkGetRenderAreaGranularity(vk::Device, vk::RenderPass, *mut vk::Extent2D);
    PFN_vkCmdBindPipeline(vk::CommandBuffer, vk::PipelineBindPoint, vk::Pipeline);
    PFN_vkCmdSetViewport(vk::CommandBuffer, u32, u32, *const vk::Viewport);
    PFN_vkCmdSetScissor(vk::CommandBuffer, u32, u32, *const vk::Rect2D);
    PFN_vkCmdSetLineWidth(vk::CommandBuffer, f32);
    PFN_vkCmdSetDepthBias(vk::CommandBuffer, f32, f32, f32);
    PFN_vkCmdSetBlendConstants(vk::CommandBuffer, *const [f32; 4usize]);
    PFN_vkCmdSetDepthBounds(vk::CommandBuffer, f32, f32);
    PFN_vkCmdSetStencilCompareMask(vk::CommandBuffer, vk::StencilFaceFlags, u32);
    PFN_vkCmdSetStencilWriteMask(vk::CommandBuffer, vk::StencilFaceFlags, u32);
    PFN_vkCmdSetStencilReference(vk::CommandBuffer, vk::StencilFaceFlags, u32);
    PFN_vkCmdBindDescriptorSets(
        vk::CommandBuffer, vk::PipelineBindPoint, vk::PipelineLayout, u32, u32, *const vk::DescriptorSet, u32, *const u32
    );
    PFN_vkCmdBindIndexBuffer(vk::CommandBuffer, vk::Buffer, vk::DeviceSize, vk::IndexType);
    PFN_vkCmdBindVertexBuffers(vk::CommandBuffer, u32, u32, *const vk::Buffer, *const vk::DeviceSize);
    PFN_vkCmdDraw(vk::CommandBuffer, u32, u32, u32, u32);
    PFN_vkCmdDrawIndexed(vk::CommandBuffer, u32, u32, u32, i32, u32);
    PFN_vkCmdDrawIndirect(vk::CommandBuffer, vk::Buffer, vk::DeviceSize, u32, u32);
    PFN_vkCmdDrawIndexedIndirect(vk::CommandBuffer, vk::Buffer, vk::DeviceSize, u32, u32);
    PFN_vkCmdDispatch(vk::CommandBuffer, u32, u32, u32);
    PFN_vkCmdDispatchIndirect(vk::CommandBuffer, vk::Buffer, vk::DeviceSize);
    PFN_vkCmdCopyImage(vk::CommandBuffer, vk::Image, vk::ImageLayout, vk::Image, vk::ImageLayout, u32, *const vk::ImageCopy);
    PFN_vkCmdBlitImage(vk::CommandBuffer, vk::Image, vk::ImageLayout, vk::Image, vk::ImageLayout, u32, *const vk::ImageBlit, vk::Filter);
    PFN_vkCmdCopyBufferToImage(vk::CommandBuffer, vk::Buffer, vk::Image, vk::ImageLayout, u32, *const vk::BufferImageCopy);
    PFN_vkCmdCopyImageToBuffer(vk::CommandBuffer, vk::Image, vk::ImageLayout, vk::Buffer, u32, *const vk::BufferImageCopy);
    PFN_vkCmdClearColorImage(
        vk::CommandBuffer, vk::Image, vk::ImageLayout, *const vk::ClearColorValue, u32, *const vk::ImageSubresourceRange
    );
    PFN_vkCmdClearDepthStencilImage(
        vk::CommandBuffer, vk::Image, vk::ImageLayout, *const vk::ClearDepthStencilValue, u32, *const vk::ImageSubresourceRange
    );
    PFN_vkCmdClearAttachments(vk::CommandBuffer, u32, *const vk::ClearAttachment, u32, *const vk::ClearRect);
    PFN_vkCmdResolveImage(vk::CommandBuffer, vk::Image, vk::ImageLayout, vk::Image, vk::ImageLayout, u32, *const vk::ImageResolve);
    PFN_vkCmdSetEvent(vk::CommandBuffer, vk::Event, vk::PipelineStageFlags);
    PFN_vkCmdResetEvent(vk::CommandBuffer, vk::Event, vk::PipelineStageFlags);
    PFN_vkCmdWaitEvents(
        vk::CommandBuffer, u32, *const vk::Event, vk::PipelineStageFlags, vk::PipelineStageFlags, u32, *const vk::MemoryBarrier<'_>, u32,
        *const vk::BufferMemoryBarrier<'_>, u32, *const vk::ImageMemoryBarrier<'_>
    );
    PFN_vkCmdPipelineBarrier(
        vk::CommandBuffer, vk::PipelineStageFlags, vk::PipelineStageFlags, vk::DependencyFlags, u32, *const vk::MemoryBarrier<'_>, u32,
        *const vk::BufferMemoryBarrier<'_>, u32, *const vk::ImageMemoryBarrier<'_>
    );
    PFN_vkCmdBeginQuery(vk::CommandBuffer, vk::QueryPool, u32, vk::QueryControlFlags);
    PFN_vkCmdEndQuery(vk::CommandBuffer, vk::QueryPool, u32);
    PFN_vkCmdResetQueryPool(vk::CommandBuffer, vk::QueryPool, u32, u32);
    PFN_vkCmdWriteTimestamp(vk::CommandBuffer, vk::PipelineStageFlags, vk::QueryPool, u32);
    PFN_vkCmdCopyQueryPoolResults(
        vk::CommandBuffer, vk::QueryPool, u32, u32, vk::Buffer, vk::DeviceSize, vk::DeviceSize, vk::QueryResultFlags
    );
    PFN_vkCmdPushConstants(vk::CommandBuffer, vk::PipelineLayout, vk::ShaderStageFlags, u32, u32, *const c_void);
    PFN_vkCmdBeginRenderPass(vk::CommandBuffer, *const vk::RenderPassBeginInfo<'_>, vk::SubpassContents);
    PFN_vkCmdNextSubpass(vk::CommandBuffer, vk::SubpassContents);
    PFN_vkCmdEndRenderPass(vk::CommandBuffer);
    PFN_vkBindImageMemory2(vk::Device, u32, *const vk::BindImageMemoryInfo<'_>) -> vk::Result;
    PFN_vkCmdSetDeviceMask(vk::CommandBuffer, u32);
    PFN_vkCmdDispatchBase(vk::CommandBuffer, u32, u32, u32, u32, u32, u32);
    PFN_vkGetImageMemoryRequirements2(vk::Device, *const vk::ImageMemoryRequirementsInfo2<'_>, *mut vk::MemoryRequirements2<'_>);
    PFN_vkGetImageSparseMemoryRequirements2(
        vk::Device, *const vk::ImageSparseMemoryRequirementsInfo2<'_>, *mut u32, *mut vk::SparseImageMemoryRequirements2<'_>
    );
    PFN_vkCreateSamplerYcbcrConversion(
        vk::Device, *const vk::SamplerYcbcrConversionCreateInfo<'_>, *const vk::AllocationCallbacks<'_>, *mut vk::SamplerYcbcrConversion
    ) -> vk::Result;
    PFN_vkDestroySamplerYcbcrConversion(vk::Device, vk::SamplerYcbcrConversion, *const vk::AllocationCallbacks<'_>);
    PFN_vkCreateDescriptorUpdateTemplate(
        vk::Device, *const vk::DescriptorUpdateTemplateCreateInfo<'_>, *const vk::AllocationCallbacks<'_>,
        *mut vk::DescriptorUpdateTemplate
    ) -> vk::Result;
    PFN_vkDestroyDescriptorUpdateTemplate(vk::Device, vk::DescriptorUpdateTemplate, *const vk::AllocationCallbacks<'_>);
    PFN_vkUpdateDescriptorSetWithTemplate(vk::Device, vk::DescriptorSet, vk::DescriptorUpdateTemplate, *const c_void);
}
