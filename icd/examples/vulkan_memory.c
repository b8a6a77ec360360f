// Vulkan and nothing else: allocates in every memory type, maps, writes, copies on the device, reads and compares. It runs on any
// driver with a queue for transfers.
//
//   cc vulkan_memory.c -lvulkan -o vulkan_memory
//   ./vulkan_memory [quota | window | lost | none]
//
// The words ask how the driver behaves when there is no memory left, no room to map it, the device goes away after a line on standard
// input, or there is none. Ends with 0 where all is as it should be.

#define _POSIX_C_SOURCE 200112L
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vulkan.h>

#define MIB (1024 * 1024ull)

static void fail(int line, const char *what, long result)
{
    printf("line %d: %s: %ld\n", line, what, result);
    exit(1);
}

#define CHECK(call) EXPECT(call, VK_SUCCESS)
#define EXPECT(call, wanted)                                                                                                      \
    do {                                                                                                                           \
        VkResult result_ = (call);                                                                                                 \
        if (result_ != (wanted)) fail(__LINE__, #call " is not " #wanted, result_);                                                \
    } while (0)
#define MUST(condition)                                                                                                            \
    do {                                                                                                                           \
        if (!(condition)) fail(__LINE__, "not so: " #condition, 0);                                                                \
    } while (0)

static VkInstance instance;
static VkPhysicalDevice physical;
static VkPhysicalDeviceMemoryProperties memory_properties;
static VkDevice device;
static VkQueue queue;
static VkCommandPool pool;
static uint32_t family;
static int dma_bufs; // memory can go to other processes

// The program's own allocator, which counts.
static atomic_long live, ever;

static void *allocation(void *counter, size_t size, size_t alignment, VkSystemAllocationScope scope)
{
    (void)scope;
    MUST(counter == &live);
    void *memory = NULL;
    if (posix_memalign(&memory, alignment < sizeof(void *) ? sizeof(void *) : alignment, size)) return NULL;
    atomic_fetch_add(&live, 1);
    atomic_fetch_add(&ever, 1);
    return memory;
}

static void *reallocation(void *counter, void *memory, size_t size, size_t alignment, VkSystemAllocationScope scope)
{
    if (!memory) return allocation(counter, size, alignment, scope);
    MUST(alignment <= _Alignof(max_align_t)); // the loader's lists
    return realloc(memory, size);
}

static void freed(void *counter, void *memory)
{
    MUST(counter == &live);
    if (memory) atomic_fetch_sub(&live, 1);
    free(memory);
}

static const VkAllocationCallbacks counting = {
    .pUserData = &live, .pfnAllocation = allocation, .pfnReallocation = reallocation, .pfnFree = freed};
static const VkAllocationCallbacks *callbacks = &counting;

static int open_instance(void)
{
    VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_1};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
    // Loaders say so in different ways when they find no driver, and when drivers find no device.
    VkResult made = vkCreateInstance(&info, callbacks, &instance);
    if (made == VK_ERROR_INCOMPATIBLE_DRIVER) return 0;
    EXPECT(made, VK_SUCCESS);
    uint32_t count = 1;
    VkResult listed = vkEnumeratePhysicalDevices(instance, &count, &physical);
    if (listed == VK_ERROR_INITIALIZATION_FAILED || count == 0) return 0;
    MUST(listed == VK_SUCCESS || listed == VK_INCOMPLETE);
    return 1;
}

static void look_for_dma_bufs(void)
{
    VkExtensionProperties extensions[256];
    uint32_t count = 256;
    CHECK(vkEnumerateDeviceExtensionProperties(physical, NULL, &count, extensions));
    dma_bufs = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!strcmp(extensions[i].extensionName, VK_EXT_EXTERNAL_MEMORY_DMA_BUF_EXTENSION_NAME)) dma_bufs = 1;
}

