// This file compiles all kernels to one library for the CPU, by name. Tests build it with
// -fsanitize=thread,alignment (see runtime.cpp), the emulated driver (driver.cpp) for speed.
//
// Each source has a namespace of its own, as each is a module of its own on the device. Nothing of
// them is visible outside, because library_fp16.cpp contains everything again.
#include "cuda.h"
#include "kernels.h"

#include <tuple>
#include <utility>

namespace {
#include "../../kernels/common.cuh"
#include "../../kernels/tensor_cores.cuh"
#include "../../kernels/statistics.cuh"

#define FAMILY(name) namespace name##_family
FAMILY(adamw) {
#include "../../kernels/adamw.cu"
}
FAMILY(attention) {
#include "../../kernels/attention.cu"
}
FAMILY(attention_decode) {
#include "../../kernels/attention_decode.cu"
}
FAMILY(attention_prompt) {
#include "../../kernels/attention_prompt.cu"
}
FAMILY(column_sums) {
#include "../../kernels/column_sums.cu"
}
FAMILY(embedding) {
#include "../../kernels/embedding.cu"
}
FAMILY(faulty) {
#include "faulty.cu"
}
FAMILY(fill) {
#include "../../kernels/fill.cu"
}
FAMILY(flat) {
#include "../../kernels/flat.cu"
}
FAMILY(head_norm) {
#include "../../kernels/head_norm.cu"
}
FAMILY(logprob) {
#include "../../kernels/logprob.cu"
}
FAMILY(repetition) {
#include "../../kernels/repetition.cu"
}
FAMILY(rms_norm) {
#include "../../kernels/rms_norm.cu"
}
FAMILY(rope) {
#include "../../kernels/rope.cu"
}
FAMILY(sample) {
#include "../../kernels/sample.cu"
}
FAMILY(swiglu) {
#include "../../kernels/swiglu.cu"
}

template <class... A, size_t... I>
std::function<void()> with_values(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    std::tuple<A...> values{*static_cast<std::remove_reference_t<A>*>(arguments[I])...};
    return [kernel, values] { std::apply(kernel, values); };
}

// See `Kernel`.
template <auto KERNEL>
std::function<void()> entry(void** arguments) {
    auto with_types = [arguments]<class... A>(void (*kernel)(A...)) {
        return with_values(kernel, arguments, std::index_sequence_for<A...>());
    };
    return with_types(KERNEL);
}
}  // namespace

#ifdef HALF_IS_FP16
const Kernels& fp16_kernels() {
#else
const Kernels& bf16_kernels() {
#endif
#define KERNEL(family, name) {#name, entry<family##_family::name>}
#define ATTENTION_KERNELS(dim)                                                                  \
    KERNEL(attention, attention_##dim), KERNEL(attention, attention_backward_keys_##dim),       \
        KERNEL(attention, attention_backward_queries_##dim),                                    \
        KERNEL(attention_decode, attention_decode_##dim##_4),                                   \
        KERNEL(attention_decode, attention_decode_##dim##_8),                                   \
        KERNEL(attention_prompt, attention_prompt_##dim)
    static const Kernels all = {
        KERNEL(adamw, adamw_half),
        KERNEL(adamw, adamw_f32),
        KERNEL(adamw, adamw_half_rounded),
        KERNEL(adamw, adamw_f32_rounded),
        KERNEL(attention, attention_delta),
        ATTENTION_KERNELS(32),
        ATTENTION_KERNELS(64),
        ATTENTION_KERNELS(128),
        KERNEL(attention_decode, attention_decode_combine),
        KERNEL(column_sums, column_partials),
        KERNEL(column_sums, add_column_sums_half),
        KERNEL(column_sums, add_column_sums_f32),
        KERNEL(embedding, embedding),
        KERNEL(embedding, embedding_backward_half),
        KERNEL(embedding, embedding_backward_f32),
        KERNEL(faulty, faulty_barrier),
        KERNEL(faulty, faulty_warp),
        KERNEL(faulty, faulty_reuse),
        KERNEL(faulty, faulty_blocks),
        KERNEL(faulty, faulty_bounds),
        KERNEL(faulty, faulty_alignment),
        KERNEL(faulty, faulty_divergence),
        KERNEL(faulty, faultless),
        KERNEL(fill, fill_with_index),
        KERNEL(flat, square_partials_half),
        KERNEL(flat, square_partials_f32),
        KERNEL(flat, sum_of_squares),
        KERNEL(flat, widen_half),
        KERNEL(flat, narrow_to_half),
        KERNEL(flat, accumulate),
        KERNEL(head_norm, head_norm),
        KERNEL(head_norm, head_norm_backward),
        KERNEL(logprob, logprob_half),
        KERNEL(logprob, logprob_f32),
        KERNEL(logprob, logprob_backward_half),
        KERNEL(logprob, logprob_backward_f32),
        KERNEL(repetition, penalize_repetition),
        KERNEL(rms_norm, rms_norm),
        KERNEL(rms_norm, rms_norm_backward),
        KERNEL(rope, rope),
        KERNEL(rope, rope_split),
        KERNEL(rope, rope_join),
        KERNEL(rope, rope_write),
        KERNEL(sample, sample),
        KERNEL(sample, sample_truncated),
        KERNEL(swiglu, swiglu),
        KERNEL(swiglu, swiglu_backward),
    };
    return all;
}
