//! The training loops, and the session that they share.

pub mod dpo;
#[cfg(test)]
mod golden;
pub mod rehearsal;
pub mod rl;
mod session;
pub mod settings;
pub mod sft;
mod workload;
