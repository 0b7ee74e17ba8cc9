// This file checks graphs of operations and derives the lengths of their tensors.
//
// Contract: sizes and types must fit as cuDNN's header documents them. A tensor's entries get their
// length along an axis from the override of a product that reads or writes it, or from tensors of
// equal size that a pointwise operation, a reduction or a view connects it with. The offsets of a
// ragged tensor count elements. If its heads are summed to another tensor with the same offsets,
// they count rows that are wider by the group ("implicit multiplier" in NVIDIA's front end).
#include "graphs.h"

namespace {

constexpr int64_t ALIGNED_STRIDE = 16;  // bytes

void check_pointwise(const Operation& operation) {
    const Tensor& y = *operation.y;
    bool is_select = operation.mode == BINARY_SELECT;
    for (auto& input : operation.inputs()) {
        bool fits = true;
        for (int axis = 0; axis < 4; axis++) {
            bool is_spread = input->dims[axis] == 1 && (!is_select || input->is_by_value);
            fits &= input->dims[axis] == y.dims[axis] || is_spread;
        }
        require(fits, BAD_PARAM, name(*input) + " is not spread to " + name(y));
    }
    bool is_truth = operation.mode >= CMP_GE && operation.mode <= LOGICAL_AND;
    require(is_truth == (y.type == BOOLEAN), NOT_SUPPORTED, "a comparison puts out truth values");
    require(!is_select || operation.t->type == BOOLEAN, NOT_SUPPORTED, "a selection reads truth values");
    bool has_axis = operation.axis >= 0 && operation.axis < 4;
    require(has_axis || operation.mode != GEN_INDEX, BAD_PARAM, "an index without an axis");
}

void check_product(const Operation& operation) {
    const Tensor &a = *operation.x, &b = *operation.b, &c = *operation.y;
    bool fits = a.dims[2] == c.dims[2] && b.dims[3] == c.dims[3] && a.dims[3] == b.dims[2];
    for (int axis = 0; axis < 2; axis++) {
        fits &= c.dims[axis] % a.dims[axis] == 0 && c.dims[axis] % b.dims[axis] == 0;
    }
    require(fits, BAD_PARAM, "the sizes of A, B and C of a product do not fit");
    for (const Tensor* tensor : {&a, &b, &c}) {
        bool is_packed = tensor->strides[2] == 1 || tensor->strides[3] == 1;
        require(is_packed, NOT_SUPPORTED, name(*tensor) + " has no innermost dimension without gaps");
    }
    for (auto& lengths : {operation.m, operation.n, operation.k}) {
        bool is_count = !lengths || (lengths->type == INT32 && lengths->dims == Shape{c.dims[0], 1, 1, 1});
        require(is_count, BAD_PARAM, "an override is not an integer for each entry of the batch");
    }
}

void check_reduction(const Operation& operation) {
    const Shape &from = operation.x->dims, &to = operation.y->dims;
    for (int axis = 0; axis < 4; axis++) {
        bool is_reduced = axis > 0 && to[axis] == 1;
        bool is_grouped = axis == 1 && from[1] % to[1] == 0;
        require(from[axis] == to[axis] || is_reduced || is_grouped, BAD_PARAM, "sizes of a reduction");
    }
}

}  // namespace

size_t bytes_of(int type) { return type == BOOLEAN ? 1 : type == HALF || type == BFLOAT16 ? 2 : 4; }

std::string name(const Tensor& tensor) { return "tensor " + std::to_string(tensor.id); }

std::vector<TensorPtr> Operation::inputs() const {
    std::vector<TensorPtr> found;
    for (auto& tensor : {x, b, t}) {
        if (tensor) found.push_back(tensor);
    }
    return found;
}

std::array<int, 4> view(const Tensor& from, const Tensor& to) {
    std::array<int, 4> axes;
    bool is_taken[4] = {};
    for (int axis = 0; axis < 4; axis++) {
        auto fits = [&](int other) {
            bool is_same = from.dims[other] == to.dims[axis] && from.strides[other] == to.strides[axis];
            return is_same && !is_taken[other];
        };
        // The same axis is tried first, because axes of one element look alike.
        int other = fits(axis) ? axis : 0;
        while (other < 4 && !fits(other)) other++;
        bool is_exchange = other < 4 && (axis == 0) == (other == 0);
        require(is_exchange, NOT_SUPPORTED, "a reshape that is no exchange of heads, rows and columns");
        is_taken[other] = true;
        axes[axis] = other;
    }
    return axes;
}

void check(const Operation& operation) {
    switch (operation.what) {
    case Operation::POINTWISE: return check_pointwise(operation);
    case Operation::MATMUL: return check_product(operation);
    case Operation::REDUCTION: return check_reduction(operation);
    case Operation::RESHAPE: view(*operation.x, *operation.y);
    }
}

