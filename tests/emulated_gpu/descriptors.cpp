// Stands in for cuDNN (libcudnn.so.9) on the emulated driver: the functions that src/cuda/cudnn
// calls.
//
// Contract: descriptors take the attributes of cudnn_graph.h, with its types and counts, before
// they are finalized; a descriptor refers only to finalized ones. A plan keeps its graph, which
// interpreter.cpp runs, operation by operation, as work of the handle's stream. Scalars that are
// bound by value are read when the plan is executed; integers that are bound as tensors are read
// when it runs. This shows that our graphs, their bindings and their layout of memory compute
// attention by the semantics that the header and NVIDIA's front end document. It shows nothing of
// engines or their speed: it takes any graph of these operations, and the real library may read its
// documentation differently. Left out: described devices, and everything that src/cuda does not
// call.
#include "attributes.h"
#include "driver.h"
#include "graphs.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>

extern "C" int cuCtxGetCurrent(void** context);

namespace {

constexpr size_t VERSION = 92700;
constexpr int64_t ENGINES = 7, OFFERED = 2;  // numbers of engines, and the one that is ranked best

struct Descriptor {
    int kind;
    bool is_final = false;
    std::map<int, std::vector<char>> values;
    std::map<int, std::vector<std::shared_ptr<const Descriptor>>> parts;  // instead, where they are descriptors
    // A finalized descriptor was made into one of these.
    TensorPtr tensor;
    Operation operation;
    std::shared_ptr<const Graph> graph;

    template <class T> std::vector<T> all(int attribute) const {
        std::vector<T> found;
        auto place = values.find(attribute);
        if (place == values.end()) return found;
        found.resize(place->second.size() / sizeof(T));
        memcpy(found.data(), place->second.data(), place->second.size());
        return found;
    }
    // Returns one value; it is zero where the attribute is not set.
    template <class T> T get(int attribute) const {
        auto found = all<T>(attribute);
        return found.empty() ? T() : found[0];
    }
    const Descriptor* part(int attribute) const {
        auto place = parts.find(attribute);
        return place == parts.end() ? nullptr : place->second[0].get();
    }
    TensorPtr tensor_at(int attribute) const { return part(attribute) ? part(attribute)->tensor : nullptr; }

