/* Stands in for the driver on a machine without one: a device whose memory is the host's and whose
   queues run at once, so that everything but kernels can be tested. It runs one kernel, of fill.cu. */

#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;

enum { SUCCESS, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
enum { MEMORY = 1 << 30 };

static _Atomic size_t used;
static _Thread_local void *current;

int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : "an error";
    return SUCCESS;
}

int cuDeviceGetCount(int *count) { *count = 2; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
int cuDeviceGetName(char *name, int len, int device) { strncpy(name, "Stand-in", len); return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = MEMORY; return SUCCESS; }
int cuDeviceCanAccessPeer(int *can, int from, int to) { *can = from < to; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 75: *value = 9; break;   /* compute capability, major */
    case 76: *value = 0; break;   /* minor */
    case 16: *value = 132; break; /* multiprocessors */
    default: *value = 1; break;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(address)(device + 1);
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = current; return SUCCESS; }
int cuCtxSetCurrent(void *context) { current = context; return SUCCESS; }

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = MEMORY - used;
    *total = MEMORY;
    return SUCCESS;
}
int cuMemAlloc_v2(address *to, size_t bytes) {
    if (bytes > MEMORY - used) return OUT_OF_MEMORY;
    size_t *block = malloc(bytes + 256);
    *block = bytes;
    used += bytes;
    *to = (address)block + 256;
    return SUCCESS;
}
int cuMemFree_v2(address at) {
    size_t *block = (size_t *)(at - 256);
    used -= *block;
    free(block);
    return SUCCESS;
}
int cuMemHostAlloc(void **to, size_t bytes, unsigned flags) { *to = malloc(bytes); return SUCCESS; }
int cuMemFreeHost(void *at) { free(at); return SUCCESS; }
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) {
    memcpy((void *)to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *stream) {
    memcpy(to, (void *)from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, void *stream) {
    memcpy((void *)to, (void *)from, bytes);
    return SUCCESS;
}
int cuMemsetD8Async(address to, unsigned char byte, size_t bytes, void *stream) {
    memset((void *)to, byte, bytes);
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)1; return SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return SUCCESS; }
int cuStreamSynchronize(void *stream) { return SUCCESS; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { *event = (void *)1; return SUCCESS; }
int cuEventRecord(void *event, void *stream) { return SUCCESS; }
int cuEventSynchronize(void *event) { return SUCCESS; }
int cuEventDestroy_v2(void *event) { return SUCCESS; }

int cuModuleLoadData(void **module, const void *image) {
    *module = (void *)1;
    return memcmp(image, "\x7f" "ELF", 4) ? NOT_FOUND : SUCCESS;
}
int cuModuleUnload(void *module) { return SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)1;
    return strcmp(name, "fill_with_index") ? NOT_FOUND : SUCCESS;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
    unsigned *out = *(unsigned **)arguments[0];
    long long len = *(long long *)arguments[1];
    for (long long i = 0; i < len && i < (long long)gx * bx; i++) out[i] = (unsigned)i * 2654435761u;
    return SUCCESS;
}
