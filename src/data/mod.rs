//! Reads problems and samples from files, and makes batches of them.

pub mod code_answers;
pub mod columns;
pub mod dataset;
mod directory;
pub mod header;
pub mod input;
pub mod jsonl;
pub mod loader;
pub mod mixture;
pub mod outlook;
pub mod pack;
mod packer;
pub mod pair;
pub mod parquet;
pub mod problem;
pub mod prompt;
pub mod rows;
pub mod rules;
pub mod sample;
pub mod settings;
pub mod shuffle;
pub mod source;
mod token_cache;
pub mod token_file;
pub mod tokenized;
