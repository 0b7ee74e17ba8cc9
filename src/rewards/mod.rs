//! What a response is worth: its format, its program's verdict, its own cases.
//!
//! Pure: no sandbox, no model, no I/O. The judge's verdict comes in as one of three values, and no
//! verdict gives no reward: the member is masked out, never scored 0.

pub mod cssr;
mod overlong;
pub mod response;

pub use cssr::{Breakdown, Reference, RewardConfig, RewardKind, Verdict, reward};
pub use overlong::Overlong;
pub use response::{FormatError, ParsedResponse, parse};
