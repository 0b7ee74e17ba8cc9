// Passes over whole flat buffers: the sum of squares of the gradients, conversions between fp32 and
// Half, and the accumulation of a bucket. This is the twin of src/ops/reduce.rs.
//
// Layout: buffers have any number of elements and start on sixteen bytes.
// Contract: fixed parts are summed, and their sums are added in a fixed order in double precision.
// The sum is not finite if an element is not finite or its square overflows, so one pass also tells
// whether the gradients are usable.
#include "common.cuh"

constexpr int PART = 64 * 1024;  // elements that a block sums, as src/cuda/kernels/flat.rs counts

template <class T>
__device__ __forceinline__ void square_part(const T* x, long long count, double* partials, double scratch[WARP]) {
    long long start = (long long)(blockIdx.x) * PART;
    double sum = 0;
    for (int first = threadIdx.x * 8; first < PART; first += blockDim.x * 8) {
        long long left = count - start - first;
        if (left <= 0) break;
        float v[8], squares = 0;
        load_up_to_eight(x + start + first, left, 0, v);
#pragma unroll
        for (int i = 0; i < 8; i++) squares = fmaf(v[i], v[i], squares);
        sum += squares;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(512)
square_partials_half(const Half* x, long long count, double* partials) {
    __shared__ double scratch[WARP];
    square_part(x, count, partials, scratch);
}

extern "C" __global__ void __launch_bounds__(512)
square_partials_f32(const float* x, long long count, double* partials) {
    __shared__ double scratch[WARP];
    square_part(x, count, partials, scratch);
}

// Writes the sum of the partial sums to *total, and to *not_finite whether that is not a finite
// number. It takes one block.
extern "C" __global__ void __launch_bounds__(1024)
sum_of_squares(const double* partials, int count, double* total, unsigned* not_finite) {
    __shared__ double scratch[WARP];
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x > 0) return;
    *total = sum;
    *not_finite = !(sum <= 1.7976931348623157e308);
}

// Returns the index of the first of this thread's eight elements.
__device__ __forceinline__ long long first_of_thread() {
    return (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
}

// Converts eight numbers to another format.
template <class From, class To>
__device__ __forceinline__ void convert(const From* x, To* out, long long count) {
    long long at = first_of_thread();
    if (at >= count) return;
    float v[8];
    load_up_to_eight(x + at, count - at, 0, v);
    store_up_to_eight(v, count - at, out + at);
}

extern "C" __global__ void __launch_bounds__(256)
widen_half(const Half* x, float* out, long long count) { convert(x, out, count); }

extern "C" __global__ void __launch_bounds__(256)
narrow_to_half(const float* x, Half* out, long long count) { convert(x, out, count); }

// Adds x to sum.
extern "C" __global__ void __launch_bounds__(256)
accumulate(const Half* x, float* sum, long long count) {
    long long at = first_of_thread();
    if (at >= count) return;
    float v[8], s[8];
    load_up_to_eight(x + at, count - at, 0, v);
    load_up_to_eight(sum + at, count - at, 0, s);
#pragma unroll
    for (int i = 0; i < 8; i++) s[i] += v[i];
    store_up_to_eight(s, count - at, sum + at);
}
