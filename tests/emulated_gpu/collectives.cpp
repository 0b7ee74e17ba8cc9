// Stands in for NCCL (libnccl.so.2) between emulated GPUs: the functions that src/cuda/nccl calls.
//
// Contract: the ranks of a group are threads of one or of several processes on this machine. They
// share a file of /tmp that their identifier names. A collective is work of a stream that waits
// until all ranks of the group have come to theirs; each then reads the numbers of the others that
// it needs. Sums are f32 (f64 for f64), in rank order, rounded once. Ranks whose calls do not fit
// together get an error. An aborted rank waits no more; others wait for it until they are aborted
// too. Left out: captured streams, and everything that src/cuda does not call.
#include "cuda.h"
#include "driver.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

enum { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum { F16 = 6, F32 = 7, F64 = 8, BF16 = 9 };  // ncclDataType_t
enum class Kind { AllReduce, ReduceScatter, AllGather, Reduce, Broadcast };

constexpr int MOST_RANKS = 16;
// A rank can bring so many bytes to a collective: a bucket of f32. Memory that nobody writes costs
// nothing.
constexpr size_t MOST_BYTES = size_t(64) << 20;

// The call that one rank makes.
struct Call {
    Kind kind;
    int type, root;
    size_t count;
    const char* from;
    char* to;
};

// The ranks share this; it is all zeros at first.
struct Group {
    std::atomic<int> size, joined;
    std::atomic<bool> is_misused;
    // Counts how many ranks have brought their numbers to a collective, and have taken the others',
    // since the first collective.
    std::atomic<size_t> arrived, left;
    Call calls[MOST_RANKS];  // of the collective under way, by rank
    char numbers[MOST_RANKS][MOST_BYTES];
};

// One rank's membership; its queued work keeps it.
struct End {
    Group* group;
    int rank;
    size_t finished = 0;  // collectives so far
    std::atomic<bool> is_aborted = false;

    ~End() { munmap(group, sizeof *group); }
};

using Communicator = std::shared_ptr<End>;

size_t bytes_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

double read(int type, const char* from, size_t i) {
    if (type == F64) return ((const double*)from)[i];
    if (type == F32) return ((const float*)from)[i];
    if (type == F16) return __half2float(((const __half*)from)[i]);
    return __bfloat162float(((const __nv_bfloat16*)from)[i]);
}

void write(int type, char* to, size_t i, double value) {
    if (type == F64) ((double*)to)[i] = value;
    else if (type == F32) ((float*)to)[i] = float(value);
    else if (type == F16) ((__half*)to)[i] = __float2half_rn(float(value));
    else ((__nv_bfloat16*)to)[i] = __float2bfloat16_rn(float(value));
}

// Sums `count` numbers over the ranks, beginning with number `skip`.
void sum(const Group& group, const Call& call, size_t skip) {
    for (size_t i = 0; i < call.count; i++) {
        double sum = 0;
        for (int rank = 0; rank < group.size; rank++) {
            double next = sum + read(call.type, group.numbers[rank], skip + i);
            sum = call.type == F64 ? next : float(next);
        }
        write(call.type, call.to, i, sum);
    }
}

bool fit_together(const Group& group) {
    const Call& first = group.calls[0];
    for (int rank = 1; rank < group.size; rank++) {
        const Call& call = group.calls[rank];
        if (call.kind != first.kind || call.type != first.type || call.root != first.root ||
            call.count != first.count) {
            return false;
        }
    }
    return true;
}

// Returns how many elements a rank brings.
size_t brought(const Group& group, int rank, const Call& call) {
    if (call.kind == Kind::ReduceScatter) return call.count * group.size;
    return call.kind == Kind::Broadcast && rank != call.root ? 0 : call.count;
}

void take(const Group& group, int rank, const Call& call) {
    size_t bytes = call.count * bytes_of(call.type);
    switch (call.kind) {
    case Kind::AllReduce: return sum(group, call, 0);
    case Kind::ReduceScatter: return sum(group, call, rank * call.count);
    case Kind::AllGather:
        for (int from = 0; from < group.size; from++) memcpy(call.to + from * bytes, group.numbers[from], bytes);
        return;
    case Kind::Reduce:
        if (rank == call.root) sum(group, call, 0);
        return;
    case Kind::Broadcast: memcpy(call.to, group.numbers[call.root], bytes); return;
    }
}

// Waits until `count` is at least `least`. Returns false if the rank was aborted.
bool wait_for(const End& end, const std::atomic<size_t>& count, size_t least) {
    while (count < least && !end.is_aborted) std::this_thread::sleep_for(std::chrono::microseconds(50));
    return !end.is_aborted;
}

// Meets the other ranks in a collective.
void meet(End& end, const Call& call) {
    Group& group = *end.group;
    if (group.is_misused || !wait_for(end, group.left, end.finished * group.size)) return;
    group.calls[end.rank] = call;
    memcpy(group.numbers[end.rank], call.from, brought(group, end.rank, call) * bytes_of(call.type));
    end.finished++;
    group.arrived++;
    if (!wait_for(end, group.arrived, end.finished * group.size)) return;
    if (fit_together(group)) {
        take(group, end.rank, call);
    } else if (!group.is_misused.exchange(true)) {
        fprintf(stderr, "emulated NCCL: the calls of the ranks do not fit together\n");
    }
    group.left++;
}

int put(void* at, void* stream, const Call& call) {
    Communicator end = *static_cast<Communicator*>(at);
    if (call.type < F16 || call.type > BF16) return INVALID_ARGUMENT;
    if (brought(*end->group, end->rank, call) * bytes_of(call.type) > MOST_BYTES) return INVALID_ARGUMENT;
    Work work = [end, call] { meet(*end, call); };
    if (emulated_put(stream, work) != 0) return UNHANDLED_CUDA_ERROR;
    // The other ranks wait for this one, whether or not its host does.
    return emulated_run(stream), SUCCESS;
}

}  // namespace

