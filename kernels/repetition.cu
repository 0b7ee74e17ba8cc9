// The repetition penalty (Keskar et al. 2019) makes tokens that a text already has less likely.
// This is the twin of penalize_repetition in src/ops/sample.rs.
//
// Layout: rows have `stride` fp32 logits; the tokens of row r are tokens[starts[r]] up to
// tokens[starts[r + 1]], each once and below the row's width.
// Contract: positive logits are divided, others multiplied. A block takes a row.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
penalize_repetition(float* logits, const unsigned* starts, const unsigned* tokens, float penalty, int stride) {
    float* row = logits + size_t(blockIdx.x) * stride;
    unsigned end = starts[blockIdx.x + 1];
    for (unsigned i = starts[blockIdx.x] + threadIdx.x; i < end; i += blockDim.x) {
        float* logit = row + tokens[i];
        *logit = *logit > 0.0f ? *logit / penalty : *logit * penalty;
    }
}
