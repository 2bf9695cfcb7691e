/* A libcuda.so.1 without a GPU, for host code: device memory is host memory, and nothing runs before somebody waits for it.
 *
 * Work that is enqueued on a stream (copies, frees, kernels given as callbacks, graphs) stays in the stream's queue until the stream,
 * an event behind the work, or the device is synchronised, so code that forgets to wait reads old bytes. Memory that was freed on a
 * stream is overwritten with 0xDD when the stream gets there, and never given out again. Copies to and from pageable host memory
 * are done when the call returns, as CUDA does them; those of pinned memory are not. A stream that captures records instead, and calls
 * that CUDA forbids meanwhile fail with its errors and spoil the capture.
 *
 * The functions named rehearsal_* control it: failures, callbacks, counts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
typedef struct Stream Stream;
typedef void (*Callback)(void);

enum { INVALID = 1, NO_MEMORY = 2, BAD_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };
enum { UNSUPPORTED_IN_CAPTURE = 900, INVALIDATED = 901, WRONG_THREAD = 908 };
enum { POISON = 0xDD, FRESH = 0xAB };

typedef struct {
  int kind; /* 'c' copy, 's' set, 'f' free, 'k' callback, 'w' wait, 'g' graph */
  char *to;
  const char *from;
  size_t width, height, to_pitch, from_pitch;
  int value;
  Callback call;
  Stream *other;
  u64 until;
  struct Graph *graph;
} Op;

typedef struct Graph {
  Op *ops;
  size_t count;
  int alive;
} Graph;

struct Stream {
  int device, capturing, destroyed; /* capturing: 0 no, 1 yes, 2 spoiled, as CUstreamCaptureStatus */
  int mode;
  pthread_t thread;
  Op *ops;
  size_t first, count, room;
  u64 done;
  Graph *graph;
};

typedef struct {
  Stream *stream;
  u64 until;
} Event;

typedef struct {
  char *start;
  size_t size;
  int device, pinned, freed; /* device -1 for pinned host memory */
} Block;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static __thread intptr_t stack[64];
static __thread int depth;
static Stream legacy[16];
static Stream *streams[4096];
static int stream_count;
static Block *blocks;
static size_t block_count, block_room, misalign;
static int broken; /* a sticky error, as after an illegal address */

/* ---- failures and counts -------------------------------------------------------------------------------------------------- */
typedef struct {
  char name[64];
  int code, after, times;
} Fault;
static Fault faults[64];
static int fault_count;
static struct {
  char name[64];
  int calls;
} counts[256];
static int count_count;

void rehearsal_fail(const char *name, int code, int after, int times) {
  pthread_mutex_lock(&lock);
  if (fault_count < 64) {
    Fault *f = &faults[fault_count++];
    snprintf(f->name, sizeof f->name, "%s", name);
    f->code = code, f->after = after, f->times = times;
  }
  pthread_mutex_unlock(&lock);
}

void rehearsal_heal(void) { fault_count = 0, broken = 0, misalign = 0; }
void rehearsal_break(int code) { broken = code; }
void rehearsal_misalign(size_t bytes) { misalign = bytes; }

int rehearsal_calls(const char *name) {
  for (int i = 0; i < count_count; i++)
    if (!strcmp(counts[i].name, name)) return counts[i].calls;
  return 0;
}

/* CUDA_REHEARSAL_FAIL=cuMemAllocFromPoolAsync:2:0:1,... : name, error, calls that still work, calls that fail. */
static void read_environment(void) {
  static int done;
  if (done++) return;
  char *text = getenv("CUDA_REHEARSAL_FAIL");
  char name[64];
  int code, after, times, used;
  while (text && sscanf(text, "%63[^:]:%d:%d:%d%n", name, &code, &after, &times, &used) == 4) {
    rehearsal_fail(name, code, after, times);
    text += used + (text[used] == ',');
    if (!*text) break;
  }
}