struct UniqueId {
    char bytes[128];
};

extern "C" {

int ncclGetVersion(int* version) { return *version = 22703, SUCCESS; }

int ncclGetUniqueId(UniqueId* id) {
    static std::atomic<int> count;
    *id = {};
    snprintf(id->bytes, sizeof id->bytes, "/tmp/emulated-nccl-%d-%d", int(getpid()), ++count);
    int file = open(id->bytes, O_RDWR | O_CREAT | O_EXCL, 0600);
    bool is_made = file >= 0 && ftruncate(file, sizeof(Group)) == 0;
    close(file);
    return is_made ? SUCCESS : UNHANDLED_CUDA_ERROR;
}

const char* ncclGetErrorString(int error) {
    switch (error) {
    case SUCCESS: return "no error";
    case UNHANDLED_CUDA_ERROR: return "unhandled cuda error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    default: return "an error";
    }
}

int ncclCommInitRankConfig(void** communicator, int size, UniqueId id, int rank, void*) {
    if (size > MOST_RANKS || rank < 0 || rank >= size) return INVALID_ARGUMENT;
    int file = open(id.bytes, O_RDWR);
    void* start = mmap(nullptr, sizeof(Group), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (start == MAP_FAILED) return INVALID_ARGUMENT;
    auto group = static_cast<Group*>(start);
    int expected = 0;
    bool is_first = group->size.compare_exchange_strong(expected, size);
    if (!is_first && expected != size) return munmap(start, sizeof(Group)), INVALID_ARGUMENT;
    *communicator = new Communicator(new End{group, rank});
    // Nobody needs to find the file any more.
    if (++group->joined == size) unlink(id.bytes);
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(void* communicator, int* error) {
    const Group& group = *(*static_cast<Communicator*>(communicator))->group;
    *error = group.is_misused ? INVALID_USAGE : group.joined < group.size ? IN_PROGRESS : SUCCESS;
    return SUCCESS;
}

int ncclCommAbort(void* at) {
    auto communicator = static_cast<Communicator*>(at);
    (*communicator)->is_aborted = true;
    return delete communicator, SUCCESS;
}
int ncclCommDestroy(void* communicator) {
    return delete static_cast<Communicator*>(communicator), SUCCESS;
}

// Calls between start and end go to streams one after the other, which has the same effect.
int ncclGroupStart() { return SUCCESS; }
int ncclGroupEnd() { return SUCCESS; }

// src/cuda asks for no other reduction than a sum.
int ncclAllReduce(const void* from, void* to, size_t count, int type, int, void* communicator, void* stream) {
    return put(communicator, stream, {Kind::AllReduce, type, 0, count, (const char*)from, (char*)to});
}
int ncclReduceScatter(const void* from, void* to, size_t count, int type, int, void* communicator, void* stream) {
    return put(communicator, stream, {Kind::ReduceScatter, type, 0, count, (const char*)from, (char*)to});
}
int ncclAllGather(const void* from, void* to, size_t count, int type, void* communicator, void* stream) {
    return put(communicator, stream, {Kind::AllGather, type, 0, count, (const char*)from, (char*)to});
}
int ncclReduce(const void* from, void* to, size_t count, int type, int, int root, void* communicator,
               void* stream) {
    return put(communicator, stream, {Kind::Reduce, type, root, count, (const char*)from, (char*)to});
}
int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, void* communicator,
                  void* stream) {
    return put(communicator, stream, {Kind::Broadcast, type, root, count, (const char*)from, (char*)to});
}
}
