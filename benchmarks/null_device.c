/* A CUDA device that computes nothing: the CUDA runtime and driver as far as PyTorch calls them.

   Memory is reserved address space that nobody touches, copies to it and kernels on it do nothing, copies from it bring
   zeros. What allocates, counts, places, orders and compiles is PyTorch itself, so that all of that can be seen without
   a GPU. All other functions of the libraries that PyTorch is linked to return success; `dry_run.py` adds them.
   Built twice: as the runtime (preloaded), and with -DDRIVER as libcuda.so.1. */

#include <stdlib.h>

static int capability(void) {
  const char *text = getenv("NULL_DEVICE_CAPABILITY");
  return text ? atoi(text) : 90;
}

static int shared_memory(void) { /* of one block at the most, by generation */
  int generation = capability();
  return generation >= 90 && generation < 120 ? 232448 : generation == 80 ? 166912 : 101376;
}

#ifdef DRIVER

int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)16; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)16; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)16; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 4 ? 32 : 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "null device"; return 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) { /* the numbers of CUdevice_attribute */
    case 1: *value = 1024; break;
    case 8: *value = 49152; break;
    case 10: *value = 32; break;
    case 16: *value = 128; break;
    case 75: *value = capability() / 10; break;
    case 76: *value = capability() % 10; break;
    case 97: *value = shared_memory(); break;
    default: *value = 1;
  }
  return 0;
}

#else

#define _GNU_SOURCE
#include <driver_types.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

enum { ELSEWHERE, LOCKED, DEVICE };
enum { MOST = 1 << 18, READ_BACK = 1 << 22 }; /* larger copies from the device leave the host's pages untouched */

static struct { char *begin; size_t size; int kind; } areas[MOST];
static int count;
static size_t used, to_device, from_device;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t all_bytes(void) {
  const char *text = getenv("NULL_DEVICE_BYTES");
  return text ? strtoull(text, NULL, 10) : (size_t)80 << 30;
}

static int take(void **where, size_t size, int kind) {
  int result = cudaErrorMemoryAllocation;
  size = (size + 4095) / 4096 * 4096 + (size == 0) * 4096;
  pthread_mutex_lock(&lock);
  if (count < MOST && (kind != DEVICE || used + size <= all_bytes())) {
    char *begin = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin != MAP_FAILED) {
      int free = 0;
      while (free < count && areas[free].begin) free++;
      if (free == count) count++;
      areas[free].begin = begin, areas[free].size = size, areas[free].kind = kind;
      used += kind == DEVICE ? size : 0;
      *where = begin;
      result = 0;
    }
  }
  pthread_mutex_unlock(&lock);
  return result;
}

static int give_back(void *where) {
  pthread_mutex_lock(&lock);
  for (int each = 0; each < count; each++)
    if (where && areas[each].begin == where) {
      munmap(where, areas[each].size);
      used -= areas[each].kind == DEVICE ? areas[each].size : 0;
      areas[each].begin = NULL;
      break;
    }
  pthread_mutex_unlock(&lock);
  return 0;
}

static int kind_of(const void *where) {
  const char *byte = where;
  int kind = ELSEWHERE;
  pthread_mutex_lock(&lock);
  for (int each = 0; each < count && !kind; each++)
    if (areas[each].begin && byte >= areas[each].begin && byte < areas[each].begin + areas[each].size)
      kind = areas[each].kind;
  pthread_mutex_unlock(&lock);
  return kind;
}

static int copy(void *to, const void *from, size_t size) {
  int there = kind_of(to) == DEVICE, here = kind_of(from) == DEVICE;
  if (there && !here) to_device += size;
  if (here && !there) {
    from_device += size;
    if (size < READ_BACK) memset(to, 0, size);
  }
  if (!here && !there) memmove(to, from, size);
  return 0;
}

size_t null_device_copied(int back) { return back ? from_device : to_device; }