static int enter(const char *name) {
  pthread_mutex_lock(&lock);
  read_environment();
  int i = 0;
  while (i < count_count && strcmp(counts[i].name, name)) i++;
  if (i == count_count && count_count < 256) snprintf(counts[count_count++].name, 64, "%s", name);
  if (i < 256) counts[i].calls++;
  int code = 0;
  for (int f = 0; f < fault_count; f++)
    if (!strcmp(faults[f].name, name)) {
      if (faults[f].after > 0) faults[f].after--;
      else if (faults[f].times != 0) code = faults[f].code, faults[f].times -= faults[f].times > 0;
    }
  return code;
}

static int leave(int code) {
  pthread_mutex_unlock(&lock);
  return code;
}

#define CALL(name, ...)                 \
  int name(__VA_ARGS__) {               \
    const int failed = enter(#name);    \
    if (failed) return leave(failed);
#define END     \
  return leave(0); \
  }

/* ---- streams -------------------------------------------------------------------------------------------------------------- */
static int here(void) { return depth ? (int)(stack[depth - 1] - 0xc000) : 0; }

static Stream *of(void *handle) {
  intptr_t value = (intptr_t)handle;
  return value < 3 ? &legacy[here()] : (Stream *)handle; /* 0 and 1: the legacy stream, 2: the thread's, which we take for it */
}

static u64 last(Stream *s) { return s->done + (s->count - s->first); }

static int run(Stream *s, u64 until);

static void perform(const Op *op) {
  if (op->kind == 'c')
    for (size_t i = 0; i < op->height; i++) memmove(op->to + i * op->to_pitch, op->from + i * op->from_pitch, op->width);
  if (op->kind == 's') memset(op->to, op->value, op->width);
  if (op->kind == 'f') memset(op->to, POISON, op->width);
  if (op->kind == 'w') run(op->other, op->until);
  if (op->kind == 'k') {
    /* The callback wants Python's lock, whose owner may want ours. */
    pthread_mutex_unlock(&lock);
    op->call();
    pthread_mutex_lock(&lock);
  }
  if (op->kind == 'g')
    for (size_t i = 0; i < op->graph->count; i++) perform(&op->graph->ops[i]);
}

static int run(Stream *s, u64 until) {
  while (s->done < until && s->first < s->count) {
    Op op = s->ops[s->first++];
    s->done++;
    perform(&op);
  }
  return broken;
}

static void append(Op **ops, size_t *count, size_t *room, Op op) {
  if (*count == *room) *ops = realloc(*ops, (*room = *room * 2 + 16) * sizeof(Op));
  (*ops)[(*count)++] = op;
}

static int enqueue(Stream *s, Op op) {
  if (s->capturing == 2) return INVALIDATED;
  if (s->capturing) {
    size_t room = s->graph->count;
    append(&s->graph->ops, &s->graph->count, &room, op);
    return 0;
  }
  if (s->first == s->count) s->first = s->count = 0;
  append(&s->ops, &s->count, &s->room, op);
  return broken;
}

static Stream *spoiled(void) { /* the calling thread's capture, which a forbidden call spoils */
  for (int i = 0; i < stream_count; i++)
    if (streams[i]->capturing && streams[i]->mode != 2 && pthread_equal(streams[i]->thread, pthread_self())) return streams[i];
  return NULL;
}

#define FORBIDDEN_IN_CAPTURE                          \
  {                                                   \
    Stream *captures = spoiled();                     \
    if (captures) {                                   \
      captures->capturing = 2;                        \
      return leave(UNSUPPORTED_IN_CAPTURE);           \
    }                                                 \
  }

static int new_stream(void **handle) {
  Stream *s = calloc(1, sizeof(Stream));
  s->device = here();
  if (stream_count < 4096) streams[stream_count++] = s;
  *handle = s;
  return 0;
}

CALL(cuStreamCreate, void **s, unsigned flags) new_stream(s); END
CALL(cuStreamCreateWithPriority, void **s, unsigned flags, int priority) new_stream(s); END
CALL(cuStreamDestroy_v2, void *s) of(s)->destroyed = 1; END
CALL(cuStreamGetCtx, void *s, void **c) *c = (void *)(intptr_t)(0xc000 + of(s)->device); END
CALL(cuStreamGetCtx_v2, void *s, void **c, void **green)
  *c = (void *)(intptr_t)(0xc000 + of(s)->device);
  if (green) *green = NULL;
END
CALL(cuStreamGetDevice, void *s, int *d) *d = of(s)->device; END
CALL(cuStreamGetFlags, void *s, unsigned *f) *f = 1; END
CALL(cuStreamGetPriority, void *s, int *p) *p = 0; END
CALL(cuStreamSynchronize, void *handle)
  Stream *s = of(handle);
  if (s->capturing) {
    s->capturing = 2;
    return leave(UNSUPPORTED_IN_CAPTURE);
  }
  return leave(run(s, last(s)));
}
CALL(cuStreamQuery, void *handle) return leave(of(handle)->first == of(handle)->count ? 0 : NOT_READY); }
CALL(cuStreamIsCapturing, void *s, int *c) *c = of(s)->capturing; END
CALL(cuCtxSynchronize, void)
  FORBIDDEN_IN_CAPTURE
  for (int i = 0; i < stream_count; i++) run(streams[i], last(streams[i]));
  for (int i = 0; i < 16; i++) run(&legacy[i], last(&legacy[i]));
  return leave(broken);
}
void rehearsal_enqueue(void *stream, Callback call) {
  pthread_mutex_lock(&lock);
  enqueue(of(stream), (Op){.kind = 'k', .call = call});
  pthread_mutex_unlock(&lock);
}
void rehearsal_spoil(void *stream) { of(stream)->capturing = 2; }
int rehearsal_pending(void *stream) { return (int)(of(stream)->count - of(stream)->first); }

