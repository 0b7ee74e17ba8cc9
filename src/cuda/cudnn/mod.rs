//! This module opens cuDNN at run time and computes training attention with it. [`backend`] is the
//! library, [`graph`] describes operations, [`composition`] composes attention of them, [`plan`]
//! makes a graph executable, and [`attention`] runs it.

pub(crate) mod attention;
pub(crate) mod backend;
pub(crate) mod composition;
pub(crate) mod graph;
pub(crate) mod plan;

pub use crate::cuda::sizes::AttentionSizes as Sizes;
pub use attention::{
    Attention, Gradients, Operands, PlanReport, Results, Segments, check_plans, is_deterministic,
};
pub use backend::version;
