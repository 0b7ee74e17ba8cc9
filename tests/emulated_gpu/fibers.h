// This header declares the runner of a block's threads as fibers.
#pragma once

#include "cuda.h"

#include <functional>
#include <string>

/// Runs `thread` once for each thread of each block, block after block. All threads of `block`
/// (whole warps, at most 1024) meet at the barriers of cuda.h. Returns what went wrong, or nothing.
/// Only one launch runs at a time: a second one waits for the first.
std::string run_blocks(uint3 grid, unsigned block, const std::function<void()>& thread);