    bool is_operation() const {
        return kind == OPERATION_POINTWISE || kind == OPERATION_MATMUL || kind == OPERATION_REDUCTION ||
               kind == OPERATION_RESHAPE;
    }
};
using Pointer = std::shared_ptr<Descriptor>;

struct Handle {
    void* stream = nullptr;
};

std::mutex lock;  // of what follows
std::map<void*, Pointer> descriptors;
std::set<void*> handles;
thread_local std::string last_error;

Pointer find(void* at) {
    std::lock_guard guard(lock);
    auto place = descriptors.find(at);
    require(place != descriptors.end(), BAD_PARAM, "this is no descriptor");
    return place->second;
}

Handle& find_handle(void* at) {
    std::lock_guard guard(lock);
    require(handles.contains(at), BAD_PARAM, "this is no handle");
    return *static_cast<Handle*>(at);
}

const Rule& rule(int kind, int attribute) {
    for (const Rule& rule : RULES) {
        if (rule.kind == kind && rule.attribute == attribute) return rule;
    }
    throw Refusal{NOT_SUPPORTED,
                  "kind " + std::to_string(kind) + " has no attribute " + std::to_string(attribute)};
}

// Returns what `work` returns, or the status of its refusal, whose words it keeps.
template <class Work> int guarded(Work work) {
    try {
        return work(), SUCCESS;
    } catch (const Refusal& refusal) {
        last_error = refusal.reason;
        return refusal.status;
    }
}

Shape shape(const Descriptor& from, int attribute) {
    auto values = from.all<int64_t>(attribute);
    Shape shape;
    for (int axis = 0; axis < 4; axis++) {
        require(values[axis] > 0, BAD_PARAM, "a size or stride that is not positive");
        shape[axis] = values[axis];
    }
    return shape;
}

bool is_one_of(int64_t value, std::initializer_list<int64_t> known) {
    return std::find(known.begin(), known.end(), value) != known.end();
}

TensorPtr make_tensor(const Descriptor& from) {
    Tensor tensor;
    tensor.id = from.get<int64_t>(attribute::TENSOR_UNIQUE_ID);
    tensor.type = from.get<int>(attribute::TENSOR_DATA_TYPE);
    tensor.alignment = from.get<int64_t>(attribute::TENSOR_BYTE_ALIGNMENT);
    tensor.dims = shape(from, attribute::TENSOR_DIMENSIONS);
    tensor.strides = shape(from, attribute::TENSOR_STRIDES);
    tensor.is_virtual = from.get<char>(attribute::TENSOR_IS_VIRTUAL) != 0;
    tensor.is_by_value = from.get<char>(attribute::TENSOR_IS_BY_VALUE) != 0;
    tensor.offsets = from.tensor_at(attribute::TENSOR_RAGGED_OFFSET);
    bool is_known = is_one_of(tensor.type, {FLOAT, HALF, INT32, BFLOAT16, BOOLEAN});
    require(is_known, NOT_SUPPORTED, "a data type that the emulation does not know");
    bool is_aligned = tensor.alignment > 0 && tensor.alignment % int64_t(bytes_of(tensor.type)) == 0;
    require(is_aligned, BAD_PARAM, "an alignment of no multiple of the type's size");
    bool is_value = tensor.type == FLOAT && tensor.dims == Shape{1, 1, 1, 1} && !tensor.is_virtual;
    require(!tensor.is_by_value || is_value, NOT_SUPPORTED, "by value is one f32 alone");
    if (tensor.offsets) {
        Shape one_more{tensor.dims[0] + 1, 1, 1, 1};
        bool has_offsets = tensor.offsets->type == INT32 && tensor.offsets->dims == one_more;
        require(has_offsets, BAD_PARAM, "offsets are an integer for each entry of the batch and its end");
    }
    return std::make_shared<const Tensor>(tensor);
}

Operation make_pointwise(const Descriptor& from) {
    const Descriptor& setting = *from.part(attribute::POINTWISE_DESC);
    Operation operation;
    operation.what = Operation::POINTWISE;
    operation.mode = setting.get<int>(attribute::POINTWISE_MODE);
    auto axis = setting.all<int64_t>(attribute::POINTWISE_AXIS);
    if (!axis.empty()) operation.axis = axis[0];
    operation.x = from.tensor_at(attribute::POINTWISE_X);
    operation.b = from.tensor_at(attribute::POINTWISE_B);
    operation.t = from.tensor_at(attribute::POINTWISE_T);
    operation.y = from.tensor_at(attribute::POINTWISE_Y);
    bool is_unary = is_one_of(operation.mode, {EXP, LOG, IDENTITY, GEN_INDEX});
    bool has_inputs = !operation.b == is_unary && !operation.t == (operation.mode != BINARY_SELECT);
    require(has_inputs, BAD_PARAM, "too few or too many inputs of a pointwise operation");
    return operation;
}

Operation make_product(const Descriptor& from) {
    Operation operation;
    operation.what = Operation::MATMUL;
    operation.x = from.tensor_at(attribute::MATMUL_A);
    operation.b = from.tensor_at(attribute::MATMUL_B);
    operation.y = from.tensor_at(attribute::MATMUL_C);
    operation.m = from.tensor_at(attribute::MATMUL_M_OVERRIDE);
    operation.n = from.tensor_at(attribute::MATMUL_N_OVERRIDE);
    operation.k = from.tensor_at(attribute::MATMUL_K_OVERRIDE);
    return operation;
}

Operation make_reduction(const Descriptor& from) {
    Operation operation;
    operation.what = Operation::REDUCTION;
    operation.mode = from.part(attribute::REDUCTION_DESC)->get<int>(attribute::REDUCTION_OPERATOR);
    operation.x = from.tensor_at(attribute::REDUCTION_X);
    operation.y = from.tensor_at(attribute::REDUCTION_Y);
    return operation;
}

Operation make_reshape(const Descriptor& from) {
    Operation operation;
    operation.what = Operation::RESHAPE;
    operation.x = from.tensor_at(attribute::RESHAPE_X);
    operation.y = from.tensor_at(attribute::RESHAPE_Y);
    return operation;
}

void check_pointwise_setting(const Descriptor& setting) {
    bool is_known = is_one_of(setting.get<int>(attribute::POINTWISE_MODE),
                              {ADD, MUL, DIV, SUB, EXP, LOG, IDENTITY, CMP_GE, CMP_LT, LOGICAL_AND,
                               GEN_INDEX, BINARY_SELECT});
    bool has_type = is_one_of(setting.get<int>(attribute::POINTWISE_MATH_PREC), {FLOAT, INT32, BOOLEAN});
    require(is_known && has_type, NOT_SUPPORTED, "a pointwise mode or type that the emulation does not know");
}

void check_reduction_setting(const Descriptor& setting) {
    bool is_known = is_one_of(setting.get<int>(attribute::REDUCTION_OPERATOR), {REDUCE_ADD, REDUCE_MAX});
    bool has_type = setting.get<int>(attribute::REDUCTION_COMP_TYPE) == FLOAT;
    require(is_known && has_type, NOT_SUPPORTED, "a reduction or type that the emulation does not know");
}

void check_product_setting(const Descriptor& setting) {
    bool has_type = setting.get<int>(attribute::MATMUL_COMP_TYPE) == FLOAT;
    require(has_type, NOT_SUPPORTED, "a type of a product that the emulation does not know");
}

void check_engine(const Descriptor& engine) {
    int64_t number = engine.get<int64_t>(attribute::ENGINE_GLOBAL_INDEX);
    require(number >= 0 && number < ENGINES, NOT_SUPPORTED, "there is no such engine");
}

void check_pack(const Descriptor& pack) {
    size_t ids = pack.all<int64_t>(attribute::VARIANT_PACK_UNIQUE_IDS).size();
    size_t pointers = pack.all<void*>(attribute::VARIANT_PACK_DATA_POINTERS).size();
    require(ids == pointers, BAD_PARAM, "not as many identifiers as pointers");
}

std::shared_ptr<const Graph> make_graph(const Descriptor& from) {
    find_handle(from.get<void*>(attribute::OPERATIONGRAPH_HANDLE));
    std::vector<Operation> operations;
    for (auto& part : from.parts.at(attribute::OPERATIONGRAPH_OPS)) operations.push_back(part->operation);
    return std::make_shared<const Graph>(std::move(operations));
}

void finalize(Descriptor& descriptor) {
    for (const Rule& rule : RULES) {
        bool is_set = descriptor.values.contains(rule.attribute) || descriptor.parts.contains(rule.attribute);
        bool is_missing = rule.kind == descriptor.kind && rule.least > 0 && !is_set;
        require(!is_missing, BAD_PARAM, "attribute " + std::to_string(rule.attribute) + " is not set");
    }
    switch (descriptor.kind) {
    case TENSOR: descriptor.tensor = make_tensor(descriptor); break;
    case POINTWISE: check_pointwise_setting(descriptor); break;
    case REDUCTION: check_reduction_setting(descriptor); break;
    case MATMUL: check_product_setting(descriptor); break;
    case OPERATION_POINTWISE: descriptor.operation = make_pointwise(descriptor); break;
    case OPERATION_MATMUL: descriptor.operation = make_product(descriptor); break;
    case OPERATION_REDUCTION: descriptor.operation = make_reduction(descriptor); break;
    case OPERATION_RESHAPE: descriptor.operation = make_reshape(descriptor); break;
    case OPERATION_GRAPH: descriptor.graph = make_graph(descriptor); break;
    case ENGINE: check_engine(descriptor); break;
    case PLAN: find_handle(descriptor.get<void*>(attribute::EXECUTION_PLAN_HANDLE)); break;
    case VARIANT_PACK: check_pack(descriptor); break;
    }
    if (descriptor.is_operation()) check(descriptor.operation);
    descriptor.is_final = true;
}

void set(Descriptor& descriptor, int attribute, int type, int64_t count, const void* from) {
    const Rule& known = rule(descriptor.kind, attribute);
    require(!descriptor.is_final, BAD_PARAM, "the descriptor is finalized");
    require(type == known.type, WRONG_TYPE, "attribute " + std::to_string(attribute) + " has another type");
    require(count >= known.least && count <= known.most, BAD_PARAM, "a wrong number of values");
    require(from || count == 0, NULL_POINTER, "no values");
    if (type != type::DESCRIPTOR) {
        auto bytes = static_cast<const char*>(from);
        descriptor.values[attribute].assign(bytes, bytes + count * size_of(type));
        return;
    }
    std::vector<std::shared_ptr<const Descriptor>> parts;
    for (int64_t i = 0; i < count; i++) {
        auto part = find(static_cast<void* const*>(from)[i]);
        bool is_right = known.of == ANY_OPERATION ? part->is_operation() : part->kind == known.of;
        require(is_right, WRONG_KIND, "attribute " + std::to_string(attribute) + " is of another kind");
        require(part->is_final, NOT_FINALIZED, "a part is not finalized");
        parts.push_back(part);
    }
    if (count > 0) descriptor.parts[attribute] = parts;
}

// Offers the one configuration that there is.
void offer(const Descriptor& heuristics, Descriptor& to) {
    auto engine = std::make_shared<Descriptor>(ENGINE);
    auto& graph = heuristics.parts.at(attribute::ENGINEHEUR_OPERATION_GRAPH);
    engine->parts[attribute::ENGINE_OPERATION_GRAPH] = graph;
    engine->values[attribute::ENGINE_GLOBAL_INDEX].assign((const char*)&OFFERED, (const char*)(&OFFERED + 1));
    finalize(*engine);
    to.parts[attribute::ENGINECFG_ENGINE] = {engine};
    finalize(to);
}

// Returns the descriptor that is to be filled.
Descriptor& empty(void* const* at, int type, int kind) {
    Pointer found = find(*at);
    bool is_empty = type == type::DESCRIPTOR && found->kind == kind && !found->is_final;
    require(is_empty, WRONG_KIND, "an unfinished descriptor of kind " + std::to_string(kind) + " is filled");
    return *found;
}

void get(const Descriptor& from, int attribute, int type, int64_t room, int64_t* count, void* to) {
    require(from.is_final, NOT_FINALIZED, "the descriptor is not finalized");
    *count = 1;
    if (room == 0) return;
    auto number = [&](int64_t value) {
        require(type == type::INT64, WRONG_TYPE, "an integer is read as something else");
        *static_cast<int64_t*>(to) = value;
    };
    auto at = static_cast<void* const*>(to);
    if (from.kind == HEURISTICS && attribute == attribute::ENGINEHEUR_RESULTS) {
        offer(from, empty(at, type, ENGINE_CONFIG));
    } else if (from.kind == ENGINE_CONFIG && attribute == attribute::ENGINECFG_ENGINE) {
        empty(at, type, ENGINE) = *from.part(attribute);
    } else if (from.kind == PLAN && attribute == attribute::EXECUTION_PLAN_WORKSPACE_SIZE) {
        number(WORKSPACE_BYTES);
    } else if (from.kind == ENGINE && attribute == attribute::ENGINE_GLOBAL_INDEX) {
        number(from.get<int64_t>(attribute));
    } else {
        throw Refusal{NOT_SUPPORTED, "attribute " + std::to_string(attribute) + " is not to be read"};
    }
}

Bindings bind(const Graph& graph, const Descriptor& pack) {
    Bindings bindings;
    auto ids = pack.all<int64_t>(attribute::VARIANT_PACK_UNIQUE_IDS);
    auto pointers = pack.all<char*>(attribute::VARIANT_PACK_DATA_POINTERS);
    for (size_t i = 0; i < ids.size(); i++) {
        std::string name = "tensor " + std::to_string(ids[i]);
        auto place = graph.bound().find(ids[i]);
        require(place != graph.bound().end(), BAD_PARAM, name + " is not of this graph");
        require(pointers[i], NULL_POINTER, name + " is bound to nothing");
        if (place->second->is_by_value) {
            memcpy(&bindings.scalars[ids[i]], pointers[i], sizeof(float));
            continue;
        }
        bool is_aligned = size_t(pointers[i]) % place->second->alignment == 0;
        require(is_aligned, MISALIGNED_POINTER, name + " is not aligned");
        bindings.memory[ids[i]] = pointers[i];
    }
    bindings.workspace = pack.get<char*>(attribute::VARIANT_PACK_WORKSPACE);
    require(bindings.workspace, NULL_POINTER, "no workspace");
    for (auto& [id, tensor] : graph.bound()) {
        bool is_bound = bindings.memory.contains(id) || bindings.scalars.contains(id);
        require(is_bound, BAD_PARAM, "tensor " + std::to_string(id) + " is not bound");
    }
    return bindings;
}

void execute(Handle& handle, const Descriptor& plan, const Descriptor& pack) {
    require(plan.kind == PLAN && pack.kind == VARIANT_PACK, WRONG_KIND, "no plan, or no pack");
    require(plan.is_final && pack.is_final, NOT_FINALIZED, "plan or pack are not finalized");
    const Descriptor* config = plan.part(attribute::EXECUTION_PLAN_ENGINE_CONFIG);
    auto graph = config->part(attribute::ENGINECFG_ENGINE)->part(attribute::ENGINE_OPERATION_GRAPH)->graph;
    auto work = [graph, bindings = bind(*graph, pack)] {
        try {
            graph->run(bindings);
        } catch (const std::string& reason) {
            fprintf(stderr, "emulated cuDNN: %s\n", reason.c_str());
        }
    };
    require(emulated_put(handle.stream, work) == 0, EXECUTION_FAILED, "the device has failed before");
}

}  // namespace

