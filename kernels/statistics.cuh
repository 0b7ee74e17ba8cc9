// This header computes the statistics of a row of logits. The training head (logprob.cu) and the
// sampler (sample.cu) share it, so that a token's log-probability has the same bits in both.
// Products and sums name their rounding, because a compiler might fuse them in one kernel and not
// in the other. This is the twin of `statistics` in src/ops/logprob.rs.
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), extended by
// the entropy and the mean.
// Contract: a block takes a whole row in one pass; each thread takes vectors of eight at fixed
// places.
#pragma once

#include "common.cuh"

// A block that reads a row has so many threads. The number is part of the order of the sums.
constexpr unsigned ROW_THREADS = 1024;

// Statistics of softmax(logits / temperature), as src/cuda/kernels/logprob.rs reads them.
struct __align__(16) Statistics {
    float max;        // the largest logit
    float log_sum;    // ln of the sum of exp((logit - max) / temperature)
    float entropy;    // in nats
    float mean_logp;  // over the vocabulary
};

__device__ __forceinline__ float log_probability(const Statistics& row, float inverse_temperature, float logit) {
    return __fsub_rn(__fmul_rn(__fsub_rn(logit, row.max), inverse_temperature), row.log_sum);
}

// Sums over the logits that a thread has seen, relative to the largest of them.
struct Running {
    float max = -INFINITY;
    float sum = 0;       // of e^z, z = (logit - max) / temperature
    float weighted = 0;  // of z e^z
    float total = 0;     // of logits

    // Changes to a maximum that is no smaller.
    __device__ __forceinline__ void raise(float larger, float inverse_temperature) {
        if (sum > 0.0f && larger > max) {
            float shift = __fmul_rn(__fsub_rn(max, larger), inverse_temperature);
            float factor = expf(shift);
            // A shift so large that the factor is 0 must leave 0, not 0 times infinity.
            weighted = factor > 0.0f ? __fmul_rn(factor, fmaf(shift, sum, weighted)) : 0.0f;
            sum = __fmul_rn(sum, factor);
        }
        max = larger;
    }

    __device__ __forceinline__ void add(float logit, float inverse_temperature) {
        // A logit of minus infinity has probability 0 and adds nothing to the entropy.
        float z = fmaxf(__fmul_rn(__fsub_rn(logit, max), inverse_temperature), LOWEST);
        float e = expf(z);
        sum = __fadd_rn(sum, e);
        weighted = fmaf(e, z, weighted);
    }
};

// Returns the statistics of the first `vocab` logits of a row that is readable up to a multiple of
// eight.
template <class T>
__device__ __forceinline__ Statistics statistics(const T* logits, int vocab, float inverse_temperature,
                                                 float scratch[WARP]) {
    Running running;
    for (int first = threadIdx.x * 8; first < vocab; first += blockDim.x * 8) {
        float x[8];
        load_eight(logits + first, x);
        int count = min(8, vocab - first);
        float largest = running.max;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i >= count) x[i] = -INFINITY;
            else running.total += x[i];
            largest = fmaxf(largest, x[i]);
        }
        if (largest == -INFINITY) continue;
        running.raise(largest, inverse_temperature);
#pragma unroll
        for (int i = 0; i < 8; i++) running.add(x[i], inverse_temperature);
    }
    float max = block_max(running.max, scratch);
    running.raise(max, inverse_temperature);
    float sum = block_sum(running.sum, scratch);
    float weighted = block_sum(running.weighted, scratch);
    float total = block_sum(running.total, scratch);
    float log_sum = logf(sum);
    Statistics row;
    row.max = max;
    row.log_sum = log_sum;
    row.entropy = __fsub_rn(log_sum, weighted / sum);
    row.mean_logp = log_probability(row, inverse_temperature, total / vocab);
    return row;
}
