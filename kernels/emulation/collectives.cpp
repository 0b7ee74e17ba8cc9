// Stands in for NCCL (libnccl.so.2) between emulated GPUs: what src/cuda/nccl calls of it.
//
// Contract: the ranks of a group are threads of one process. A collective is work of a stream that
// waits until all ranks of the group have come to theirs; the last to come does it for all. Sums are
// in f32 (f64 for f64), in the order of the ranks, rounded once. Ranks whose calls do not fit together
// get an error. An aborted rank waits no more; others wait for it until they are aborted too. Left
// out: several processes, captured streams, everything that src/cuda does not call.
#include "cuda.h"
#include "driver.h"

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

enum { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum { F16 = 6, F32 = 7, F64 = 8, BF16 = 9 };  // ncclDataType_t
enum class Kind { AllReduce, ReduceScatter, AllGather, Reduce, Broadcast };

// One rank's call.
struct Call {
    Kind kind;
    int type, root;
    size_t count;
    const char* from;
    char* to;
};

struct Group {
    explicit Group(int size) : size(size), calls(size), is_aborted(size) {}

    const int size;
    std::mutex lock;
    std::condition_variable change;
    int joined = 0, arrived = 0;
    size_t finished = 0;  // collectives so far
    bool is_misused = false;
    std::vector<Call> calls;  // of the collective under way, by rank
    std::vector<bool> is_aborted;
};

struct Communicator {
    std::shared_ptr<Group> group;
    int rank;
};

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

// The sum over the ranks of `count` numbers, `skip` of them on.
std::vector<char> sum(const std::vector<Call>& calls, size_t skip) {
    auto [type, count] = std::pair(calls[0].type, calls[0].count);
    std::vector<char> sums(count * bytes_of(type));
    for (size_t i = 0; i < count; i++) {
        double sum = 0;
        for (const Call& call : calls) {
            double next = sum + read(type, call.from, skip + i);
            sum = type == F64 ? next : float(next);
        }
        write(type, sums.data(), i, sum);
    }
    return sums;
}

bool fit_together(const std::vector<Call>& calls) {
    const Call& first = calls[0];
    for (const Call& call : calls) {
        if (call.kind != first.kind || call.type != first.type || call.root != first.root ||
            call.count != first.count) {
            return false;
        }
    }
    return true;
}

void perform(const std::vector<Call>& calls) {
    const Call& first = calls[0];
    size_t bytes = first.count * bytes_of(first.type);
    switch (first.kind) {
    case Kind::AllReduce: {
        auto sums = sum(calls, 0);
        for (const Call& call : calls) memcpy(call.to, sums.data(), bytes);
        break;
    }
    case Kind::ReduceScatter: {
        // All sums before any result, which may lie where another sum begins.
        std::vector<std::vector<char>> pieces;
        for (size_t rank = 0; rank < calls.size(); rank++) pieces.push_back(sum(calls, rank * first.count));
        for (size_t rank = 0; rank < calls.size(); rank++) memcpy(calls[rank].to, pieces[rank].data(), bytes);
        break;
    }
    case Kind::AllGather:
        for (const Call& call : calls) {
            for (size_t rank = 0; rank < calls.size(); rank++) {
                memmove(call.to + rank * bytes, calls[rank].from, bytes);
            }
        }
        break;
    case Kind::Reduce: {
        auto sums = sum(calls, 0);
        memcpy(calls[first.root].to, sums.data(), bytes);
        break;
    }
    case Kind::Broadcast:
        for (const Call& call : calls) memmove(call.to, calls[first.root].from, bytes);
        break;
    }
}

// Meets the other ranks in a collective.
void meet(Group& group, int rank, const Call& call) {
    std::unique_lock guard(group.lock);
    if (group.is_misused || group.is_aborted[rank]) return;
    group.calls[rank] = call;
    size_t number = group.finished;
    if (++group.arrived < group.size) {
        group.change.wait(guard, [&] { return group.finished > number || group.is_aborted[rank]; });
        if (group.finished == number) group.arrived--;
        return;
    }
    group.is_misused = !fit_together(group.calls);
    if (group.is_misused) fprintf(stderr, "emulated NCCL: the calls of the ranks do not fit together\n");
    else perform(group.calls);
    group.arrived = 0;
    group.finished++;
    group.change.notify_all();
}

int put(void* at, void* stream, const Call& call) {
    auto& [group, rank] = *static_cast<Communicator*>(at);
    if (call.type < F16 || call.type > BF16) return INVALID_ARGUMENT;
    Work work = [group = group, rank = rank, call] { meet(*group, rank, call); };
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
    snprintf(id->bytes, sizeof id->bytes, "emulated %d %d", int(getpid()), ++count);
    return SUCCESS;
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
    static std::mutex lock;
    static std::map<std::string, std::weak_ptr<Group>> groups;
    if (rank < 0 || rank >= size) return INVALID_ARGUMENT;
    std::lock_guard guard(lock);
    auto& known = groups[std::string(id.bytes, sizeof id.bytes)];
    auto group = known.lock();
    if (!group) known = group = std::make_shared<Group>(size);
    if (group->size != size) return INVALID_ARGUMENT;
    std::lock_guard group_guard(group->lock);
    group->joined++;
    return *communicator = new Communicator{group, rank}, IN_PROGRESS;
}

int ncclCommGetAsyncError(void* communicator, int* error) {
    Group& group = *static_cast<Communicator*>(communicator)->group;
    std::lock_guard guard(group.lock);
    *error = group.is_misused ? INVALID_USAGE : group.joined < group.size ? IN_PROGRESS : SUCCESS;
    return SUCCESS;
}

int ncclCommAbort(void* at) {
    auto communicator = static_cast<Communicator*>(at);
    {
        std::lock_guard guard(communicator->group->lock);
        communicator->group->is_aborted[communicator->rank] = true;
        communicator->group->change.notify_all();
    }
    return delete communicator, SUCCESS;
}
int ncclCommDestroy(void* communicator) {
    return delete static_cast<Communicator*>(communicator), SUCCESS;
}

// What is called in between is put in streams one after another, which is as good.
int ncclGroupStart() { return SUCCESS; }
int ncclGroupEnd() { return SUCCESS; }

// The only reduction that is asked for is a sum.
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
