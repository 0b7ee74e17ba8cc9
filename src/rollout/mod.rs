//! Attempts at problems: sampled and graded.

pub mod attempt;
pub mod attempts;
mod grading;
mod settings;

pub use settings::AttemptSettings;