static VkResult open_device(VkDevice *out)
{
    float priority = 1;
    VkDeviceQueueCreateInfo queues = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                      .queueFamilyIndex = family,
                                      .queueCount = 1,
                                      .pQueuePriorities = &priority};
    const char *extensions[] = {VK_KHR_TIMELINE_SEMAPHORE_EXTENSION_NAME, VK_KHR_SYNCHRONIZATION_2_EXTENSION_NAME,
                                VK_KHR_EXTERNAL_MEMORY_FD_EXTENSION_NAME, VK_EXT_EXTERNAL_MEMORY_DMA_BUF_EXTENSION_NAME};
    VkPhysicalDeviceSynchronization2Features synchronization = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SYNCHRONIZATION_2_FEATURES, .synchronization2 = VK_TRUE};
    VkPhysicalDeviceTimelineSemaphoreFeatures timeline = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES,
        .pNext = &synchronization,
        .timelineSemaphore = VK_TRUE};
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &timeline,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queues,
                               .enabledExtensionCount = dma_bufs ? 4 : 2,
                               .ppEnabledExtensionNames = extensions};
    return vkCreateDevice(physical, &info, callbacks, out);
}

static void open_all(void)
{
    MUST(open_instance());
    VkPhysicalDeviceProperties properties;
    vkGetPhysicalDeviceProperties(physical, &properties);
    vkGetPhysicalDeviceMemoryProperties(physical, &memory_properties);
    printf("device: %s, Vulkan %u.%u\n", properties.deviceName, VK_API_VERSION_MAJOR(properties.apiVersion),
           VK_API_VERSION_MINOR(properties.apiVersion));
    VkQueueFamilyProperties families[8];
    uint32_t count = 8;
    vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, families);
    const VkQueueFlags any = VK_QUEUE_TRANSFER_BIT | VK_QUEUE_GRAPHICS_BIT | VK_QUEUE_COMPUTE_BIT;
    for (family = 0; family < count && !(families[family].queueFlags & any); family++) {}
    MUST(family < count);
    look_for_dma_bufs();
    CHECK(open_device(&device));
    vkGetDeviceQueue(device, family, 0, &queue);
    VkCommandPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .queueFamilyIndex = family};
    CHECK(vkCreateCommandPool(device, &info, callbacks, &pool));
}

static void close_all(void)
{
    vkDestroyCommandPool(device, pool, callbacks);
    vkDestroyDevice(device, callbacks);
    vkDestroyInstance(instance, callbacks);
}

struct buffer {
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceSize offset, size;
    unsigned char *bytes; // NULL where the memory type is not host-visible
};

static int visible(uint32_t type)
{
    return (memory_properties.memoryTypes[type].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT) != 0;
}

static VkResult allocate(uint32_t type, VkDeviceSize size, VkBuffer dedicated, VkDeviceMemory *out)
{
    VkMemoryDedicatedAllocateInfo only = {.sType = VK_STRUCTURE_TYPE_MEMORY_DEDICATED_ALLOCATE_INFO, .buffer = dedicated};
    VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                 .pNext = dedicated ? &only : NULL,
                                 .allocationSize = size,
                                 .memoryTypeIndex = type};
    return vkAllocateMemory(device, &info, callbacks, out);
}

static struct buffer make(uint32_t type, VkDeviceSize size, int dedicated)
{
    struct buffer made = {.size = size};
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .size = size,
                               .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    CHECK(vkCreateBuffer(device, &info, callbacks, &made.buffer));
    VkMemoryRequirements needs;
    vkGetBufferMemoryRequirements(device, made.buffer, &needs);
    MUST(needs.size >= size && needs.memoryTypeBits & 1u << type);
    // A second place in the same memory, to see that offsets count.
    made.offset = dedicated ? 0 : needs.alignment;
    CHECK(allocate(type, needs.size + made.offset, dedicated ? made.buffer : VK_NULL_HANDLE, &made.memory));
    CHECK(vkBindBufferMemory(device, made.buffer, made.memory, made.offset));
    if (visible(type)) {
        void *bytes;
        CHECK(vkMapMemory(device, made.memory, 0, VK_WHOLE_SIZE, 0, &bytes));
        MUST((size_t)bytes % 64 == 0);
        made.bytes = (unsigned char *)bytes + made.offset;
    }
    return made;
}

static void drop(struct buffer *buffer)
{
    vkDestroyBuffer(device, buffer->buffer, callbacks);
    if (buffer->bytes) vkUnmapMemory(device, buffer->memory);
    vkFreeMemory(device, buffer->memory, callbacks);
}

static void made_visible(struct buffer *buffer, int by_host)
{
    VkMappedMemoryRange range = {
        .sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE, .memory = buffer->memory, .size = VK_WHOLE_SIZE};
    CHECK(by_host ? vkFlushMappedMemoryRanges(device, 1, &range) : vkInvalidateMappedMemoryRanges(device, 1, &range));
}