/* ---- capture and graphs --------------------------------------------------------------------------------------------------- */
CALL(cuStreamBeginCapture_v2, void *handle, int mode)
  Stream *s = of(handle);
  if ((intptr_t)handle < 2) return leave(UNSUPPORTED_IN_CAPTURE);
  if (s->capturing) return leave(ILLEGAL_STATE);
  s->capturing = 1, s->mode = mode, s->thread = pthread_self();
  s->graph = calloc(1, sizeof(Graph));
  s->graph->alive = 1;
END
CALL(cuStreamEndCapture, void *handle, void **graph)
  Stream *s = of(handle);
  if (!s->capturing) return leave(ILLEGAL_STATE);
  if (s->mode != 2 && !pthread_equal(s->thread, pthread_self())) return leave(WRONG_THREAD);
  int spoilt = s->capturing == 2;
  s->capturing = 0;
  if (graph) *graph = spoilt ? NULL : s->graph;
  return leave(spoilt ? INVALIDATED : 0);
}
CALL(cuStreamGetCaptureInfo_v2, void *s, int *status, u64 *id, void **graph, void *deps, void *count)
  *status = of(s)->capturing;
  if (id) *id = 1;
  if (graph) *graph = of(s)->graph;
END
CALL(cuStreamGetCaptureInfo_v3, void *s, int *status, u64 *id, void **graph, void *deps, void *edges, void *count)
  *status = of(s)->capturing;
  if (id) *id = 1;
  if (graph) *graph = of(s)->graph;
END
CALL(cuGraphInstantiateWithParams, void **exec, void *graph, u64 *params) *exec = graph, ((int *)params)[6] = 0; END
CALL(cuGraphLaunch, void *exec, void *stream)
  return leave(enqueue(of(stream), (Op){.kind = 'g', .graph = exec}));
}
CALL(cuGraphDestroy, void *graph) END
CALL(cuGraphExecDestroy, void *graph) END
CALL(cuUserObjectCreate, void **object, void *p, void *destroy, unsigned count, unsigned flags) *object = (void *)0x90; END
CALL(cuUserObjectRetain, void *object, unsigned count) END
CALL(cuUserObjectRelease, void *object, unsigned count) END
CALL(cuGraphRetainUserObject, void *graph, void *object, unsigned count, unsigned flags) END
CALL(cuGraphReleaseUserObject, void *graph, void *object, unsigned count) END

