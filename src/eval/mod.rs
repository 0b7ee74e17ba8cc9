//! Attempts at problems, their scores, and what can be said of them.

pub mod attempts;
pub mod gtg;
pub mod quadrants;
pub mod stats;
