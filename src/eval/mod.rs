//! Scores of models: estimators with their uncertainty, and the tables made of them.

pub mod quadrants;
pub mod stats;
