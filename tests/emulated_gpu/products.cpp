// Stands in for cuBLASLt (libcublasLt.so.13) on the emulated driver: the functions that
// src/cuda/gemm calls.
//
// Contract: D = op(A) op(B) (+ bias) or D += op(A) op(B), column-major and dense. Inputs are bf16
// or fp16, D is the same or f32. A sum runs over k in order in f32 and is rounded once, so a column
// does not depend on the others. Addresses that are not multiples of 16 bytes are refused, as the
// library may do. Left out: everything else.
#include "cuda.h"
#include "driver.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15, INTERNAL_ERROR = 14 };
enum { F32 = 0, F16 = 2, BF16 = 14 };                                    // cudaDataType
enum { TRANSPOSE_A = 3, TRANSPOSE_B = 4, EPILOGUE = 7, BIAS_POINTER = 8, BIAS_TYPE = 26 };
enum { PARTS = 2, REDUCTION_SCHEME = 3 };                                // of an algorithm

struct Operation {
    int transpose_a = 0, transpose_b = 0;
    int epilogue = 1, bias_type = BF16;
    const void* bias = nullptr;
};

struct Layout {
    int type;
    size_t rows, columns, stride;  // stride from one column to the next
};

float read(const void* from, int type, size_t i) {
    switch (type) {
    case F32: return static_cast<const float*>(from)[i];
    case F16: return __half2float(static_cast<const __half*>(from)[i]);
    default: return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]);
    }
}

// A matrix in memory or its transpose, read by row and column.
struct Operand {
    const void* start;
    int type;
    size_t row_step, column_step;
    float at(size_t row, size_t column) const { return read(start, type, row * row_step + column * column_step); }
};

Operand operand(const void* start, const Layout& layout, int transposed) {
    size_t stride = layout.stride;
    return transposed ? Operand{start, layout.type, stride, 1} : Operand{start, layout.type, 1, stride};
}

constexpr size_t ROWS = 16, COLUMNS = 6;  // of D that one pass over k makes

// Packs `rows` rows of A from `first` on as [k][ROWS]; missing ones become zeros.
void pack_rows(const Operand& a, size_t first, size_t rows, size_t k, float* to) {
    for (size_t i = 0; i < k; i++) {
        for (size_t row = 0; row < ROWS; row++) {
            to[i * ROWS + row] = row < rows ? a.at(first + row, i) : 0.0f;
        }
    }
}

void pack_columns(const Operand& b, size_t first, size_t columns, size_t k, float* to) {
    for (size_t i = 0; i < k; i++) {
        for (size_t column = 0; column < COLUMNS; column++) {
            to[i * COLUMNS + column] = column < columns ? b.at(i, first + column) : 0.0f;
        }
    }
}

typedef float Lanes __attribute__((vector_size(ROWS * sizeof(float) / 2)));

// Computes sums[column][row] over k of packed operands.
void multiply_packed(size_t k, const float* a, const float* b, float sums[COLUMNS][ROWS]) {
    Lanes low[COLUMNS] = {}, high[COLUMNS] = {};
    for (size_t i = 0; i < k; i++, a += ROWS, b += COLUMNS) {
        Lanes x, y;
        memcpy(&x, a, sizeof x);
        memcpy(&y, a + ROWS / 2, sizeof y);
        for (size_t column = 0; column < COLUMNS; column++) {
            low[column] += x * b[column];
            high[column] += y * b[column];
        }
    }
    for (size_t column = 0; column < COLUMNS; column++) {
        memcpy(sums[column], &low[column], sizeof(Lanes));
        memcpy(sums[column] + ROWS / 2, &high[column], sizeof(Lanes));
    }
}

struct Product {
    size_t m, n, k;
    Operand a, b;
    void* d;
    size_t stride;
    int type, bias_type;
    const void* bias;
    float alpha, beta;
};

void write(const Product& product, size_t row, size_t column, float sum) {
    size_t at = column * product.stride + row;
    float value = product.alpha * sum;
    if (product.beta != 0) value += product.beta * read(product.d, product.type, at);
    if (product.bias) value += read(product.bias, product.bias_type, row);
    switch (product.type) {
    case F32: static_cast<float*>(product.d)[at] = value; break;
    case F16: static_cast<__half*>(product.d)[at] = __float2half_rn(value); break;
    default: static_cast<__nv_bfloat16*>(product.d)[at] = __float2bfloat16_rn(value);
    }
}

