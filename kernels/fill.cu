// This kernel fills memory with a pattern. It is the first check that kernels of this build run at
// all.

extern "C" __global__ void fill_with_index(unsigned* out, long long len) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] = (unsigned)i * 2654435761u;
}
