// AdamW updates flat shards in one pass. This is the twin of src/ops/adamw.rs.
//
// Layout: all arrays have the elements of one shard, of any number, and start on sixteen bytes.
// Master weights are fp32, gradients Half or fp32, parameters Half. Moments are fp32 or bf16,
// whatever Half is: squares of gradients would vanish in fp16.
// Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (ICLR 2019); stochastic
// rounding as in Gupta et al., "Deep learning with limited numerical precision" (ICML 2015).
// Contract: the update is PyTorch's, with the gradient multiplied by `gradient_scale` first; the
// parameter is the master weight rounded. Moments in bf16 are rounded up or down at random with the
// right expectation. The random bits are keyed by the step and the element's place in the whole
// model, so the number of shards does not change them. Nothing is written where *not_finite is set.
#include "common.cuh"

// The factors of a step, as src/cuda/kernels/adamw.rs computes them.
struct Step {
    float beta1, beta2, epsilon;
    float gradient_scale;
    float keep;  // of elements that decay: 1 - learning rate * weight decay
    float step_size;
    float inverse_root_correction;
};

// A range of elements that weight decay applies to; `end` is exclusive.
struct Range {
    unsigned long long start, end;
};

// Returns the first range that ends after `at`.
__device__ __forceinline__ int range_after(const Range* ranges, int count, unsigned long long at) {
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (ranges[middle].end <= at) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Returns eight numbers of 16 random bits for one vector of elements and one of the two moments.
__device__ __forceinline__ void random_bits(unsigned long long key, unsigned long long vector, unsigned moment,
                                            unsigned out[8]) {
    uint4 block = philox(key, make_uint4(unsigned(vector), unsigned(vector >> 32), 0x61646d77u, moment));
    unsigned words[4] = {block.x, block.y, block.z, block.w};
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = words[i / 2] >> (i % 2 * 16) & 0xffffu;
}

// Rounds to bf16, up with a probability that is the part cut off.
__device__ __forceinline__ float round_at_random(float x, unsigned bits) {
    return __uint_as_float((__float_as_uint(x) + bits) & 0xffff0000u);
}

template <class G, class M>
__device__ __forceinline__ void update(float* master, Half* parameters, M* first_moments, M* second_moments,
                                       const G* gradients, long long count, unsigned long long shard_start,
                                       const Range* decays, int num_decays, Step step,
                                       const unsigned* not_finite, unsigned long long key) {
    if (*not_finite != 0) return;
    long long at = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    long long left = count - at;
    if (left <= 0) return;
    float p[8], m[8], v[8], g[8];
    load_up_to_eight(gradients + at, left, 0, g);
    load_up_to_eight(master + at, left, 0, p);
    load_up_to_eight(first_moments + at, left, 0, m);
    load_up_to_eight(second_moments + at, left, 0, v);
    unsigned long long element = shard_start + at;
    int range = range_after(decays, num_decays, element);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        while (range < num_decays && decays[range].end <= element + i) range++;
        bool does_decay = range < num_decays && decays[range].start <= element + i;
        float gradient = g[i] * step.gradient_scale;
        m[i] = fmaf(gradient, 1.0f - step.beta1, m[i] * step.beta1);
        v[i] = fmaf(gradient * gradient, 1.0f - step.beta2, v[i] * step.beta2);
        float change = m[i] / fmaf(sqrtf(v[i]), step.inverse_root_correction, step.epsilon);
        p[i] = fmaf(change, -step.step_size, p[i] * (does_decay ? step.keep : 1.0f));
    }
    if (sizeof(M) == sizeof(bf16)) {
        unsigned bits[8];
        random_bits(key, element / 8, 0, bits);
#pragma unroll
        for (int i = 0; i < 8; i++) m[i] = round_at_random(m[i], bits[i]);
        random_bits(key, element / 8, 1, bits);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = round_at_random(v[i], bits[i]);
    }
    store_up_to_eight(p, left, master + at);
    store_up_to_eight(p, left, parameters + at);
    store_up_to_eight(m, left, first_moments + at);
    store_up_to_eight(v, left, second_moments + at);
}

#define ADAMW(NAME, G, M)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                      \
    NAME(float* master, Half* parameters, M* first_moments, M* second_moments, const G* gradients,         \
         long long count, unsigned long long shard_start, const Range* decays, int num_decays, Step step,  \
         const unsigned* not_finite, unsigned long long key) {                                             \
        update(master, parameters, first_moments, second_moments, gradients, count, shard_start, decays,   \
               num_decays, step, not_finite, key);                                                         \
    }
ADAMW(adamw_half, Half, float)
ADAMW(adamw_f32, float, float)
ADAMW(adamw_half_rounded, Half, bf16)
ADAMW(adamw_f32_rounded, float, bf16)
