//! Scores of attempts at problems, and what can be said of them.

pub mod answers;
pub mod cases;
pub mod journal;
pub mod pairs;
pub mod quadrants;
pub mod recorded;
pub mod responses;
pub mod score;
pub mod solvability;
pub mod stats;
