// Log-probability, entropy and mean log-probability of softmax(logits / temperature), row by row,
// and the gradient of the logits. This is the twin of src/ops/logprob.rs.
//
// Layout: rows have `stride` logits, a multiple of 8, of which the first `vocab` count; a block
// takes a row. Statistics are four floats for each row, a gradient of the scores three (logp,
// entropy, mean_logp).
// Contract: the backward may write over the logits that it reads, if the two have one type. Columns
// beyond the vocabulary get 0, so that products may run over whole strides.
#include "statistics.cuh"

template <class T>
__device__ __forceinline__ void score_row(const T* logits, const unsigned* targets, Statistics* rows,
                                          float* logp, int vocab, int stride, float inverse_temperature,
                                          float scratch[WARP]) {
    const T* row = logits + size_t(blockIdx.x) * stride;
    Statistics found = statistics(row, vocab, inverse_temperature, scratch);
    if (threadIdx.x > 0) return;
    rows[blockIdx.x] = found;
    logp[blockIdx.x] = log_probability(found, inverse_temperature, widen(row[targets[blockIdx.x]]));
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
logprob_half(const Half* logits, const unsigned* targets, Statistics* rows, float* logp, int vocab, int stride,
             float inverse_temperature) {
    __shared__ float scratch[WARP];
    score_row(logits, targets, rows, logp, vocab, stride, inverse_temperature, scratch);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
logprob_f32(const float* logits, const unsigned* targets, Statistics* rows, float* logp, int vocab, int stride,
            float inverse_temperature) {
    __shared__ float scratch[WARP];
    score_row(logits, targets, rows, logp, vocab, stride, inverse_temperature, scratch);
}

// Computes the gradient of the loss by each logit from the gradients by the scores of the row's
// target.
template <class T, class D>
__device__ __forceinline__ void gradient_row(const T* logits, const unsigned* targets, const Statistics* rows,
                                             const float* gradients, D* d_logits, int vocab, int stride,
                                             float inverse_temperature) {
    Statistics row = rows[blockIdx.x];
    const float* by_scores = gradients + size_t(blockIdx.x) * 3;
    float d_logp = by_scores[0], d_entropy = by_scores[1], d_mean_logp = by_scores[2];
    int target = int(targets[blockIdx.x]);
    // d/dz = d_logp * (onehot - p) - d_entropy * p * (ln p + entropy) + d_mean_logp * (1 / V - p)
    float constant = -inverse_temperature * (d_logp + d_mean_logp + d_entropy * row.entropy);
    float spread = inverse_temperature * d_mean_logp / vocab;
    float slope = -inverse_temperature * d_entropy;
    size_t start = size_t(blockIdx.x) * stride;
    for (int first = threadIdx.x * 8; first < stride; first += blockDim.x * 8) {
        float x[8];
        load_eight(logits + start + first, x);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float log_p = fmaxf(log_probability(row, inverse_temperature, x[i]), LOWEST);
            x[i] = fmaf(expf(log_p), fmaf(log_p, slope, constant), spread);
            if (first + i == target) x[i] += inverse_temperature * d_logp;
            if (first + i >= vocab) x[i] = 0;
        }
        store_eight(x, d_logits + start + first);
    }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
logprob_backward_half(const Half* logits, const unsigned* targets, const Statistics* rows,
                      const float* gradients, Half* d_logits, int vocab, int stride,
                      float inverse_temperature) {
    gradient_row(logits, targets, rows, gradients, d_logits, vocab, stride, inverse_temperature);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
logprob_backward_f32(const float* logits, const unsigned* targets, const Statistics* rows,
                     const float* gradients, Half* d_logits, int vocab, int stride,
                     float inverse_temperature) {
    gradient_row(logits, targets, rows, gradients, d_logits, vocab, stride, inverse_temperature);
}
