//! Configuration: TOML files merged left to right, then `--set`, into one typed value.
//!
//! Contract: tables merge key by key, lists and scalars replace, and so does a choice with a value
//! (`warmup = { steps = 5 }` over `warmup = { ratio = 0.1 }`). An unknown key or a wrong type is
//! one line that names the file and line (or the `--set`), the key, and the nearest known key. Every
//! effective value knows where it came from. Which keys and values there are, the JSON Schema of the type
//! says, which editors read too ([`schema`]). Config structs live beside what they configure; this
//! module is generic over them and imports none. Use `f64` in them: an `f32` prints its rounding.

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
