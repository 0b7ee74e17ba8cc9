// Stands in for NVIDIA's driver (libcuda.so.1) on a machine without a GPU: the functions that
// src/cuda calls.
//
// Contract: a device's memory is the host's and starts as 0xff bytes (NaNs). A stream runs its work
// as late as it may: when somebody waits for the stream or for an event in it, in the waiting
// thread. Work that no event orders behind other work therefore comes too early, and the mistake
// shows. A kernel is the function of its name in library.cpp, for the 16-bit format of its module.
// A captured stream records launches, with copies of their arguments, and copies. A failed kernel
// says why on stderr. The stand-in is slow, and its times mean nothing. Three variables of the
// environment change it:
//   EMULATED_GPUS            is the number of devices (1)
//   EMULATED_GPU_CAPABILITY  is the compute capability of each, such as 80 for 8.0 (90)
//   EMULATED_GPU_MEMORY      is the memory of each in MiB (4096), taken from the host as it is written
// Left out: everything that src/cuda does not call, dynamic shared memory, capture across streams.
#include "driver.h"

#include "fibers.h"
#include "kernels.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

/// These are values of CUresult.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY = 209,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
};

constexpr int MOST_DEVICES = 64;
constexpr size_t MIB = 1 << 20;

using Address = unsigned long long;
using Recording = std::vector<Work>;

// A queue of work, whose items are numbered from 1.
struct Queue {
    std::mutex lock;  // of `waiting` and `runner`
    std::deque<Work> waiting;
    std::atomic<size_t> put = 0;
    std::atomic<size_t> done = 0;
    std::thread::id runner;  // who runs something now
    std::condition_variable change;
    std::unique_ptr<Recording> recording;  // while it is captured

    // Runs everything up to number `end`, or waits while another thread does. It waits no longer
    // than that, because later work may wait for something that this thread runs.
    void run_to(size_t end) {
        const auto nobody = std::thread::id(), self = std::this_thread::get_id();
        std::unique_lock guard(lock);
        while (done < end) {
            auto before = runner;
            if (before != nobody && before != self) {
                change.wait(guard);
                continue;
            }
            Work work = std::move(waiting.front());
            waiting.pop_front();
            runner = self;
            guard.unlock();
            work();
            guard.lock();
            runner = before;
            done++;
            change.notify_all();
        }
    }
};

// Events refer to a stream's work, so the work outlives the stream.
struct Stream {
    size_t context;
    std::shared_ptr<Queue> queue = std::make_shared<Queue>();
};

using Time = std::chrono::steady_clock::time_point;

struct Event {
    std::shared_ptr<Queue> queue;  // none before it is recorded
    size_t number = 0;
    std::shared_ptr<Time> time;

    void synchronize() const {
        if (queue) queue->run_to(number);
    }
    bool is_over() const { return queue && queue->done >= number; }
};

