// This is the library with half precision in place of bfloat16.
#define HALF_IS_FP16
#include "library.cpp"
