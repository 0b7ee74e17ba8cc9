//! Problems and samples as they lie in files, and the batches made of them.

pub mod jsonl;
pub mod pack;
pub mod problem;
pub mod prompt;
pub mod sample;
pub mod tokenized;
