//! Attempts at problems: sampled and graded at the same time.

pub mod attempt;
pub mod attempts;
pub mod candidate;
mod grading;
mod settings;
#[cfg(test)]
pub(crate) mod test_support;

pub use settings::AttemptSettings;