static VkCommandBuffer begin(VkCommandBufferLevel level)
{
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = pool,
                                        .level = level,
                                        .commandBufferCount = 1};
    VkCommandBuffer commands;
    CHECK(vkAllocateCommandBuffers(device, &info, &commands));
    VkCommandBufferInheritanceInfo inherited = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_INHERITANCE_INFO};
    VkCommandBufferBeginInfo start = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO, .pInheritanceInfo = &inherited};
    CHECK(vkBeginCommandBuffer(commands, &start));
    return commands;
}

static void barrier(VkCommandBuffer commands)
{
    VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                           .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                           .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT,
                         0, 1, &all, 0, NULL, 0, NULL);
}

static void copy(VkCommandBuffer commands, struct buffer *from, VkDeviceSize first, struct buffer *to, VkDeviceSize at,
                 VkDeviceSize size)
{
    VkBufferCopy region = {.srcOffset = first, .dstOffset = at, .size = size};
    vkCmdCopyBuffer(commands, from->buffer, to->buffer, 1, &region);
    barrier(commands);
}

static void run(VkCommandBuffer commands)
{
    CHECK(vkEndCommandBuffer(commands));
    VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkFence fence;
    CHECK(vkCreateFence(device, &info, callbacks, &fence));
    VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
    CHECK(vkQueueSubmit(queue, 1, &submit, fence));
    CHECK(vkWaitForFences(device, 1, &fence, VK_TRUE, UINT64_MAX));
    CHECK(vkGetFenceStatus(device, fence));
    CHECK(vkResetFences(device, 1, &fence));
    EXPECT(vkGetFenceStatus(device, fence), VK_NOT_READY);
    vkDestroyFence(device, fence, callbacks);
    vkFreeCommandBuffers(device, pool, 1, &commands);
}

static unsigned char pattern(VkDeviceSize index, uint32_t seed)
{
    return (unsigned char)((index * 2654435761u + seed) >> 11);
}

static uint32_t visible_type(void)
{
    uint32_t type = 0;
    while (!visible(type)) type++;
    return type;
}

// Writes, copies there and back on the device, and compares.
static void round_trip(uint32_t type, VkDeviceSize size, int dedicated)
{
    struct buffer source = make(visible_type(), size, 0), there = make(type, size, dedicated), back = make(visible_type(), size, 0);
    for (VkDeviceSize i = 0; i < size; i++) source.bytes[i] = pattern(i, type);
    made_visible(&source, 1);
    VkCommandBuffer commands = begin(VK_COMMAND_BUFFER_LEVEL_PRIMARY);
    copy(commands, &source, 0, &there, 0, size);
    copy(commands, &there, 0, &back, 0, size);
    run(commands);
    made_visible(&back, 0);
    MUST(memcmp(source.bytes, back.bytes, size) == 0);
    if (there.bytes) {
        made_visible(&there, 0);
        MUST(memcmp(source.bytes, there.bytes, size) == 0);
    }
    drop(&source);
    drop(&there);
    drop(&back);
}

// Fills, updates, odd copies, one after the other in one command buffer, some of it in a secondary one.
static void commands_of_every_kind(uint32_t type)
{
    enum { size = 4096 };
    struct buffer there = make(type, size, 0), back = make(visible_type(), size, 0);
    unsigned char expected[size];
    uint32_t words[64];
    for (uint32_t i = 0; i < 64; i++) words[i] = i * 0x01010101u;

    VkCommandBuffer inner = begin(VK_COMMAND_BUFFER_LEVEL_SECONDARY);
    vkCmdUpdateBuffer(inner, there.buffer, 256, sizeof words, words);
    barrier(inner);
    CHECK(vkEndCommandBuffer(inner));
    memset(words, 0xEE, sizeof words); // the bytes were those of the call
    VkCommandBuffer commands = begin(VK_COMMAND_BUFFER_LEVEL_PRIMARY);
    vkCmdFillBuffer(commands, there.buffer, 0, VK_WHOLE_SIZE, 0xABABABAB);
    barrier(commands);
    vkCmdFillBuffer(commands, there.buffer, 8, 12, 0x12121212);
    barrier(commands);
    vkCmdExecuteCommands(commands, 1, &inner);
    copy(commands, &there, 257, &there, 1025, 251);
    for (int i = 0; i < 200; i++) copy(commands, &there, 1025 + i, &there, 2048 + i, 1);
    copy(commands, &there, 0, &back, 0, size);
    run(commands);

    memset(expected, 0xAB, size);
    memset(expected + 8, 0x12, 12);
    for (uint32_t i = 0; i < 64; i++) memset(expected + 256 + 4 * i, (int)i, 4);
    memcpy(expected + 1025, expected + 257, 251);
    memcpy(expected + 2048, expected + 1025, 200);
    made_visible(&back, 0);
    MUST(memcmp(expected, back.bytes, size) == 0);
    vkFreeCommandBuffers(device, pool, 1, &inner);
    drop(&there);
    drop(&back);
}

