// This header declares the kernels of kernels/, by name.
#pragma once

#include <functional>
#include <map>
#include <string>

/// Copies the arguments, given by the address of each as cuLaunchKernel takes them, and returns
/// what one thread of the kernel does with them.
using Kernel = std::function<void()> (*)(void** arguments);

using Kernels = std::map<std::string, Kernel>;

/// These are all kernels, with `Half` as bfloat16 and as half precision.
const Kernels& bf16_kernels();
const Kernels& fp16_kernels();