size_t number(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

int devices() {
    static const int count = int(std::min<size_t>(number("EMULATED_GPUS", 1), MOST_DEVICES));
    return count;
}

size_t memory_bytes() {
    static const size_t bytes = number("EMULATED_GPU_MEMORY", 4096) * MIB;
    return bytes;
}

unsigned capability() {
    static const unsigned digits = unsigned(number("EMULATED_GPU_CAPABILITY", 90));
    return digits;
}

// A context is the number of its device plus one.
thread_local size_t current;
std::atomic<size_t> used[MOST_DEVICES];
std::mutex lock;  // of what follows
std::map<Address, std::pair<size_t, size_t>> blocks;  // bytes and device of each

// Maps `bytes` (a multiple of a MiB) that read as 0xff until they are written. They are private
// views of one file, so memory that nobody writes costs nothing.
void* map_poison(size_t bytes) {
    constexpr size_t FILE_BYTES = 16 * MIB;
    static const int file = [] {
        int file = memfd_create("poison", MFD_CLOEXEC);
        std::vector<char> poison(MIB, char(0xff));
        for (size_t at = 0; at < FILE_BYTES; at += MIB) {
            if (pwrite(file, poison.data(), MIB, at) != ssize_t(MIB)) return -1;
        }
        return file;
    }();
    int flags = MAP_PRIVATE | MAP_NORESERVE;
    void* start = mmap(nullptr, bytes, PROT_NONE, flags | MAP_ANONYMOUS, -1, 0);
    if (file < 0 || start == MAP_FAILED) return nullptr;
    for (size_t at = 0; at < bytes; at += FILE_BYTES) {
        size_t len = std::min(FILE_BYTES, bytes - at);
        void* view = mmap((char*)start + at, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, 0);
        if (view == MAP_FAILED) {
            munmap(start, bytes);
            return nullptr;
        }
    }
    return start;
}

std::set<Stream*> streams;  // all of them

Queue& queue_of(void* stream) {
    static Stream default_stream{0};
    return *(stream ? static_cast<Stream*>(stream) : &default_stream)->queue;
}

// Runs all queued work of a device.
void run_device(size_t context) {
    std::vector<std::shared_ptr<Queue>> queues;
    {
        std::lock_guard guard(lock);
        for (Stream* stream : streams) {
            if (stream->context == context) queues.push_back(stream->queue);
        }
    }
    for (auto& queue : queues) queue->run_to(queue->put);
}

// All later calls repeat the first failure, as those of a device's context do.
std::atomic<int> failure{SUCCESS};

void run_kernel(const std::string& name, uint3 grid, unsigned block, const Work& thread) {
    std::string error = run_blocks(grid, block, thread);
    if (error.empty()) return;
    fprintf(stderr, "emulated GPU: %s: %s\n", name.c_str(), error.c_str());
    failure = LAUNCH_FAILED;
}

// Reads a number of a fatbin.
template <class T>
T number_at(const char* at) {
    T number;
    memcpy(&number, at, sizeof number);
    return number;
}

constexpr unsigned FATBIN = 0xba55ed50;
enum Kind { PTX = 1, ELF = 2 };

// Finds the kernels of a fatbin (fatbinary writes it: a header of 16 bytes, then entries with headers of
// their own). As NVIDIA's driver does, it takes code of the device's own major capability that is not
// above it, or PTX that is not above it. An entry has the path of its source, which says whether Half is
// half precision (FP16_FOLDER in build.rs).
int find_kernels(const char* image, const Kernels*& kernels) {
    if (number_at<unsigned>(image) != FATBIN) return INVALID_IMAGE;
    const char *entry = image + number_at<uint16_t>(image + 6), *end = entry + number_at<uint64_t>(image + 8);
    while (entry < end) {
        auto kind = number_at<uint16_t>(entry);
        auto header = number_at<unsigned>(entry + 4), compiled_for = number_at<unsigned>(entry + 28);
        bool has_fitting_code = kind == ELF && compiled_for / 10 == capability() / 10;
        if ((has_fitting_code || kind == PTX) && compiled_for <= capability()) {
            std::string name(entry + number_at<unsigned>(entry + 32), number_at<unsigned>(entry + 36));
            bool is_fp16 = name.starts_with("kernels/./");
            return kernels = is_fp16 ? &fp16_kernels() : &bf16_kernels(), SUCCESS;
        }
        entry += header + number_at<uint64_t>(entry + 8);
    }
    return NO_BINARY;
}

}  // namespace

int emulated_put(void* stream, Work work) {
    Queue& queue = queue_of(stream);
    std::lock_guard guard(queue.lock);
    if (queue.recording) {
        queue.recording->push_back(std::move(work));
    } else {
        queue.waiting.push_back(std::move(work));
        queue.put++;
    }
    return failure;
}

void emulated_run(void* stream) {
    auto queue = stream ? static_cast<Stream*>(stream)->queue : nullptr;
    if (queue) std::thread([queue, end = queue->put.load()] { queue->run_to(end); }).detach();
}

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }

