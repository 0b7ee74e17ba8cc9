//! cuDNN, opened at run time: the library ([`backend`]), graphs of its operations ([`graph`]) made
//! executable ([`plan`]), and attention for training as such a graph ([`composition`], [`attention`]).

pub(crate) mod attention;
pub(crate) mod backend;
pub(crate) mod composition;
pub(crate) mod graph;
pub(crate) mod plan;

pub use crate::cuda::sizes::AttentionSizes as Sizes;
pub use attention::{
    Attention, DETERMINISTIC_SINCE, Gradients, Operands, PlanReport, Results, Segments, check_plans,
};
pub use backend::version;
