//! Attempts at problems, their scores, and what can be said of them.

pub mod answers;
pub mod cases;
pub mod gtg;
pub mod journal;
pub mod problems;
pub mod quadrants;
pub mod solvability;
pub mod stats;