/* ---- events --------------------------------------------------------------------------------------------------------------- */
CALL(cuEventCreate, void **e, unsigned flags) *e = calloc(1, sizeof(Event)); END
CALL(cuEventDestroy_v2, void *e) END
CALL(cuEventRecord, Event *e, void *stream)
  Stream *s = of(stream);
  if (s->destroyed) return leave(BAD_HANDLE);
  if (!s->capturing) e->stream = s, e->until = last(s);
END
CALL(cuEventRecordWithFlags, Event *e, void *stream, unsigned flags)
  Stream *s = of(stream);
  if (s->destroyed) return leave(BAD_HANDLE);
  if (!s->capturing) e->stream = s, e->until = last(s);
END
CALL(cuEventSynchronize, Event *e) return leave(e->stream ? run(e->stream, e->until) : 0); }
CALL(cuEventQuery, Event *e) return leave(!e->stream || e->stream->done >= e->until ? 0 : NOT_READY); }
CALL(cuEventElapsedTime_v2, float *ms, Event *a, Event *b) *ms = 0; END
CALL(cuStreamWaitEvent, void *stream, Event *e, unsigned flags)
  if (!e->stream) return leave(0);
  return leave(enqueue(of(stream), (Op){.kind = 'w', .other = e->stream, .until = e->until}));
}

/* ---- memory --------------------------------------------------------------------------------------------------------------- */
static Block *find(const void *p) {
  for (size_t i = block_count; i-- > 0;)
    if ((char *)p >= blocks[i].start && (char *)p < blocks[i].start + (blocks[i].size ? blocks[i].size : 1)) return &blocks[i];
  return NULL;
}

static int allocate(void **p, size_t size, int device, int pinned) {
  char *start;
  if (size > (1ull << 32)) return NO_MEMORY;
  if (posix_memalign((void **)&start, 512, size + 512)) return NO_MEMORY;
  start += misalign;
  memset(start, FRESH, size);
  if (block_count == block_room) blocks = realloc(blocks, (block_room = block_room * 2 + 64) * sizeof(Block));
  blocks[block_count++] = (Block){start, size, device, pinned, 0};
  *p = start;
  return broken;
}

static int release(void *p, Stream *s) {
  Block *b = find(p);
  if (!b || b->start != p || b->freed) return INVALID;
  b->freed = 1;
  Op op = {.kind = 'f', .to = b->start, .width = b->size};
  if (!s) return perform(&op), 0;
  return enqueue(s, op);
}

static int copy(Stream *s, Op op) {
  op.kind = 'c';
  Block *from = find(op.from), *to = find(op.to);
  if (s && s->capturing) return enqueue(s, op);
  int failed = s ? enqueue(s, op) : (perform(&op), 0);
  if (failed) return failed;
  if (s && (!from || !to)) return run(s, last(s)); /* pageable: done when the call returns */
  return 0;
}