Graph::Graph(std::vector<Operation> operations) : operations_(std::move(operations)) {
    find_tensors();
    find_lengths();
    find_multipliers();
    for (auto& [id, tensor] : bound_) check_ragged(*tensor);
}

// Finds the tensors that must be bound, and checks that virtual tensors are written before they are
// read.
void Graph::find_tensors() {
    std::map<int64_t, TensorPtr> known;
    std::map<int64_t, bool> is_written;
    auto know = [&](const TensorPtr& tensor) {
        if (!tensor) return;
        bool is_known = known.emplace(tensor->id, tensor).first->second == tensor;
        require(is_known, BAD_PARAM, "two tensors have the identifier of " + name(*tensor));
        if (!tensor->is_virtual) bound_.emplace(tensor->id, tensor);
    };
    for (auto& operation : operations_) {
        for (auto& tensor : operation.inputs()) {
            bool is_there = !tensor->is_virtual || is_written[tensor->id];
            require(is_there, NOT_SUPPORTED, "the emulation wants a virtual tensor written before it is read");
        }
        for (auto& tensor : {operation.x, operation.b, operation.t, operation.y}) {
            know(tensor);
            know(tensor ? tensor->offsets : nullptr);
        }
        for (auto& lengths : {operation.m, operation.n, operation.k}) know(lengths);
        require(!is_written[operation.y->id], BAD_PARAM, name(*operation.y) + " is written twice");
        is_written[operation.y->id] = true;
    }
}

// Records which lengths entries have along an axis. Returns whether that is new.
bool Graph::know(const Tensor* tensor, int axis, const Tensor* lengths) {
    const Tensor*& known = lengths_[tensor][axis];
    if (!lengths || known == lengths) return false;
    require(!known, BAD_PARAM, name(*tensor) + " has two lengths along an axis");
    return known = lengths, true;
}

// Gives the lengths known of one of two axes of equal size to the other. Returns whether that is
// new.
bool Graph::link(const Tensor* one, int axis, const Tensor* other, int other_axis) {
    return know(one, axis, lengths(*other, other_axis)) | know(other, other_axis, lengths(*one, axis));
}

bool Graph::link(const Operation& operation) {
    const Tensor *x = operation.x.get(), *b = operation.b.get(), *y = operation.y.get();
    if (operation.what == Operation::MATMUL) {
        bool is_new = know(y, 2, operation.m.get()) | know(y, 3, operation.n.get());
        return is_new | know(x, 3, operation.k.get()) | link(x, 2, y, 2) | link(b, 3, y, 3) | link(x, 3, b, 2);
    }
    auto axes = operation.what == Operation::RESHAPE ? view(*x, *y) : std::array<int, 4>{0, 1, 2, 3};
    bool is_new = false;
    for (auto& input : operation.inputs()) {
        for (int axis = 2; axis < 4; axis++) {
            bool is_equal = input->dims[axes[axis]] == y->dims[axis];
            if (is_equal) is_new |= link(input.get(), axes[axis], y, axis);
        }
    }
    return is_new;
}

void Graph::find_lengths() {
    for (bool is_new = true; is_new;) {
        is_new = false;
        for (auto& operation : operations_) is_new |= link(operation);
    }
}

void Graph::find_multipliers() {
    for (auto& operation : operations_) {
        const Tensor &x = *operation.x, &y = *operation.y;
        if (operation.what != Operation::REDUCTION || !x.offsets || x.offsets != y.offsets) continue;
        multipliers_[&x] = x.dims[1] / y.dims[1];
    }
}

// Checks what NVIDIA's front end demands of ragged tensors.
void Graph::check_ragged(const Tensor& tensor) const {
    if (!tensor.offsets) return;
    bool has_lengths = lengths(tensor, 2) || lengths(tensor, 3);
    require(has_lengths, NOT_SUPPORTED, name(tensor) + " is ragged and has no lengths");
    for (int64_t stride : {tensor.strides[1], tensor.strides[2], tensor.strides[3]}) {
        bool is_aligned = bytes_of(tensor.type) != 2 || stride == 1 || stride * 2 % ALIGNED_STRIDE == 0;
        require(is_aligned, NOT_SUPPORTED, name(tensor) + " has a stride of no multiple of 16 bytes");
    }
}

const Tensor* Graph::lengths(const Tensor& tensor, int axis) const {
    auto found = lengths_.find(&tensor);
    return found == lengths_.end() ? nullptr : found->second[axis];
}

int64_t Graph::multiplier(const Tensor& tensor) const {
    auto found = multipliers_.find(&tensor);
    return found == multipliers_.end() ? 1 : found->second;
}
