// This file runs graphs of operations on the CPU, one operation after the other, over all entries
// of the batch.
//
// Contract: an operation's results are rounded to the type that its tensor declares, in memory and
// in between; sums are f32, in order. Elements beyond the length of an entry are padding. Padding
// reads as NaN, is computed up to the end of a tile as engines do, and is never written to memory,
// so a graph has to mask it.
#include "graphs.h"

#include "cuda.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr int64_t TILE = 16;  // elements

float widen(int type, const char* from) {
    switch (type) {
    case HALF: return __half2float(*(const __half*)from);
    case BFLOAT16: return __bfloat162float(*(const __nv_bfloat16*)from);
    case INT32: return float(*(const int32_t*)from);
    case BOOLEAN: return float(*from != 0);
    default: return *(const float*)from;
    }
}

void narrow(int type, float value, char* to) {
    switch (type) {
    case HALF: *(__half*)to = __float2half_rn(value); break;
    case BFLOAT16: *(__nv_bfloat16*)to = __float2bfloat16_rn(value); break;
    case INT32: *(int32_t*)to = int32_t(value); break;
    case BOOLEAN: *to = value != 0; break;
    default: *(float*)to = value;
    }
}

float rounded(int type, float value) {
    char bytes[sizeof(float)];
    narrow(type, value, bytes);
    return widen(type, bytes);
}

// These are heads, rows and columns of one entry of the batch.
using Part = std::array<int64_t, 3>;

template <class Visit> void each(const Part& part, Visit visit) {
    for (int64_t head = 0; head < part[0]; head++) {
        for (int64_t row = 0; row < part[1]; row++) {
            for (int64_t column = 0; column < part[2]; column++) visit(head, row, column);
        }
    }
}

// The numbers of one entry.
struct Block {
    Part part;
    std::vector<float> numbers;

    explicit Block(Part part, float start = NAN) : part(part), numbers(part[0] * part[1] * part[2], start) {}

    float& at(int64_t head, int64_t row, int64_t column) {
        return numbers[(head * part[1] + row) * part[2] + column];
    }
    // A dimension with one element has that element everywhere.
    float spread(int64_t head, int64_t row, int64_t column) {
        return at(part[0] == 1 ? 0 : head, part[1] == 1 ? 0 : row, part[2] == 1 ? 0 : column);
    }
};

float apply(int mode, float x, float b, float t) {
    switch (mode) {
    case ADD: return x + b;
    case SUB: return x - b;
    case MUL: return x * b;
    case DIV: return x / b;
    case EXP: return expf(x);
    case LOG: return logf(x);
    case CMP_GE: return x >= b;
    case CMP_LT: return x < b;
    case LOGICAL_AND: return x != 0 && b != 0;
    case BINARY_SELECT: return t != 0 ? x : b;
    default: return x;
    }
}

// The memory of a tensor.
struct Range {
    std::string what;
    char *start, *end;
    bool is_written;
};

// One execution of a graph.
class Run {
  public:
    Run(const Graph& graph, const Bindings& bindings) : graph(graph), bindings(bindings) {}

    // Memory that is written may overlap no other: what runs in sequence here runs at once in an
    // engine.
    void check_overlaps(const std::vector<Operation>& operations) const {
        char* end = bindings.workspace + WORKSPACE_BYTES;
        std::vector<Range> ranges{{"the workspace", bindings.workspace, end, true}};
        for (auto& [id, tensor] : graph.bound()) {
            auto writes = [&](const Operation& operation) { return operation.y == tensor; };
            bool is_written = std::any_of(operations.begin(), operations.end(), writes);
            if (!tensor->is_by_value) ranges.push_back(range(*tensor, is_written));
        }
        for (size_t i = 0; i < ranges.size(); i++) {
            for (size_t j = 0; j < i; j++) {
                const Range &a = ranges[i], &b = ranges[j];
                bool overlap = a.start < b.end && b.start < a.end && (a.is_written || b.is_written);
                if (overlap) throw a.what + " and " + b.what + " overlap";
            }
        }
    }

