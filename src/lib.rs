//! CodeSeq: post-trains language models on number-sequence problems and runs them.
//!
//! Modules in reading order; each imports only from those listed after it
//! (`ARCHITECTURE.md` has the map and the rules).

pub mod cli;

#[cfg(feature = "cuda")]
pub mod bench;
pub mod eval;
pub mod pipeline;
pub mod report;
pub mod train;

pub mod checkpoint;
pub mod engine;
pub mod rewards;

pub mod config;
pub mod data;
pub mod model;
pub mod objective;
pub mod optim;
pub mod sandbox;

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dist;
pub mod ops;
pub mod tokenizer;

pub mod base;
