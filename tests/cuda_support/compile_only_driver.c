/* Stands in for the driver on a machine without one, so that cuDNN can compile kernels there: loading
   a kernel succeeds, everything else finds no device. These are the functions that cuDNN looks up. */

enum { SUCCESS, NO_DEVICE = 100 };

#define FAILS(name) int name(void) { return NO_DEVICE; }
#define GIVES(name) int name(void **out) { *out = (void *)1; return SUCCESS; }

GIVES(cuLibraryGetKernel)
GIVES(cuLibraryLoadData)
GIVES(cuKernelGetFunction)
GIVES(cuModuleGetFunction)
GIVES(cuModuleLoadData)

int cuLibraryUnload(void) { return SUCCESS; }
int cuModuleUnload(void) { return SUCCESS; }

int cuGetErrorString(int error, const char **text) {
    *text = "there is no driver";
    return SUCCESS;
}

FAILS(cuCtxGetCurrent)
FAILS(cuCtxGetLimit)
FAILS(cuCtxPopCurrent)
FAILS(cuCtxPushCurrent)
FAILS(cuDeviceGet)
FAILS(cuDeviceGetCount)
FAILS(cuDriverGetVersion)
FAILS(cuGetErrorName)
FAILS(cuGetProcAddress_v2)
FAILS(cuInit)
FAILS(cuKernelGetAttribute)
FAILS(cuKernelSetAttribute)
FAILS(cuLaunchCooperativeKernel)
FAILS(cuLaunchKernel)
FAILS(cuLaunchKernelEx)
FAILS(cuLibraryLoadFromFile)
FAILS(cuLinkAddData)
FAILS(cuLinkComplete)
FAILS(cuLinkCreate)
FAILS(cuLinkDestroy)
FAILS(cuOccupancyMaxPotentialClusterSize)
FAILS(cuStreamGetCtx)
FAILS(cuStreamGetGreenCtx)
FAILS(cuTensorMapEncodeIm2col)
FAILS(cuTensorMapEncodeTiled)
FAILS(cuThreadExchangeStreamCaptureMode)