    void operate(const Operation& operation) {
        for (int64_t entry = 0; entry < operation.y->dims[0]; entry++) {
            store(*operation.y, entry, result(operation, entry));
        }
    }

  private:
    const Graph& graph;
    const Bindings& bindings;
    std::map<const Tensor*, std::map<int64_t, Block>> inside;  // virtual tensors

    // Returns the integer that is bound for an entry, which may be at most `most`.
    int64_t integer(const Tensor& tensor, int64_t entry, int64_t most) const {
        int64_t found = ((const int32_t*)bindings.memory.at(tensor.id))[entry * tensor.strides[0]];
        if (found < 0 || found > most) throw name(tensor) + " holds " + std::to_string(found);
        return found;
    }

    // Returns the part of an entry that is no padding.
    Part inner(const Tensor& tensor, int64_t entry) const {
        Part part;
        for (int axis = 1; axis < 4; axis++) {
            int64_t dim = tensor.dims[axis];
            const Tensor* lengths = graph.lengths(tensor, axis);
            part[axis - 1] = lengths ? integer(*lengths, entry, dim) : dim;
        }
        return part;
    }

    // Returns the part of an entry that is computed: where lengths differ, up to the end of the
    // tile behind the last element.
    Part outer(const Tensor& tensor, int64_t entry) const {
        Part part = inner(tensor, entry);
        for (int axis = 1; axis < 4; axis++) {
            int64_t tiles = part[axis - 1] / TILE + 1;
            if (graph.lengths(tensor, axis)) part[axis - 1] = std::min(tensor.dims[axis], tiles * TILE);
        }
        return part;
    }

    char* address(const Tensor& tensor, int64_t entry, int64_t head, int64_t row, int64_t column) const {
        const Shape& strides = tensor.strides;
        int64_t at = tensor.dims[0] == 1 ? 0 : entry * strides[0];
        if (tensor.offsets) at = integer(*tensor.offsets, entry, INT32_MAX) * graph.multiplier(tensor);
        at += head * strides[1] + row * strides[2] + column * strides[3];
        return bindings.memory.at(tensor.id) + at * int64_t(bytes_of(tensor.type));
    }

    // Returns the memory from the first to the last element that is no padding. Tensors that are
    // summed over heads may be as wide as f32: NVIDIA's front end reserves that much, whatever
    // their type.
    Range range(const Tensor& tensor, bool is_written) const {
        Range range{name(tensor), nullptr, nullptr, is_written};
        for (int64_t entry = 0; entry < tensor.dims[0]; entry++) {
            Part part = inner(tensor, entry);
            if (part[0] * part[1] * part[2] == 0) continue;
            char* start = address(tensor, entry, 0, 0, 0);
            char* last = address(tensor, entry, part[0] - 1, part[1] - 1, part[2] - 1);
            range.start = range.start ? std::min(range.start, start) : start;
            range.end = std::max(range.end, last + bytes_of(tensor.type));
        }
        if (graph.multiplier(tensor) > 1) range.end += range.end - range.start;
        return range;
    }

    // Visits every element of an entry that is no padding, with its address.
    template <class Visit> void each_in_memory(const Tensor& tensor, int64_t entry, Visit visit) const {
        char* start = address(tensor, entry, 0, 0, 0);
        each(inner(tensor, entry), [&](int64_t head, int64_t row, int64_t column) {
            const Shape& strides = tensor.strides;
            int64_t at = head * strides[1] + row * strides[2] + column * strides[3];
            visit(head, row, column, start + at * int64_t(bytes_of(tensor.type)));
        });
    }