static VkSemaphore semaphore(VkSemaphoreType kind)
{
    VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO, .semaphoreType = kind};
    VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    VkSemaphore made;
    CHECK(vkCreateSemaphore(device, &info, callbacks, &made));
    return made;
}

// Work that waits for the program, and work that waits for that work.
static void semaphores(void)
{
    PFN_vkSignalSemaphoreKHR signal = (PFN_vkSignalSemaphoreKHR)vkGetDeviceProcAddr(device, "vkSignalSemaphoreKHR");
    PFN_vkWaitSemaphoresKHR wait = (PFN_vkWaitSemaphoresKHR)vkGetDeviceProcAddr(device, "vkWaitSemaphoresKHR");
    PFN_vkGetSemaphoreCounterValueKHR counter =
        (PFN_vkGetSemaphoreCounterValueKHR)vkGetDeviceProcAddr(device, "vkGetSemaphoreCounterValueKHR");
    PFN_vkQueueSubmit2KHR submit2 = (PFN_vkQueueSubmit2KHR)vkGetDeviceProcAddr(device, "vkQueueSubmit2KHR");
    MUST(signal && wait && counter && submit2);
    VkSemaphore timeline = semaphore(VK_SEMAPHORE_TYPE_TIMELINE), binary = semaphore(VK_SEMAPHORE_TYPE_BINARY);
    struct buffer there = make(visible_type(), 4096, 0);
    memset(there.bytes, 0, 4096);
    made_visible(&there, 1);
    VkCommandBuffer first = begin(VK_COMMAND_BUFFER_LEVEL_PRIMARY), second = begin(VK_COMMAND_BUFFER_LEVEL_PRIMARY);
    vkCmdFillBuffer(first, there.buffer, 0, 4096, 0x11111111);
    barrier(first);
    vkCmdFillBuffer(second, there.buffer, 0, 2048, 0x22222222);
    barrier(second);
    CHECK(vkEndCommandBuffer(first));
    CHECK(vkEndCommandBuffer(second));

    // The first waits until the program says 1; the second, submitted by the newer command, for the first. A binary semaphore may be
    // waited for once all that its signal waits for has been submitted or said.
    uint64_t one = 1;
    VkTimelineSemaphoreSubmitInfo values = {
        .sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO, .waitSemaphoreValueCount = 1, .pWaitSemaphoreValues = &one};
    VkPipelineStageFlags stage = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
    VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                           .pNext = &values,
                           .waitSemaphoreCount = 1,
                           .pWaitSemaphores = &timeline,
                           .pWaitDstStageMask = &stage,
                           .commandBufferCount = 1,
                           .pCommandBuffers = &first,
                           .signalSemaphoreCount = 1,
                           .pSignalSemaphores = &binary};
    CHECK(vkQueueSubmit(queue, 1, &submit, VK_NULL_HANDLE));
    VkSemaphoreSubmitInfo before = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_SUBMIT_INFO,
                                    .semaphore = binary,
                                    .stageMask = VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT};
    VkSemaphoreSubmitInfo after = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_SUBMIT_INFO,
                                   .semaphore = timeline,
                                   .value = 2,
                                   .stageMask = VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT};
    VkCommandBufferSubmitInfo work = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_SUBMIT_INFO, .commandBuffer = second};
    VkSubmitInfo2 newer = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO_2,
                           .waitSemaphoreInfoCount = 1,
                           .pWaitSemaphoreInfos = &before,
                           .commandBufferInfoCount = 1,
                           .pCommandBufferInfos = &work,
                           .signalSemaphoreInfoCount = 1,
                           .pSignalSemaphoreInfos = &after};

    uint64_t two = 2, value;
    VkSemaphoreWaitInfo until = {
        .sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO, .semaphoreCount = 1, .pSemaphores = &timeline, .pValues = &two};
    EXPECT(wait(device, &until, 20 * 1000 * 1000), VK_TIMEOUT);
    MUST(there.bytes[0] == 0);
    VkSemaphoreSignalInfo go = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_SIGNAL_INFO, .semaphore = timeline, .value = 1};
    CHECK(signal(device, &go));
    CHECK(submit2(queue, 1, &newer, VK_NULL_HANDLE));
    CHECK(wait(device, &until, UINT64_MAX));
    CHECK(counter(device, timeline, &value));
    MUST(value == 2);
    made_visible(&there, 0);
    MUST(there.bytes[0] == 0x22 && there.bytes[2047] == 0x22 && there.bytes[2048] == 0x11 && there.bytes[4095] == 0x11);
    CHECK(vkQueueWaitIdle(queue));
    CHECK(vkDeviceWaitIdle(device));
    CHECK(vkResetCommandPool(device, pool, 0));
    vkDestroySemaphore(device, timeline, callbacks);
    vkDestroySemaphore(device, binary, callbacks);
    drop(&there);
}