int cudaMalloc(void **where, size_t size) { return take(where, size, DEVICE); }
int cudaFree(void *where) { return give_back(where); }
int cudaHostAlloc(void **where, size_t size, unsigned flags) { return take(where, size, LOCKED); }
int cudaFreeHost(void *where) { return give_back(where); }
int cudaMemGetInfo(size_t *free, size_t *all) { *all = all_bytes(); *free = *all - used; return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return copy(to, from, size); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return copy(to, from, size); }

int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *where) {
  int kind = kind_of(where);
  memset(found, 0, sizeof *found);
  found->type = kind == DEVICE ? cudaMemoryTypeDevice : kind == LOCKED ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  found->devicePointer = found->hostPointer = (void *)where;
  return 0;
}

int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaGetDeviceCount(int *devices) { *devices = 1; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }

int cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "null device");
  found->totalGlobalMem = all_bytes();
  found->major = capability() / 10, found->minor = capability() % 10;
  found->sharedMemPerBlock = 49152, found->sharedMemPerBlockOptin = shared_memory();
  found->sharedMemPerMultiprocessor = shared_memory() + 1024, found->totalConstMem = 65536;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536, found->warpSize = 32;
  found->maxThreadsPerBlock = 1024, found->maxThreadsPerMultiProcessor = 1536, found->maxBlocksPerMultiProcessor = 24;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024, found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647, found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->multiProcessorCount = 128, found->l2CacheSize = 50 << 20, found->textureAlignment = 512;
  found->canMapHostMemory = found->unifiedAddressing = found->concurrentKernels = 1, found->asyncEngineCount = 2;
  return 0;
}

int cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_memory(); break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMultiProcessorCount: *value = 128; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 1;
  }
  return 0;
}

int cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024, found->numRegs = 32, found->binaryVersion = found->ptxVersion = capability();
  return 0;
}

static void *handle(void) {
  static long last = 16;
  return (void *)__sync_add_and_fetch(&last, 16);
}

static int nothing(void) { return 0; }

int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return 0; }
int cudaDeviceGetPCIBusId(char *text, int size, int device) { strncpy(text, "0000:00:00.0", size); return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cudaStreamCreate(void **stream) { *stream = handle(); return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = handle(); return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = handle(); return 0; }
int cudaStreamGetPriority(void *stream, int *priority) { *priority = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { *status = 0; return 0; }
int cudaEventCreate(void **event) { *event = handle(); return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = handle(); return 0; }
int cudaEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 1; return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version, unsigned long long flags, int *found) {
  *entry = (void *)nothing;
  if (found) *found = 0;
  return 0;
}
int cudaGetSymbolAddress(void **where, const void *symbol) { static char area[1 << 20]; *where = area; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t shared) {
  *blocks = 2;
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *function, int threads, size_t shared, unsigned flags) {
  *blocks = 2;
  return 0;
}
const char *cudaGetErrorString(int error) { return error == cudaErrorMemoryAllocation ? "out of memory" : "null device"; }
const char *cudaGetErrorName(int error) { return cudaGetErrorString(error); }

int cublasCreate_v2(void **made) { *made = handle(); return 0; }
int cublasGetStream_v2(void *made, void **stream) { *stream = NULL; return 0; }
int cublasGetMathMode(void *made, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *made, int *mode) { *mode = 0; return 0; }
int cublasLtCreate(void **made) { *made = handle(); return 0; }
size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtMatmulDescCreate(void **made, int compute, int scale) { *made = handle(); return 0; }
int cublasLtMatrixLayoutCreate(void **made, int type, long rows, long columns, long stride) { *made = handle(); return 0; }
int cublasLtMatmulPreferenceCreate(void **made) { *made = handle(); return 0; }
int cublasLtMatmulAlgoGetHeuristic(
    void *a, void *b, void *c, void *d, void *e, void *f, void *g, int wanted, void *results, int *found) {
  *found = 1;
  return 0;
}
const char *cublasGetStatusString(int status) { return "null device"; }
const char *cublasLtGetStatusString(int status) { return "null device"; }
int cudnnCreate(void **made) { *made = handle(); return 0; }
size_t cudnnGetVersion(void) { return 91200; }
const char *cudnnGetErrorString(int status) { return "null device"; }

#endif
