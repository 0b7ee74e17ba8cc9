// This header declares graphs of operations on tensors, as cuDNN's backend describes them.
// descriptors.cpp builds them, graphs.cpp checks them, interpreter.cpp runs them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

/// These are values of cudnnStatus_t.
enum Status {
    SUCCESS = 0,
    NOT_INITIALIZED = 1001,
    BAD_PARAM = 2000,
    NULL_POINTER = 2002,
    MISALIGNED_POINTER = 2003,
    NOT_FINALIZED = 2004,
    SHAPE_MISMATCH = 2008,
    WRONG_TYPE = 2010,
    WRONG_KIND = 2012,
    NOT_SUPPORTED = 3000,
    EXECUTION_FAILED = 5000,
};

/// The reason why the library refuses something.
struct Refusal {
    Status status;
    std::string reason;
};

inline void require(bool holds, Status status, const std::string& reason) {
    if (!holds) throw Refusal{status, reason};
}

/// cudnnDataType_t
enum Type { FLOAT = 0, HALF = 2, INT32 = 4, BFLOAT16 = 9, BOOLEAN = 11 };
/// cudnnPointwiseMode_t
enum Mode {
    ADD = 0, MUL = 1, DIV = 6, SUB = 9, EXP = 13, LOG = 15, IDENTITY = 21, CMP_GE = 303, CMP_LT = 304,
    LOGICAL_AND = 400, GEN_INDEX = 501, BINARY_SELECT = 601,
};
/// cudnnReduceTensorOp_t
enum Operator { REDUCE_ADD = 0, REDUCE_MAX = 3 };

/// The entries are batch, heads, rows and columns.
using Shape = std::array<int64_t, 4>;

struct Tensor {
    int64_t id = 0;
    int type = FLOAT;
    int64_t alignment = 1;  // in bytes
    Shape dims, strides;
    bool is_virtual = false, is_by_value = false;
    std::shared_ptr<const Tensor> offsets;  // of a ragged tensor: where each entry of the batch starts
};
using TensorPtr = std::shared_ptr<const Tensor>;

struct Operation {
    enum What { POINTWISE, MATMUL, REDUCTION, RESHAPE } what = POINTWISE;
    int mode = 0;                  // a Mode or an Operator
    int64_t axis = -1;             // of GEN_INDEX
    TensorPtr x, b, t, y;          // of a product: A, B, none, C
    TensorPtr m, n, k;             // overrides of a product's sizes

    std::vector<TensorPtr> inputs() const;
};

/// Refuses an operation whose tensors do not fit together.
void check(const Operation& operation);

/// The memory that is bound to tensors that are not virtual, by their identifiers, and the
/// workspace.
struct Bindings {
    std::map<int64_t, char*> memory;
    std::map<int64_t, float> scalars;
    char* workspace = nullptr;
};

constexpr int64_t WORKSPACE_BYTES = 1 << 18;

/// Operations in an order in which each finds what it reads.
class Graph {
  public:
    /// Refuses operations that do not fit together.
    explicit Graph(std::vector<Operation> operations);

    /// Returns the tensors that must be bound.
    const std::map<int64_t, TensorPtr>& bound() const { return bound_; }

    /// Computes all outputs. Throws a std::string where the bound values make no sense.
    void run(const Bindings& bindings) const;

    /// Returns the tensor with the length of each entry along an axis, if entries differ.
    const Tensor* lengths(const Tensor& tensor, int axis) const;

    /// Returns the factor of a tensor's offsets.
    int64_t multiplier(const Tensor& tensor) const;

  private:
    void find_tensors();
    void find_lengths();
    void find_multipliers();
    void check_ragged(const Tensor& tensor) const;
    bool know(const Tensor* tensor, int axis, const Tensor* lengths);
    bool link(const Tensor* one, int axis, const Tensor* other, int other_axis);
    bool link(const Operation& operation);

    std::vector<Operation> operations_;
    std::map<int64_t, TensorPtr> bound_;
    std::map<const Tensor*, std::array<const Tensor*, 4>> lengths_;
    std::map<const Tensor*, int64_t> multipliers_;
};

/// Returns for each axis of a reshaped tensor the axis of the original: both see the same memory in
/// different orders.
std::array<int, 4> view(const Tensor& from, const Tensor& to);

std::string name(const Tensor& tensor);
size_t bytes_of(int type);
