/* Allocates two host-visible memories, writes one through its map, has the host GPU copy it, reads the other.
 *
 *     cc -o allocate_copy allocate_copy.c $(pkg-config --cflags --libs hostblob-guest)
 *     HOSTBLOB_SOCKET=/run/hostblob.sock ./allocate_copy      (or, in a guest, just ./allocate_copy)
 */
#include <hostblob_guest.h>
#include <stdio.h>
#include <stdlib.h>

enum { BYTES = 1 << 20, HOST_VISIBLE = 0x2 /* VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT */ };

static void must(hb_status status, const char *what)
{
    if (status == HB_OK)
        return;
    fprintf(stderr, "%s: %s (%s)\n", what, hb_status_string(status), hb_last_error());
    exit(1);
}

static hb_memory *allocate(hb_device *device, const char *name, unsigned char **bytes)
{
    hb_allocate_info info = {
        .size = sizeof(info),
        .bytes = BYTES,
        .memory_type = HB_MEMORY_TYPE_ANY,
        .required_properties = HOST_VISIBLE,
        .name = name,
    };
    hb_memory *memory;
    void *address;
    must(hb_allocate(device, &info, &memory), "hb_allocate");
    must(hb_memory_map(memory, NULL, &address), "hb_memory_map");
    *bytes = address;
    return memory;
}

int main(void)
{
    hb_device *device;
    hb_capabilities capabilities = { .size = sizeof(capabilities) };
    must(hb_device_open(NULL, &device), "hb_device_open"); /* HOSTBLOB_SOCKET or a render node */
    must(hb_device_capabilities(device, &capabilities), "hb_device_capabilities");
    printf("device: %s (%s)\n", capabilities.device_name, capabilities.driver_name);

    unsigned char *from, *to;
    hb_memory *source = allocate(device, "example source", &from);
    hb_memory *destination = allocate(device, "example destination", &to);
    for (int i = 0; i < BYTES; i++)
        from[i] = (unsigned char)(i * 31 + (i >> 8));

    hb_fence *fence;
    must(hb_memory_flush(source, 0, HB_WHOLE_SIZE), "hb_memory_flush");
    must(hb_copy(device, source, 0, destination, 0, BYTES, &fence), "hb_copy");
    must(hb_fence_wait(fence, 5000000000ull), "hb_fence_wait");
    must(hb_memory_invalidate(destination, 0, HB_WHOLE_SIZE), "hb_memory_invalidate");

    int wrong = 0;
    for (int i = 0; i < BYTES; i++)
        wrong += to[i] != (unsigned char)(i * 31 + (i >> 8));

    hb_fence_destroy(fence);
    hb_memory_free(destination);
    hb_memory_free(source);
    hb_device_close(device);
    if (wrong != 0)
        return fprintf(stderr, "%d bytes differ\n", wrong), 1;
    puts("ok");
    return 0;
}