// A device may have images or not, and says so.
static void images(void)
{
    VkImageFormatProperties properties;
    VkResult offered = vkGetPhysicalDeviceImageFormatProperties(physical, VK_FORMAT_R8G8B8A8_UNORM, VK_IMAGE_TYPE_2D,
                                                                VK_IMAGE_TILING_OPTIMAL, VK_IMAGE_USAGE_TRANSFER_DST_BIT, 0, &properties);
    MUST(offered == VK_ERROR_FORMAT_NOT_SUPPORTED || offered == VK_SUCCESS);
    vkDestroyImage(device, VK_NULL_HANDLE, callbacks);
}

static const VkExternalMemoryHandleTypeFlagBits DMA_BUF = VK_EXTERNAL_MEMORY_HANDLE_TYPE_DMA_BUF_BIT_EXT;

// A buffer whose memory is exported, or is of a dma-buf.
static struct buffer external(VkDeviceSize size, int fd)
{
    struct buffer made = {.size = size};
    VkExternalMemoryBufferCreateInfo kind = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO, .handleTypes = DMA_BUF};
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .pNext = &kind,
                               .size = size,
                               .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    CHECK(vkCreateBuffer(device, &info, callbacks, &made.buffer));
    VkMemoryRequirements needs;
    vkGetBufferMemoryRequirements(device, made.buffer, &needs);
    MUST(needs.memoryTypeBits & 1u << visible_type());
    VkExportMemoryAllocateInfo export = {.sType = VK_STRUCTURE_TYPE_EXPORT_MEMORY_ALLOCATE_INFO, .handleTypes = DMA_BUF};
    VkImportMemoryFdInfoKHR import = {.sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_FD_INFO_KHR, .handleType = DMA_BUF, .fd = fd};
    VkMemoryAllocateInfo allocation = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                       .pNext = fd < 0 ? (void *)&export : (void *)&import,
                                       .allocationSize = needs.size,
                                       .memoryTypeIndex = visible_type()};
    CHECK(vkAllocateMemory(device, &allocation, callbacks, &made.memory));
    CHECK(vkBindBufferMemory(device, made.buffer, made.memory, 0));
    void *bytes;
    CHECK(vkMapMemory(device, made.memory, 0, VK_WHOLE_SIZE, 0, &bytes));
    made.bytes = bytes;
    return made;
}

