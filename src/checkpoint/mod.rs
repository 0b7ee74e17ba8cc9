//! Model directories in Hugging Face layout, GGUF files, and step directories, from which a run resumes.
//!
//! What is written loads in transformers and vLLM without conversion. A step directory is complete or
//! absent. What is read is checked tensor by tensor, and an error names tensor and file. Parameters are in
//! one flat buffer; a [`crate::model::TensorSpec`] says which range of it a tensor is.

#[cfg_attr(not(feature = "candle"), path = "no_convert.rs")]
mod convert;
mod derived;
mod ends;
mod foreign;
#[cfg_attr(not(feature = "candle"), path = "no_gguf.rs")]
pub(crate) mod gguf;
pub mod hf;
pub mod hub;
mod inference_model;
mod language_model;
mod place;
mod shards;
mod source;
pub mod state;
mod stored_model;
mod weight_files;

pub use convert::{Format as GgufFormat, write as write_gguf};
pub use ends::stop_ids;
pub(crate) use ends::warn_of_run_on;
pub use hub::model_files;
pub use inference_model::InferenceModel;
pub use language_model::LanguageModel;
pub use place::ModelPlace;
pub use source::ModelSource;
pub(crate) use source::Origin;
pub use stored_model::StoredModel;