extern "C" {

size_t cudnnGetVersion() { return VERSION; }

const char* cudnnGetErrorString(int status) {
    switch (status) {
    case SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUDNN_STATUS_NOT_INITIALIZED";
    case NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case EXECUTION_FAILED: return "CUDNN_STATUS_EXECUTION_FAILED";
    default: return "CUDNN_STATUS_BAD_PARAM";
    }
}
void cudnnGetLastErrorString(char* to, size_t room) {
    snprintf(to, room, "%s", last_error.c_str());
    last_error.clear();
}

int cudnnCreate(void** handle) {
    return guarded([&] {
        void* context = nullptr;
        require(cuCtxGetCurrent(&context) == 0 && context, NOT_INITIALIZED, "no device is bound");
        std::lock_guard guard(lock);
        handles.insert(*handle = new Handle);
    });
}
int cudnnDestroy(void* at) {
    return guarded([&] {
        Handle* handle = &find_handle(at);
        std::lock_guard guard(lock);
        handles.erase(at);
        delete handle;
    });
}
int cudnnSetStream(void* handle, void* stream) {
    return guarded([&] { find_handle(handle).stream = stream; });
}

int cudnnBackendCreateDescriptor(int kind, void** to) {
    return guarded([&] {
        bool is_kind = false;
        for (const Rule& rule : RULES) is_kind |= rule.kind == kind;
        require(is_kind, NOT_SUPPORTED, "the emulation has no descriptors of kind " + std::to_string(kind));
        auto descriptor = std::make_shared<Descriptor>(kind);
        std::lock_guard guard(lock);
        descriptors[*to = descriptor.get()] = descriptor;
    });
}
int cudnnBackendDestroyDescriptor(void* at) {
    return guarded([&] {
        find(at);
        std::lock_guard guard(lock);
        descriptors.erase(at);
    });
}
int cudnnBackendFinalize(void* at) {
    return guarded([&] {
        Pointer descriptor = find(at);
        require(!descriptor->is_final, BAD_PARAM, "the descriptor is finalized");
        finalize(*descriptor);
    });
}
int cudnnBackendSetAttribute(void* at, int attribute, int type, int64_t count, const void* from) {
    return guarded([&] { set(*find(at), attribute, type, count, from); });
}
int cudnnBackendGetAttribute(void* at, int attribute, int type, int64_t room, int64_t* count, void* to) {
    return guarded([&] { get(*find(at), attribute, type, room, count, to); });
}
int cudnnBackendExecute(void* handle, void* plan, void* pack) {
    return guarded([&] { execute(find_handle(handle), *find(plan), *find(pack)); });
}
}
