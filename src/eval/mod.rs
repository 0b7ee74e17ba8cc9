//! Attempts at problems, their scores, and what can be said of them.

pub mod answers;
pub mod attempts;
pub mod cases;
pub mod generator;
pub mod gtg;
pub mod journal;
mod judging;
pub mod problems;
pub mod quadrants;
pub mod solvability;
pub mod stats;