// Another instance opens the device anew, as another process would, and gets the same bytes by a dma-buf.
static void dma_buf_between_instances(void)
{
    enum { size = 100 * 1024 };
    struct buffer ours = external(size, -1);
    for (VkDeviceSize i = 0; i < size; i++) ours.bytes[i] = pattern(i, 77);
    made_visible(&ours, 1);
    PFN_vkGetMemoryFdKHR get_fd = (PFN_vkGetMemoryFdKHR)vkGetDeviceProcAddr(device, "vkGetMemoryFdKHR");
    VkMemoryGetFdInfoKHR which = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_GET_FD_INFO_KHR, .memory = ours.memory, .handleType = DMA_BUF};
    int fd = -1;
    CHECK(get_fd(device, &which, &fd));
    MUST(fd >= 0);

    VkInstance our_instance = instance;
    VkDevice our_device = device;
    VkPhysicalDevice our_physical = physical;
    VkQueue our_queue = queue;
    VkCommandPool our_pool = pool;
    open_all();
    PFN_vkGetMemoryFdPropertiesKHR ask =
        (PFN_vkGetMemoryFdPropertiesKHR)vkGetDeviceProcAddr(device, "vkGetMemoryFdPropertiesKHR");
    VkMemoryFdPropertiesKHR found = {.sType = VK_STRUCTURE_TYPE_MEMORY_FD_PROPERTIES_KHR};
    CHECK(ask(device, DMA_BUF, fd, &found));
    MUST(found.memoryTypeBits == 1u << visible_type());
    EXPECT(ask(device, DMA_BUF, 0, &found), VK_ERROR_INVALID_EXTERNAL_HANDLE); // standard input is none
    struct buffer theirs = external(size, fd), back = make(visible_type(), size, 0);
    VkCommandBuffer commands = begin(VK_COMMAND_BUFFER_LEVEL_PRIMARY);
    copy(commands, &theirs, 0, &back, 0, size);
    vkCmdFillBuffer(commands, theirs.buffer, 4096, 4096, 0x55555555);
    barrier(commands);
    run(commands);
    made_visible(&back, 0);
    MUST(memcmp(ours.bytes, back.bytes, 4096) == 0);
    for (VkDeviceSize i = 0; i < size; i++) MUST(back.bytes[i] == pattern(i, 77));
    theirs.bytes[0] = (unsigned char)~theirs.bytes[0];
    made_visible(&theirs, 1);
    drop(&theirs);
    drop(&back);
    close_all();
    instance = our_instance;
    device = our_device;
    physical = our_physical;
    queue = our_queue;
    pool = our_pool;
    made_visible(&ours, 0);
    MUST(ours.bytes[0] == (unsigned char)~pattern(0, 77) && ours.bytes[4096] == 0x55 && ours.bytes[8192] == pattern(8192, 77));
    drop(&ours);
    printf("a dma-buf: two instances share bytes, and the device writes to them for both\n");
}

static void everything(void)
{
    open_all();
    static const VkDeviceSize sizes[] = {1, 4096, 100003, 5 * MIB};
    for (uint32_t type = 0; type < memory_properties.memoryTypeCount; type++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) round_trip(type, sizes[i], 0);
        round_trip(type, 4096, 1);
        commands_of_every_kind(type);
        printf("memory type %u (properties %#x): written, copied on the device, read: all bytes are right\n", type,
               memory_properties.memoryTypes[type].propertyFlags);
    }
    semaphores();
    images();
    if (dma_bufs) dma_buf_between_instances();
    printf("semaphores, fences, secondary command buffers: as they should be\n");
    close_all();
}

// Allocates `size` bytes at a time until that is refused.
static uint32_t fill_up(VkDeviceSize size, VkDeviceMemory *list, uint32_t most, VkResult *refusal)
{
    uint32_t count = 0;
    while (count < most && (*refusal = allocate(visible_type(), size, VK_NULL_HANDLE, &list[count])) == VK_SUCCESS) count++;
    return count;
}

static void quota(void)
{
    static VkDeviceMemory list[4096];
    open_all();
    VkResult refusal;
    uint32_t count = fill_up(16 * MIB, list, 4096, &refusal);
    EXPECT(refusal, VK_ERROR_OUT_OF_DEVICE_MEMORY);
    MUST(count > 0);
    vkFreeMemory(device, list[--count], callbacks);
    CHECK(allocate(visible_type(), 16 * MIB, VK_NULL_HANDLE, &list[count++]));
    VkDeviceMemory none;
    VkPhysicalDeviceMaintenance3Properties limits = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &limits};
    vkGetPhysicalDeviceProperties2(physical, &properties);
    EXPECT(allocate(visible_type(), limits.maxMemoryAllocationSize, VK_NULL_HANDLE, &none), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    for (uint32_t i = 0; i < count; i++) vkFreeMemory(device, list[i], callbacks);
    printf("%u times 16 MiB, then VK_ERROR_OUT_OF_DEVICE_MEMORY; one freed, one more allocated\n", count);
    close_all();
}

