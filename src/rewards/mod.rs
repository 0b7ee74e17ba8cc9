//! What a response is worth: a sum of named parts, from what its grade says.
//!
//! Pure: no sandbox, no model, no I/O. A grade without a verdict gives no reward: the member of a group is masked
//! out, never scored 0. `docs/extending.md` shows how to add a reward.

mod config;
mod cssr;
mod overlong;
mod reward;
mod rule;

pub use config::{RewardConfig, RewardKind};
pub use overlong::Overlong;
pub use reward::{Response, Reward};
