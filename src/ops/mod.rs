//! The operations of the decoder on the CPU, in f32. Each file holds one operation: its forward and its
//! backward.
//!
//! An operation works on plain slices and never allocates. Its bits depend neither on the number of threads
//! nor on how many rows one call has, so a token's log-probability is the same in training, in prefill and
//! in decoding. Gradients are added to what the buffer holds and are never normalised. Stored weights may
//! be bf16 or f16 ([`element`]); activations are f32.

pub mod adamw;
pub mod attention;
pub mod buffer;
pub mod element;
pub mod embedding;
pub mod head_norm;
pub mod logprob;
pub mod matmul;
pub mod parallel;
mod ranking;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod simd;
pub mod swiglu;
