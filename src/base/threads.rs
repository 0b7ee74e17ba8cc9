//! The pool of threads that compute (rayon's).

use super::error::usage;
use anyhow::Result;

/// Starts the threads, as many as cores or `RAYON_NUM_THREADS`; without this the first computation would,
/// and could only panic where the system has no threads to give.
pub fn start() -> Result<()> {
    rayon::ThreadPoolBuilder::new().build_global().map_err(|e| {
        usage(format!(
            "cannot start a thread for each core: {e}; raise the limit on processes (ulimit -u) or set \
             RAYON_NUM_THREADS to fewer"
        ))
    })
}
