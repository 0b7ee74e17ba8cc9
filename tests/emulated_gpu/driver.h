// What the stand-ins for NVIDIA's libraries share: streams.
#pragma once

#include <functional>

/// What a stream does.
using Work = std::function<void()>;

/// Puts work in a stream (or in what is recorded of it while it is captured): it runs when somebody
/// waits for the stream. Returns a CUresult.
int emulated_put(void* stream, Work work);

/// Runs what is in a stream now without being waited for, in a thread of its own.
void emulated_run(void* stream);
