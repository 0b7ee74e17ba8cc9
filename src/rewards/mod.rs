//! Computes what a response is worth: a sum of named parts, from its grade.
//!
//! This module is pure: it uses no sandbox, no model and no files. A grade without a verdict gives no
//! reward: that member of a group is masked out, and is not scored 0. `docs/extending.md` shows how to add
//! a reward.

mod config;
mod cssr;
mod overlong;
mod reward;
mod rule;

pub use config::{RewardConfig, RewardKind};
pub use overlong::Overlong;
pub use reward::{Response, Reward};
