//! CodeSeq: fine-tunes, reinforces, runs and scores language models.
//!
//! Modules in reading order; each imports only from those listed after it
//! (`ARCHITECTURE.md` has the map and the rules).

pub mod cli;

#[cfg(feature = "cuda")]
pub mod bench;
#[cfg(feature = "cuda")]
pub mod gpu_check;
pub mod problems;
pub mod report;
pub mod serve;
pub mod train;

pub mod eval;
pub mod plan;

pub mod run;

pub mod rollout;
pub mod trainer;

pub mod agents;

pub mod engine;
pub mod rewards;

pub mod checkpoint;
pub mod tasks;

pub mod config;
pub mod data;
pub mod model;
pub mod objective;
pub mod optim;

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
pub mod cuda {
    //! What is known of GPUs without them.
    pub mod sizes;
}
pub mod nodes;
pub mod ops;
pub mod ranks;
pub mod sandbox;
pub mod tokenizer;

pub mod base;
