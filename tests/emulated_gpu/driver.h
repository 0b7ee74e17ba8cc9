// This header declares the streams that the stand-ins for NVIDIA's libraries share.
#pragma once

#include <functional>

using Work = std::function<void()>;

/// Puts work into a stream, or into its recording while it is captured. It runs when somebody waits
/// for the stream. Returns a CUresult.
int emulated_put(void* stream, Work work);

/// Starts what is in a stream now without being waited for, in a thread of its own.
void emulated_run(void* stream);
