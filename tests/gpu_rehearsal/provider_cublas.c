/* Stand-ins for cuBLAS and cuBLASLt: handles, and one algorithm for every product. */
#include <stdlib.h>
#include <string.h>

static int handle(void **made) { return (*made = malloc(1)) ? 0 : 3; }
int cublasCreate_v2(void **made) { return handle(made); }
int cublasDestroy_v2(void *made) { free(made); return 0; }
int cublasGetMathMode(void *made, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(int status) { return "CUBLAS_STATUS"; }
const char *cublasGetStatusString(int status) { return "a status of the stand-in"; }

int cublasLtCreate(void **made) { return handle(made); }
int cublasLtDestroy(void *made) { free(made); return 0; }
int cublasLtMatmulDescCreate(void **made, int compute, int scale) { return handle(made); }
int cublasLtMatmulDescDestroy(void *made) { free(made); return 0; }
int cublasLtMatmulPreferenceCreate(void **made) { return handle(made); }
int cublasLtMatmulPreferenceDestroy(void *made) { free(made); return 0; }
int cublasLtMatrixLayoutCreate(void **made, int type, unsigned long long rows, unsigned long long columns, long long step) { return handle(made); }
int cublasLtMatrixLayoutDestroy(void *made) { free(made); return 0; }
int cublasLtMatrixTransformDescCreate(void **made, int scale) { return handle(made); }
int cublasLtMatrixTransformDescDestroy(void *made) { free(made); return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *made, void *product, void *a, void *b, void *c, void *d, void *preference, int asked, void *results, int *given) {
    if (asked > 0) memset(results, 0, 96); /* an algorithm, no workspace, success */
    *given = asked > 0;
    return 0;
}