#define FLAT(n) .width = n, .height = 1
CALL(cuMemAllocFromPoolAsync, void **p, size_t n, void *pool, void *stream)
  if ((intptr_t)pool >= 0x80) return leave(allocate(p, n, -1, 1));
  return leave(allocate(p, n, of(stream)->device, 0));
}
CALL(cuMemAllocAsync, void **p, size_t n, void *stream) return leave(allocate(p, n, of(stream)->device, 0)); }
CALL(cuMemAlloc_v2, void **p, size_t n) FORBIDDEN_IN_CAPTURE return leave(allocate(p, n, here(), 0)); }
CALL(cuMemAllocHost_v2, void **p, size_t n) FORBIDDEN_IN_CAPTURE return leave(allocate(p, n, -1, 1)); }
CALL(cuMemHostAlloc, void **p, size_t n, unsigned flags) FORBIDDEN_IN_CAPTURE return leave(allocate(p, n, -1, 1)); }
CALL(cuMemFreeAsync, void *p, void *stream) return leave(release(p, of(stream))); }
CALL(cuMemFree_v2, void *p) FORBIDDEN_IN_CAPTURE return leave(release(p, NULL)); }
CALL(cuMemFreeHost, void *p) return leave(release(p, NULL)); }
CALL(cuMemcpyAsync, void *to, const void *from, size_t n, void *stream)
  return leave(copy(of(stream), (Op){.to = to, .from = from, FLAT(n)}));
}
CALL(cuMemcpyHtoDAsync_v2, void *to, const void *from, size_t n, void *stream)
  return leave(copy(of(stream), (Op){.to = to, .from = from, FLAT(n)}));
}
CALL(cuMemcpyDtoHAsync_v2, void *to, const void *from, size_t n, void *stream)
  return leave(copy(of(stream), (Op){.to = to, .from = from, FLAT(n)}));
}
CALL(cuMemcpyDtoDAsync_v2, void *to, const void *from, size_t n, void *stream)
  return leave(copy(of(stream), (Op){.to = to, .from = from, FLAT(n)}));
}
typedef struct {
  size_t from_x, from_y;
  int from_kind;
  const char *from_host;
  char *from_device;
  void *from_array;
  size_t from_pitch, to_x, to_y;
  int to_kind;
  char *to_host, *to_device;
  void *to_array;
  size_t to_pitch, width, height;
} Rectangle;
CALL(cuMemcpy2DAsync_v2, const Rectangle *r, void *stream)
  if (r->from_pitch < r->width || r->to_pitch < r->width || r->from_kind != 2 || r->to_kind != 2) return leave(INVALID);
  return leave(copy(of(stream), (Op){.to = r->to_device + r->to_y * r->to_pitch + r->to_x,
                                     .from = r->from_device + r->from_y * r->from_pitch + r->from_x,
                                     .width = r->width, .height = r->height, .to_pitch = r->to_pitch, .from_pitch = r->from_pitch}));
}
CALL(cuMemsetD8Async, void *to, unsigned char value, size_t n, void *stream)
  return leave(enqueue(of(stream), (Op){.kind = 's', .to = to, .width = n, .value = value}));
}
static int attribute(void *to, int which, const void *p) {
  Block *b = find(p);
  int device = !b || b->pinned ? 0 : b->device;
  if (which == 2) *(unsigned *)to = !b ? 0 : b->pinned ? 1 : 2;
  else if (which == 1) *(void **)to = (void *)(intptr_t)(0xc000 + device);
  else if (which == 3) *(const void **)to = b ? p : NULL;
  else if (which == 4) *(const void **)to = b && b->pinned ? p : NULL;
  else if (which == 8) *(unsigned char *)to = 0;
  else if (which == 9) *(int *)to = !b || b->pinned ? -2 : b->device;
  else *(int *)to = 0;
  return 0;
}
CALL(cuPointerGetAttributes, unsigned n, int *which, void **to, const void *p)
  for (unsigned i = 0; i < n; i++) attribute(to[i], which[i], p);
END
CALL(cuPointerGetAttribute, void *to, int which, const void *p)
  if (!find(p)) return leave(INVALID);
  attribute(to, which, p);
END
CALL(cuDeviceGetDefaultMemPool, void **pool, int d) *pool = (void *)(intptr_t)(0x70 + d); END
CALL(cuDeviceGetMemPool, void **pool, int d) *pool = (void *)(intptr_t)(0x70 + d); END
CALL(cuMemGetDefaultMemPool, void **pool, void *location, int kind) *pool = (void *)0x80; END
CALL(cuMemGetMemPool, void **pool, void *location, int kind) *pool = (void *)0x80; END
CALL(cuMemPoolCreate, void **pool, void *properties) *pool = (void *)0x7f; END
CALL(cuMemPoolGetAttribute, void *pool, int which, u64 *value) *value = 0; END
CALL(cuMemPoolSetAttribute, void *pool, int which, void *value) END
CALL(cuTensorMapEncodeTiled, void *map) END

