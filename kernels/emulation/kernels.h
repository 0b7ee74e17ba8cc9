// The kernels of this folder's parent, by name.
#pragma once

#include <functional>
#include <map>
#include <string>

/// Copies the arguments, given by the address of each as cuLaunchKernel takes them, and returns what
/// one thread of the kernel does with them.
using Kernel = std::function<void()> (*)(void** arguments);

/// All of them.
const std::map<std::string, Kernel>& kernels();