int cuGetErrorString(int error, const char** text) {
    switch (error) {
    case INVALID_VALUE: *text = "invalid argument"; break;
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case INVALID_DEVICE: *text = "invalid device ordinal"; break;
    case INVALID_IMAGE: *text = "device kernel image is invalid"; break;
    case NO_BINARY: *text = "no kernel image is available for execution on the device"; break;
    case INVALID_CONTEXT: *text = "invalid device context"; break;
    case NOT_FOUND: *text = "named symbol not found"; break;
    case NOT_READY: *text = "device not ready"; break;
    case LAUNCH_FAILED: *text = "unspecified launch failure"; break;
    case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
    default: *text = "an error"; break;
    }
    return SUCCESS;
}

int cuDeviceGetCount(int* count) { return *count = devices(), SUCCESS; }
int cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= devices()) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
int cuDeviceGetName(char* name, int len, int) {
    snprintf(name, len, "Emulated GPU (no hardware)");
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = memory_bytes(), SUCCESS; }
int cuDeviceCanAccessPeer(int* can, int from, int to) { return *can = from != to, SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {  // as of an H100
    case 75: *value = capability() / 10; break;
    case 76: *value = capability() % 10; break;
    case 16: *value = 132; break;       // multiprocessors
    case 97: *value = 232448; break;    // shared memory in bytes that a block may ask for
    case 38: *value = 50 << 20; break;  // bytes of second-level cache
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = (void*)(size_t(device) + 1);
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void** context) { return *context = (void*)current, SUCCESS; }
int cuCtxSetCurrent(void* context) { return current = (size_t)context, SUCCESS; }

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    if (current == 0) return INVALID_CONTEXT;
    *free = memory_bytes() - used[current - 1];
    *total = memory_bytes();
    return SUCCESS;
}
int cuMemAlloc_v2(Address* to, size_t bytes) {
    if (current == 0) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    std::lock_guard guard(lock);
    size_t device = current - 1;
    if (bytes > memory_bytes() - used[device]) return OUT_OF_MEMORY;
    size_t mapped = (bytes + MIB - 1) / MIB * MIB;
    void* start = map_poison(mapped);
    if (start == nullptr) return OUT_OF_MEMORY;
    used[device] += bytes;
    *to = (Address)start;
    blocks[*to] = {bytes, device};
    return SUCCESS;
}
int cuMemFree_v2(Address at) {
    run_device(current);
    std::lock_guard guard(lock);
    auto block = blocks.find(at);
    if (block == blocks.end()) return INVALID_VALUE;
    auto [bytes, device] = block->second;
    munmap((void*)at, (bytes + MIB - 1) / MIB * MIB);
    used[device] -= bytes;
    blocks.erase(block);
    return SUCCESS;
}
int cuMemHostAlloc(void** to, size_t bytes, unsigned) {
    *to = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *to ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemFreeHost(void* at) { return free(at), SUCCESS; }

int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    return emulated_put(stream, [=] { memcpy((void*)to, from, bytes); });
}
int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    return emulated_put(stream, [=] { memcpy(to, (void*)from, bytes); });
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
    return emulated_put(stream, [=] { memmove((void*)to, (void*)from, bytes); });
}
int cuMemsetD8Async(Address to, unsigned char byte, size_t bytes, void* stream) {
    return emulated_put(stream, [=] { memset((void*)to, byte, bytes); });
}

