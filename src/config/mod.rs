//! Configuration: TOML files merged from left to right, then `--set`, into one typed value.
//!
//! Tables merge key by key. Lists and scalars are replaced, and so is a choice with a value (`warmup = {
//! steps = 5 }` over `warmup = { ratio = 0.1 }`). An unknown key or a wrong type is reported in one line
//! that names the file and line (or the `--set`), the key, and the nearest known key. Every value knows
//! where it came from. The keys and values that are allowed follow from the JSON Schema of the type, which
//! editors read too ([`schema`]). Config structs are beside the code that they configure; this module is
//! generic over them and imports none. Their fields are `f64` rather than `f32`, since an `f32` would be
//! printed with its rounding.

mod diff;
mod entries;
mod keys;
mod load;
mod resolved;
mod shape;
mod source;

pub use diff::differences;
pub use load::{load, load_over, schema};
pub use resolved::Resolved;
pub use source::{Origin, Profile};
