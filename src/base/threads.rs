//! The pool of threads that compute (rayon's), whole or divided among ranks.

use super::error::usage;
use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Starts the threads, as many as cores or `RAYON_NUM_THREADS`; without this the first computation would,
/// and could only panic where the system has no threads to give.
pub fn start() -> Result<()> {
    ThreadPoolBuilder::new().build_global().map_err(|e| {
        usage(format!(
            "cannot start a thread for each core: {e}; raise the limit on processes (ulimit -u) or set \
             RAYON_NUM_THREADS to fewer"
        ))
    })
}

/// The part of the present pool's cores that one of `ranks` gets, as a pool of its own; at least one thread.
pub fn of_rank(ranks: usize) -> Result<ThreadPool> {
    let threads = (rayon::current_num_threads() / ranks).max(1);
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.context("starting the threads of a rank")
}