static void window(void)
{
    static VkDeviceMemory list[4096];
    open_all();
    uint32_t count = 0, mapped = 0;
    void *bytes;
    VkResult result = VK_SUCCESS;
    while (result == VK_SUCCESS && count < 4096) {
        CHECK(allocate(visible_type(), 16 * MIB, VK_NULL_HANDLE, &list[count++]));
        result = vkMapMemory(device, list[count - 1], 0, VK_WHOLE_SIZE, 0, &bytes);
        if (result == VK_SUCCESS) {
            memset(bytes, 0x5A, 16 * MIB);
            mapped++;
        }
    }
    EXPECT(result, VK_ERROR_MEMORY_MAP_FAILED);
    MUST(mapped > 0);
    // When others leave, there is room.
    vkFreeMemory(device, list[0], callbacks);
    CHECK(vkMapMemory(device, list[count - 1], 0, VK_WHOLE_SIZE, 0, &bytes));
    memset(bytes, 0xA5, 16 * MIB);
    vkUnmapMemory(device, list[count - 1]);
    CHECK(vkMapMemory(device, list[count - 1], 0, VK_WHOLE_SIZE, 0, &bytes));
    MUST(((unsigned char *)bytes)[16 * MIB - 1] == 0xA5);
    for (uint32_t i = 1; i < count; i++) vkFreeMemory(device, list[i], callbacks);
    printf("%u times 16 MiB mapped, then VK_ERROR_MEMORY_MAP_FAILED; one freed, and it can be mapped\n", mapped);
    close_all();
}

static void lost(void)
{
    open_all();
    struct buffer small = make(visible_type(), 4096, 0), large = make(visible_type(), 5 * MIB, 0);
    VkCommandBuffer commands = begin(VK_COMMAND_BUFFER_LEVEL_PRIMARY);
    copy(commands, &small, 0, &large, 0, 4096);
    CHECK(vkEndCommandBuffer(commands));
    VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkFence fence;
    CHECK(vkCreateFence(device, &info, callbacks, &fence));
    printf("ready\n");
    fflush(stdout);
    MUST(getchar() != EOF);
    VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
    VkResult submitted = vkQueueSubmit(queue, 1, &submit, fence);
    MUST(submitted == VK_SUCCESS || submitted == VK_ERROR_DEVICE_LOST);
    EXPECT(vkWaitForFences(device, 1, &fence, VK_TRUE, UINT64_MAX), VK_ERROR_DEVICE_LOST);
    // Everything after.
    EXPECT(vkGetFenceStatus(device, fence), VK_ERROR_DEVICE_LOST);
    EXPECT(vkQueueSubmit(queue, 1, &submit, VK_NULL_HANDLE), VK_ERROR_DEVICE_LOST);
    EXPECT(vkQueueWaitIdle(queue), VK_ERROR_DEVICE_LOST);
    EXPECT(vkDeviceWaitIdle(device), VK_ERROR_DEVICE_LOST);
    VkDeviceMemory none;
    EXPECT(allocate(visible_type(), 5 * MIB, VK_NULL_HANDLE, &none), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    EXPECT(allocate(visible_type(), 64, VK_NULL_HANDLE, &none), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    VkDevice another;
    EXPECT(open_device(&another), VK_ERROR_DEVICE_LOST);
    // Mapped memory can be written to all the same.
    memset(small.bytes, 1, 4096);
    memset(large.bytes, 1, 5 * MIB);
    vkDestroyFence(device, fence, callbacks);
    drop(&small);
    drop(&large);
    printf("lost: everything said VK_ERROR_DEVICE_LOST\n");
    close_all();
}

int main(int count, char **words)
{
    const char *word = count > 1 ? words[1] : "";
    if (!*word) everything();
    else if (!strcmp(word, "quota")) quota();
    else if (!strcmp(word, "window")) window();
    else if (!strcmp(word, "lost")) lost();
    else if (!strcmp(word, "none")) {
        MUST(!open_instance());
        printf("no device is listed\n");
        return 0; // what the loader keeps of an instance without devices is its own
    } else {
        fprintf(stderr, "usage: vulkan_memory [quota | window | lost | none]\n");
        return 2;
    }
    MUST(atomic_load(&ever) > 0 && atomic_load(&live) == 0);
    return 0;
}
