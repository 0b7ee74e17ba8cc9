//! Attempts at problems: sampled and graded.

pub mod attempts;
mod judging;
