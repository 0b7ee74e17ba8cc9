//! The decoder of the [`families`]: its configuration, the layout of its tensors in one flat buffer, its
//! training graph and its cached generation.
//!
//! Parameters and gradients are flat slices that the caller owns. A token's log-probability has the same
//! bits from [`Decoder::score`] as from [`Decoder::extend`]. Files are read and written in `checkpoint`;
//! tokens are drawn and requests scheduled in `engine`.

pub mod cache;
pub mod config;
mod config_keys;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decoder;
pub mod extend;
pub mod families;
pub mod flops;
pub mod gpu_shape;
pub mod gpu_sizes;
pub mod layout;
mod precision;
mod training;
mod weights;

pub use crate::ops::logprob::{ScoreGradient, TokenScores};
pub use cache::{BLOCK_TOKENS, KvCache};
pub use config::ModelConfig;
pub use decoder::{Decoder, Packed, Target};
pub use extend::{DecodeWorkspace, Row};
pub use layout::{Layout, RowOrder, TensorSpec};
pub use precision::Precision;
pub use training::{BatchSize, ChunkObjective, Recompute, TrainingMemory, Workspace};
pub use weights::Weights;