void multiply(const Product& product) {
    auto [m, n, k] = std::tuple(product.m, product.n, product.k);
    size_t panels = (n + COLUMNS - 1) / COLUMNS;
    std::vector<float> packed_a(k * ROWS), packed_b(panels * k * COLUMNS);
    for (size_t column = 0; column < n; column += COLUMNS) {
        pack_columns(product.b, column, std::min(COLUMNS, n - column), k, &packed_b[column * k]);
    }
    for (size_t row = 0; row < m; row += ROWS) {
        size_t rows = std::min(ROWS, m - row);
        pack_rows(product.a, row, rows, k, packed_a.data());
        for (size_t column = 0; column < n; column += COLUMNS) {
            float sums[COLUMNS][ROWS];
            multiply_packed(k, packed_a.data(), &packed_b[column * k], sums);
            for (size_t j = 0; j < std::min(COLUMNS, n - column); j++) {
                for (size_t i = 0; i < rows; i++) write(product, row + i, column + j, sums[j][i]);
            }
        }
    }
}

bool is_aligned(const void* address) { return size_t(address) % 16 == 0; }

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }
int cublasLtCreate(void** handle) { return *handle = malloc(1), SUCCESS; }
int cublasLtDestroy(void* handle) { return free(handle), SUCCESS; }

int cublasLtMatmulDescCreate(void** operation, int, int) {
    return *operation = new Operation, SUCCESS;
}
int cublasLtMatmulDescDestroy(void* operation) {
    return delete static_cast<Operation*>(operation), SUCCESS;
}
int cublasLtMatmulDescSetAttribute(void* operation, int attribute, const void* from, size_t bytes) {
    Operation& to = *static_cast<Operation*>(operation);
    void* field;
    switch (attribute) {
    case TRANSPOSE_A: field = &to.transpose_a; break;
    case TRANSPOSE_B: field = &to.transpose_b; break;
    case EPILOGUE: field = &to.epilogue; break;
    case BIAS_TYPE: field = &to.bias_type; break;
    case BIAS_POINTER: field = &to.bias; break;
    default: return NOT_SUPPORTED;
    }
    if (bytes != (attribute == BIAS_POINTER ? 8 : 4)) return INVALID_VALUE;
    return memcpy(field, from, bytes), SUCCESS;
}

int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return *layout = new Layout{type, rows, columns, size_t(stride)}, SUCCESS;
}
int cublasLtMatrixLayoutDestroy(void* layout) { return delete static_cast<Layout*>(layout), SUCCESS; }

int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = malloc(1), SUCCESS; }
int cublasLtMatmulPreferenceDestroy(void* preference) { return free(preference), SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return SUCCESS; }

// cublasLtMatmulHeuristicResult_t
struct Candidate {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// Offers one algorithm, which has no settings.
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int most,
                                   Candidate* found, int* count) {
    *count = most > 0;
    if (most > 0) *found = Candidate{};
    return SUCCESS;
}
int cublasLtMatmulAlgoConfigGetAttribute(const void*, int attribute, void* to, size_t bytes, size_t* written) {
    int value = attribute == PARTS ? 1 : 0;
    if (bytes != sizeof value || (attribute != PARTS && attribute != REDUCTION_SCHEME)) return INVALID_VALUE;
    memcpy(to, &value, bytes);
    return *written = bytes, SUCCESS;
}

int cublasLtMatmul(void*, void* operation, const float* alpha, const void* a, void* layout_a,
                   const void* b, void* layout_b, const float* beta, const void* c, void*, void* d,
                   void* layout_d, const void*, void*, size_t, void* stream) {
    const Operation& how = *static_cast<Operation*>(operation);
    const Layout& left = *static_cast<Layout*>(layout_a);
    const Layout& right = *static_cast<Layout*>(layout_b);
    const Layout& out = *static_cast<Layout*>(layout_d);
    size_t k = how.transpose_a ? left.rows : left.columns;
    bool fits = (how.transpose_a ? left.columns : left.rows) == out.rows &&
                (how.transpose_b ? right.rows : right.columns) == out.columns &&
                (how.transpose_b ? right.columns : right.rows) == k;
    bool is_known = (left.type == BF16 || left.type == F16) && right.type == left.type &&
                    (out.type == left.type || out.type == F32);
    if (!is_known || c != d) return NOT_SUPPORTED;
    if (!fits || !is_aligned(a) || !is_aligned(b) || !is_aligned(d)) return INVALID_VALUE;
    const void* bias = how.epilogue == 4 ? how.bias : nullptr;
    Product product{out.rows, out.columns, k, operand(a, left, how.transpose_a),
                    operand(b, right, how.transpose_b), d, out.stride, out.type, how.bias_type, bias, *alpha, *beta};
    return emulated_put(stream, [product] { multiply(product); }) == 0 ? SUCCESS : INTERNAL_ERROR;
}
}
