//! The threads of this process: the stack of the first, and the pool of those that compute (rayon's),
//! whole or divided among ranks.

use super::error::usage;
use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The stack that the first thread needs: as much as Rust gives to other threads.
const STACK_BYTES: u64 = 2 << 20;

/// Raises a soft limit on the first thread's stack that is too low; refuses a hard one.
pub fn check_stack() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_STACK)?;
    if hard < STACK_BYTES {
        return Err(usage(format!(
            "the limit on the stack (ulimit -s) is {} kB, but {} kB are needed: raise it",
            hard >> 10,
            STACK_BYTES >> 10
        )));
    }
    if soft < STACK_BYTES {
        setrlimit(Resource::RLIMIT_STACK, STACK_BYTES, hard)?;
    }
    Ok(())
}

/// Starts the threads, as many as cores or `RAYON_NUM_THREADS`. Without this the first computation would start them,
/// and could only panic where the system has no threads to give.
pub fn start() -> Result<()> {
    ThreadPoolBuilder::new().build_global().map_err(|e| {
        usage(format!(
            "cannot start a thread for each core: {e}; raise the limit on processes (ulimit -u) or set \
             RAYON_NUM_THREADS to fewer"
        ))
    })
}

/// Makes a pool for one of `ranks`, with its part of the cores of the present pool and at least one thread.
pub fn rank_pool(ranks: usize) -> Result<ThreadPool> {
    let threads = (rayon::current_num_threads() / ranks).max(1);
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.context("starting the threads of a rank")
}
