/* Stand-in for cuDNN. Descriptors of the backend API keep the attributes that they are given; heuristics know three engines, which
   support every operation graph and need no workspace. CUDNN_STANDIN_TRACE=1 tells each call on stderr. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, BAD_PARAM = 2000 };

static int tracing(void) { return getenv("CUDNN_STANDIN_TRACE") != NULL; }
static int handle(void **made) { return (*made = calloc(1, 64)) ? SUCCESS : BAD_PARAM; }

size_t cudnnGetVersion(void) { return 91000; }
int cudnnCreate(void **made) { return handle(made); }
int cudnnDestroy(void *made) { free(made); return SUCCESS; }
static void *last_stream;
int cudnnSetStream(void *made, void *stream) { last_stream = stream; return SUCCESS; }
int cudnnGetStream(void *made, void **stream) { *stream = last_stream; return SUCCESS; }
const char *cudnnGetErrorString(int status) { return status ? "an error of the stand-in" : "CUDNN_STATUS_SUCCESS"; }
void cudnnGetLastErrorString(char *text, size_t size) { if (size) *text = 0; }

#define DESCRIPTOR(name) \
    int cudnnCreate##name##Descriptor(void **made) { return handle(made); } \
    int cudnnDestroy##name##Descriptor(void *made) { free(made); return SUCCESS; }
DESCRIPTOR(Activation) DESCRIPTOR(Convolution) DESCRIPTOR(Dropout) DESCRIPTOR(Filter) DESCRIPTOR(LRN) DESCRIPTOR(Pooling)
DESCRIPTOR(RNNData) DESCRIPTOR(RNN) DESCRIPTOR(ReduceTensor) DESCRIPTOR(Tensor)

int cudnnGetReductionIndicesSize(void *h, void *reduction, void *from, void *to, size_t *size) { *size = 0; return SUCCESS; }
int cudnnGetReductionWorkspaceSize(void *h, void *reduction, void *from, void *to, size_t *size) { *size = 0; return SUCCESS; }
int cudnnDropoutGetStatesSize(void *h, size_t *size) { *size = 1; return SUCCESS; }

struct algorithm { int algorithm, status; float time; size_t memory; int determinism, math, reserved[3]; };
static int one(int *count, struct algorithm *found) {
    memset(found, 0, sizeof *found);
    found->algorithm = 1;
    *count = 1;
    return SUCCESS;
}
int cudnnGetConvolutionForwardAlgorithm_v7(void *h, void *x, void *w, void *c, void *y, int asked, int *count, void *found) { return one(count, found); }
int cudnnFindConvolutionForwardAlgorithmEx(void *h, void *x, const void *xd, void *w, const void *wd, void *c, void *y, void *yd, int asked, int *count, void *found, void *space, size_t size) { return one(count, found); }
int cudnnGetConvolutionForwardWorkspaceSize(void *h, void *x, void *w, void *c, void *y, int algorithm, size_t *size) { *size = 0; return SUCCESS; }

/* The backend API. */
enum { ENGINES = 3 };
enum { HEURISTIC_RESULTS = 202, CONFIG_ENGINE = 300, CONFIG_SHARED_MEMORY = 304, PLAN_WORKSPACE = 402, GRAPH_ENGINES = 802, ENGINE_INDEX = 1301, ENGINE_NOTES = 1303, ENGINE_BEHAVIORS = 1305 };
enum { TYPE_BOOLEAN = 2, TYPE_DESCRIPTOR = 15, TYPE_CHAR = 24, TYPE_FRACTION = 27 };

struct attribute { int name, type; int64_t count; void *data; struct attribute *next; };
struct descriptor { int type; struct attribute *attributes; };

static size_t width(int type) {
    switch (type) {
        case 0: case 3: case 5: case 6: case TYPE_DESCRIPTOR: return 8;
        case TYPE_BOOLEAN: case TYPE_CHAR: return 1;
        case TYPE_FRACTION: return 16;
        default: return 4;
    }
}

int cudnnBackendCreateDescriptor(int type, void **made) {
    struct descriptor *descriptor = calloc(1, sizeof *descriptor);
    descriptor->type = type;
    *made = descriptor;
    return SUCCESS;
}

int cudnnBackendDestroyDescriptor(void *made) {
    struct descriptor *descriptor = made;
    for (struct attribute *a = descriptor ? descriptor->attributes : NULL, *next; a; a = next) {
        next = a->next;
        free(a->data);
        free(a);
    }
    free(descriptor);
    return SUCCESS;
}

int cudnnBackendSetAttribute(void *made, int name, int type, int64_t count, const void *data) {
    struct descriptor *descriptor = made;
    struct attribute *a = calloc(1, sizeof *a);
    size_t size = width(type) * (size_t)count;
    if (tracing()) fprintf(stderr, "cudnn: set %d of %d: %lld of type %d, first %d\n", name, descriptor->type, (long long)count, type, *(const int *)data);
    *a = (struct attribute){name, type, count, malloc(size + 1), descriptor->attributes};
    if (size) memcpy(a->data, data, size);
    descriptor->attributes = a;
    return SUCCESS;
}

int cudnnBackendFinalize(void *made) {
    if (tracing()) fprintf(stderr, "cudnn: finalize %d\n", ((struct descriptor *)made)->type);
    return SUCCESS;
}

int cudnnBackendGetAttribute(void *made, int name, int type, int64_t asked, int64_t *count, void *data) {
    struct descriptor *descriptor = made;
    int64_t ignored;
    if (!count) count = &ignored;
    if (tracing()) fprintf(stderr, "cudnn: get %d of %d: %lld of type %d\n", name, descriptor->type, (long long)asked, type);
    if (name == HEURISTIC_RESULTS || name == CONFIG_ENGINE) { /* fills descriptors that the caller made */
        *count = name == CONFIG_ENGINE ? 1 : asked && asked < ENGINES ? asked : ENGINES;
        return SUCCESS;
    }
    for (struct attribute *a = descriptor->attributes; a; a = a->next) {
        if (a->name != name) continue;
        *count = a->count;
        if (data) memcpy(data, a->data, width(type) * (size_t)(asked < a->count ? asked : a->count));
        return SUCCESS;
    }
    *count = 0;
    if (name == CONFIG_SHARED_MEMORY) {
        *count = 1;
        if (data && asked) memset(data, 0, width(type));
    }
    if (name == PLAN_WORKSPACE || name == GRAPH_ENGINES || name == ENGINE_INDEX) {
        int64_t value = name == GRAPH_ENGINES;
        *count = 1;
        if (data && asked) memcpy(data, &value, sizeof value);
    }
    return SUCCESS;
}

int cudnnBackendExecute(void *h, void *plan, void *variables) {
    if (tracing()) fprintf(stderr, "cudnn: execute\n");
    return SUCCESS;
}
