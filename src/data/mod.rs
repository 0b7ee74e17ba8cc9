//! Problems and samples as they lie in files, and the batches made of them.

pub mod code_answers;
pub mod dataset;
pub mod input;
pub mod jsonl;
pub mod loader;
pub mod mixture;
pub mod outlook;
pub mod pack;
pub mod parquet;
pub mod problem;
pub mod prompt;
pub mod rules;
pub mod sample;
pub mod settings;
pub mod shuffle;
mod token_cache;
pub mod token_file;
pub mod tokenized;