    Block load(const Tensor& tensor, int64_t entry) {
        if (tensor.is_by_value) return Block({1, 1, 1}, bindings.scalars.at(tensor.id));
        if (tensor.is_virtual) return inside.at(&tensor).at(entry);
        Block block(outer(tensor, entry));
        each_in_memory(tensor, entry, [&](int64_t head, int64_t row, int64_t column, const char* from) {
            block.at(head, row, column) = widen(tensor.type, from);
        });
        return block;
    }

    void store(const Tensor& tensor, int64_t entry, Block block) {
        if (tensor.is_virtual) {
            for (float& number : block.numbers) number = rounded(tensor.type, number);
            inside[&tensor].insert_or_assign(entry, std::move(block));
            return;
        }
        each_in_memory(tensor, entry, [&](int64_t head, int64_t row, int64_t column, char* to) {
            narrow(tensor.type, block.at(head, row, column), to);
        });
    }

    Block result(const Operation& operation, int64_t entry) {
        switch (operation.what) {
        case Operation::POINTWISE: return pointwise(operation, entry);
        case Operation::MATMUL: return product(operation, entry);
        case Operation::REDUCTION: return reduction(operation, entry);
        default: return reshaped(operation, entry);
        }
    }

    Block pointwise(const Operation& operation, int64_t entry) {
        Block y(outer(*operation.y, entry)), none({1, 1, 1});
        Block x = load(*operation.x, entry);
        Block b = operation.b ? load(*operation.b, entry) : none;
        Block t = operation.t ? load(*operation.t, entry) : none;
        each(y.part, [&](int64_t head, int64_t row, int64_t column) {
            int64_t places[] = {entry, head, row, column};
            y.at(head, row, column) =
                operation.mode == GEN_INDEX
                    ? float(places[operation.axis])
                    : apply(operation.mode, x.spread(head, row, column), b.spread(head, row, column),
                            t.spread(head, row, column));
        });
        return y;
    }

    // A head of A or B serves as many neighbouring heads of C.
    Block product(const Operation& operation, int64_t entry) {
        Block a = load(*operation.x, entry), b = load(*operation.b, entry), c(outer(*operation.y, entry));
        int64_t of_a = c.part[0] / a.part[0], of_b = c.part[0] / b.part[0];
        int64_t depth = inner(*operation.x, entry)[2];
        each(inner(*operation.y, entry), [&](int64_t head, int64_t row, int64_t column) {
            float sum = 0;
            for (int64_t i = 0; i < depth; i++) {
                sum += a.at(head / of_a, row, i) * b.at(head / of_b, i, column);
            }
            c.at(head, row, column) = sum;
        });
        return c;
    }

    // A NaN stays a NaN.
    Block reduction(const Operation& operation, int64_t entry) {
        bool is_sum = operation.mode == REDUCE_ADD;
        Block x = load(*operation.x, entry), y(outer(*operation.y, entry), is_sum ? 0.0f : -INFINITY);
        int64_t group = x.part[0] / y.part[0];
        each(x.part, [&](int64_t head, int64_t row, int64_t column) {
            float value = x.at(head, row, column);
            float& to = y.at(head / group, y.part[1] == 1 ? 0 : row, y.part[2] == 1 ? 0 : column);
            to = is_sum ? to + value : to != to || to >= value ? to : value;
        });
        return y;
    }

    Block reshaped(const Operation& operation, int64_t entry) {
        Block x = load(*operation.x, entry), y(outer(*operation.y, entry));
        auto axes = view(*operation.x, *operation.y);
        each(y.part, [&](int64_t head, int64_t row, int64_t column) {
            int64_t places[] = {head, row, column}, from[3];
            for (int axis = 1; axis < 4; axis++) from[axes[axis] - 1] = places[axis - 1];
            y.at(head, row, column) = x.at(from[0], from[1], from[2]);
        });
        return y;
    }
};

}  // namespace

void Graph::run(const Bindings& bindings) const {
    Run run(*this, bindings);
    run.check_overlaps(operations_);
    memset(bindings.workspace, 0xff, WORKSPACE_BYTES);
    for (auto& operation : operations_) run.operate(operation);
}
