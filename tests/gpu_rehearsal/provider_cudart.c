/* Stand-in for CUDA's runtime library: memory is the host's, streams are at once, kernels are not executed.
   CUDA_STANDIN_CAPABILITY=8.6 says which device it claims to be; CUDA_STANDIN_COUNT=1, how many there are. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 1, NO_MEMORY = 2 };

/* cudaDeviceProp of CUDA 13, by its documentation. */
struct properties {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t global_memory, shared_per_block;
    int registers_per_block, warp;
    size_t pitch;
    int threads_per_block, block[3], grid[3];
    size_t constants;
    int major, minor;
    size_t texture_alignment, texture_pitch;
    int processors, integrated, maps_host;
    int textures_and_surfaces[39];
    size_t surface_alignment;
    int concurrent_kernels, ecc, pci_bus, pci_device, pci_domain, tcc, async_engines, unified, bus_width, l2, persisting_l2;
    int threads_per_processor, stream_priorities, global_l1, local_l1;
    size_t shared_per_processor;
    int registers_per_processor, managed, multi_board, board_group, native_atomics, pageable, concurrent_managed;
    int preemption, registered_pointers, cooperative;
    size_t shared_opt_in;
    int host_page_tables, direct_managed, blocks_per_processor, window;
    size_t reserved_shared;
    int rest[80];
};
enum { SIZE = 1008 };

static void capability(int *major, int *minor) {
    const char *text = getenv("CUDA_STANDIN_CAPABILITY");
    *major = 9, *minor = 0;
    if (text) sscanf(text, "%d.%d", major, minor);
}

static int shared_opt_in(int major, int minor) {
    int kib = major == 9 || major == 10 ? 227 : major == 8 && minor == 0 ? 163 : 99;
    return kib * 1024;
}

int cudaGetDeviceCount(int *count) {
    const char *text = getenv("CUDA_STANDIN_COUNT");
    *count = text ? atoi(text) : 1;
    return SUCCESS;
}

int cudaGetDeviceProperties(void *into, int device) {
    struct properties p;
    memset(&p, 0, sizeof p);
    capability(&p.major, &p.minor);
    snprintf(p.name, sizeof p.name, "Stand-in %d.%d", p.major, p.minor);
    p.uuid[0] = (char)(device + 1);
    p.global_memory = 80ull << 30;
    p.shared_per_block = 48 << 10;
    p.shared_opt_in = shared_opt_in(p.major, p.minor);
    p.shared_per_processor = p.shared_opt_in + 1024;
    p.reserved_shared = 1024;
    p.registers_per_block = p.registers_per_processor = 65536;
    p.warp = 32;
    p.threads_per_block = p.block[0] = p.block[1] = 1024;
    p.block[2] = 64;
    p.grid[0] = 2147483647, p.grid[1] = p.grid[2] = 65535;
    p.processors = 108;
    p.threads_per_processor = p.major == 8 && p.minor ? 1536 : 2048;
    p.blocks_per_processor = 32;
    p.l2 = 40 << 20;
    p.bus_width = 5120;
    p.concurrent_kernels = p.unified = p.cooperative = p.managed = 1;
    p.async_engines = 3;
    memcpy(into, &p, SIZE);
    return SUCCESS;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    struct properties p;
    cudaGetDeviceProperties(&p, device);
    switch (attribute) {
        case 1: *value = p.threads_per_block; break;
        case 8: *value = (int)p.shared_per_block; break;
        case 10: *value = p.warp; break;
        case 16: *value = p.processors; break;
        case 39: *value = p.threads_per_processor; break;
        case 75: *value = p.major; break;
        case 76: *value = p.minor; break;
        case 81: *value = (int)p.shared_per_processor; break;
        case 97: *value = (int)p.shared_opt_in; break;
        default: *value = 1;
    }
    return SUCCESS;
}

int cudaGetDevice(int *device) { *device = 0; return SUCCESS; }
int cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaMemGetInfo(size_t *unused, size_t *total) { *unused = 70ull << 30, *total = 80ull << 30; return SUCCESS; }

int cudaMalloc(void **at, size_t size) { return posix_memalign(at, 512, size ? size : 1) ? NO_MEMORY : SUCCESS; }
int cudaMallocHost(void **at, size_t size) { return cudaMalloc(at, size); }
int cudaHostAlloc(void **at, size_t size, unsigned flags) { return cudaMalloc(at, size); }
int cudaMallocFromPoolAsync(void **at, size_t size, void *pool, void *stream) { return cudaMalloc(at, size); }
int cudaFree(void *at) { free(at); return SUCCESS; }
int cudaFreeHost(void *at) { free(at); return SUCCESS; }
int cudaFreeAsync(void *at, void *stream) { free(at); return SUCCESS; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memmove(to, from, size); return SUCCESS; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memmove(to, from, size); return SUCCESS; }
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t pitch, size_t width, size_t rows, int kind, void *stream) {
    for (size_t i = 0; i < rows; ++i) memmove((char *)to + i * to_pitch, (const char *)from + i * pitch, width);
    return SUCCESS;
}
int cudaMemset(void *at, int value, size_t size) { memset(at, value, size); return SUCCESS; }
int cudaMemsetAsync(void *at, int value, size_t size, void *stream) { memset(at, value, size); return SUCCESS; }
int cudaMemPoolCreate(void **pool, void *about) { *pool = malloc(1); return SUCCESS; }
int cudaMemPoolDestroy(void *pool) { free(pool); return SUCCESS; }
int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) { memset(value, 0, 8); return SUCCESS; }
int cudaPointerGetAttributes(void *about, const void *at) { memset(about, 0, 32); return SUCCESS; }

static int handle(void **made) { return (*made = malloc(1)) ? SUCCESS : NO_MEMORY; }
int cudaStreamCreate(void **stream) { return handle(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return handle(stream); }
int cudaStreamDestroy(void *stream) { free(stream); return SUCCESS; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return SUCCESS; }
int cudaEventCreate(void **event) { return handle(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return handle(event); }
int cudaEventDestroy(void *event) { free(event); return SUCCESS; }
int cudaEventElapsedTime(float *ms, void *from, void *to) { *ms = 0; return SUCCESS; }
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) { function(data); return SUCCESS; }

const char *cudaGetErrorName(int error) { return error ? "cudaErrorStandIn" : "cudaSuccess"; }
const char *cudaGetErrorString(int error) { return error ? "an error of the stand-in" : "no error"; }

void **__cudaRegisterFatBinary(void *binary) { static void *module; return &module; }
int cudaFuncGetAttributes(void *about, const void *function) {
    memset(about, 0, 96);
    ((int *)about)[6] = 1024; /* maxThreadsPerBlock */
    return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int size, size_t shared, unsigned flags) {
    *blocks = 1;
    return SUCCESS;
}
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, int *found) {
    *function = NULL;
    if (found) *found = 1; /* not found */
    return SUCCESS;
}
