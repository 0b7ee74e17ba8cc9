//! The table `[plan]` of a configuration.

use crate::base::limits::refuse_outside;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The GPU for whose memory a run is planned.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlanConfig {
    /// The memory of one GPU, in GB of 10^9 bytes [default: 80].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_gb: Option<f64>,
}

impl PlanConfig {
    /// Refuses a memory that no GPU has; the error names `table`.
    pub fn check(&self, table: &str) -> Result<()> {
        let gigabytes = self.gpu_memory_gb.unwrap_or(1.0);
        refuse_outside(table, &[("gpu_memory_gb", gigabytes, 1e-3..=1e6)])
    }
}
