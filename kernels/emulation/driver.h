// What the stand-ins for NVIDIA's libraries share: streams.
#pragma once

#include <functional>

/// What a stream does.
using Work = std::function<void()>;

/// Puts work in the order of a stream: runs it, or records it if the stream is being captured.
/// Returns a CUresult.
int emulated_put(void* stream, Work work);