int cuStreamCreate(void** out, unsigned) {
    if (current == 0) return INVALID_CONTEXT;
    auto stream = new Stream{current};
    std::lock_guard guard(lock);
    streams.insert(stream);
    return *out = stream, SUCCESS;
}
int cuStreamDestroy_v2(void* at) {
    auto stream = static_cast<Stream*>(at);
    stream->queue->run_to(stream->queue->put);
    std::lock_guard guard(lock);
    streams.erase(stream);
    return delete stream, SUCCESS;
}
int cuStreamSynchronize(void* stream) {
    Queue& queue = queue_of(stream);
    if (queue.recording) return CAPTURE_UNSUPPORTED;
    queue.run_to(queue.put);
    return failure;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    if (queue_of(stream).recording) return CAPTURE_UNSUPPORTED;
    return emulated_put(stream, [event = *static_cast<Event*>(event)] { event.synchronize(); });
}
int cuStreamBeginCapture_v2(void* stream, int) {
    Queue& queue = queue_of(stream);
    if (stream == nullptr || queue.recording) return CAPTURE_UNSUPPORTED;
    queue.recording = std::make_unique<Recording>();
    return SUCCESS;
}
int cuStreamEndCapture(void* stream, void** graph) {
    *graph = queue_of(stream).recording.release();
    return *graph ? SUCCESS : INVALID_VALUE;
}
int cuStreamIsCapturing(void* stream, int* status) {
    return *status = queue_of(stream).recording ? 1 : 0, SUCCESS;
}

// A graph is a recording, and its executable is a copy of it.
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new Recording(*static_cast<Recording*>(graph));
    return SUCCESS;
}
int cuGraphDestroy(void* graph) { return delete static_cast<Recording*>(graph), SUCCESS; }
int cuGraphExecDestroy(void* graph) { return delete static_cast<Recording*>(graph), SUCCESS; }
int cuGraphUpload(void*, void*) { return SUCCESS; }
int cuGraphLaunch(void* graph, void* stream) {
    for (const Work& work : *static_cast<Recording*>(graph)) {
        if (int status = emulated_put(stream, work)) return status;
    }
    return failure;
}

int cuEventCreate(void** event, unsigned) { return *event = new Event, SUCCESS; }
int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), SUCCESS; }
int cuEventRecord(void* at, void* stream) {
    if (stream == nullptr) return INVALID_VALUE;
    if (queue_of(stream).recording) return CAPTURE_UNSUPPORTED;
    Event& event = *static_cast<Event*>(at);
    event.time = std::make_shared<Time>();
    emulated_put(stream, [time = event.time] { *time = std::chrono::steady_clock::now(); });
    event.queue = static_cast<Stream*>(stream)->queue;
    event.number = event.queue->put;
    return failure;
}
int cuEventSynchronize(void* event) {
    static_cast<Event*>(event)->synchronize();
    return failure;
}
int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    auto &first = *static_cast<Event*>(start), &second = *static_cast<Event*>(end);
    if (!first.is_over() || !second.is_over()) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(*second.time - *first.time).count();
    return SUCCESS;
}
int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

int cuModuleLoadData(void** module, const void* image) {
    const Kernels* kernels = nullptr;
    int status = find_kernels((const char*)image, kernels);
    return *module = (void*)kernels, status;
}
int cuModuleUnload(void*) { return SUCCESS; }
// A function is a pair of a name and a kernel.
int cuModuleGetFunction(void** function, void* module, const char* name) {
    auto& kernels = *static_cast<const Kernels*>(module);
    auto found = kernels.find(name);
    if (found == kernels.end()) return NOT_FOUND;
    return *function = (void*)&*found, SUCCESS;
}
int cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   void* stream, void** arguments, void**) {
    bool is_empty = grid_x == 0 || grid_y == 0 || grid_z == 0;
    bool is_too_large = grid_y > 65535 || grid_z > 65535 || grid_x > 0x7fffffff || block_x > 1024;
    if (is_empty || is_too_large || block_y != 1 || block_z != 1 || shared_bytes != 0) {
        return INVALID_VALUE;
    }
    auto& [name, kernel] = *static_cast<const std::pair<const std::string, Kernel>*>(function);
    uint3 grid{grid_x, grid_y, grid_z};
    return emulated_put(stream, [&name = name, grid, block_x, thread = kernel(arguments)] {
        run_kernel(name, grid, block_x, thread);
    });
}
}