/* ---- devices and contexts ------------------------------------------------------------------------------------------------- */
static int setting(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }

CALL(cuInit, unsigned flags) END
CALL(cuDriverGetVersion, int *v) *v = setting("CUDA_REHEARSAL_DRIVER", 13000); END
CALL(cuDeviceGetCount, int *n) *n = setting("CUDA_REHEARSAL_DEVICES", 2); END
CALL(cuDeviceGet, int *d, int i)
  if (i >= setting("CUDA_REHEARSAL_DEVICES", 2)) return leave(101);
  *d = i;
END
CALL(cuDeviceGetName, char *name, int n, int d) snprintf(name, n, "Rehearsal GPU %d", d); END
CALL(cuDeviceGetAttribute, int *v, int which, int d)
  int capability = setting("CUDA_REHEARSAL_CAPABILITY", 89);
  *v = which == 75 ? capability / 10 : which == 76 ? capability % 10 : which == 16 ? 64 : 1;
END
CALL(cuDeviceGetUuid_v2, char *uuid, int d) memset(uuid, 0x10 + d, 16); END
CALL(cuDeviceTotalMem_v2, size_t *n, int d) *n = 1ull << 34; END
CALL(cuMemGetInfo_v2, size_t *available, size_t *total) *available = 1ull << 33, *total = 1ull << 34; END
CALL(cuDevicePrimaryCtxRetain, void **c, int d) *c = (void *)(intptr_t)(0xc000 + d); END
CALL(cuDevicePrimaryCtxRelease_v2, int d) END
CALL(cuCtxSetCurrent, void *c)
  if (!depth) depth = 1;
  stack[depth - 1] = (intptr_t)c;
  if (!c) depth--;
END
CALL(cuCtxGetCurrent, void **c) *c = depth ? (void *)stack[depth - 1] : NULL; END
CALL(cuCtxPushCurrent_v2, void *c) stack[depth++] = (intptr_t)c; END
CALL(cuCtxPopCurrent_v2, void **c)
  if (!depth) return leave(201);
  depth--;
  if (c) *c = (void *)stack[depth];
END
CALL(cuCtxGetDevice, int *d)
  if (!depth) return leave(201);
  *d = here();
END
CALL(cuCtxGetDevice_v2, int *d, void *c) *d = c ? (int)((intptr_t)c - 0xc000) : here(); END
CALL(cuCtxGetId, void *c, u64 *id) *id = (u64)(intptr_t)c; END
CALL(cuCtxGetStreamPriorityRange, int *low, int *high) *low = 0, *high = -5; END

/* ---- errors and entry points ---------------------------------------------------------------------------------------------- */
static const struct {
  int code;
  const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {INVALID, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {NO_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {BAD_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {UNSUPPORTED_IN_CAPTURE, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
};

int cuGetErrorName(int code, const char **text) {
  *text = "CUDA_ERROR_UNKNOWN";
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) *text = errors[i].name;
  return 0;
}

int cuGetErrorString(int code, const char **text) {
  *text = "unknown error";
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) *text = errors[i].text;
  return 0;
}

static int unknown(void) { return NOT_FOUND; }

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
  static const char *const endings[] = {"_v3", "_v2", ""};
  void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  char full[128];
  if (status) *status = 0;
  for (int i = 0; i < 3; i++) {
    snprintf(full, sizeof full, "%s%s", name, endings[i]);
    if ((*function = dlsym(self, full))) return 0;
  }
  if (getenv("CUDA_REHEARSAL_MISSING")) fprintf(stderr, "not rehearsed: %s\n", name);
  *function = (void *)unknown;
  return 0;
}

int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
