/* test_sim.cu - the simulator's own semantics, checked from inside kernels. */
#include "gpu.h"
#include <stdio.h>
#include <stdlib.h>
#define CHECK(c)                                           \
    do {                                                   \
        if (!(c)) {                                        \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #c); \
            atomicAdd(bad, 1);                             \
        }                                                  \
    } while (0)
__global__ void shuffles(int *bad)
{
    int l = threadIdx.x & 31;
    CHECK(__shfl_sync(~0u, l, 5) == 5);
    CHECK(__shfl_sync(~0u, l, 37) == 5);
    CHECK(__shfl_sync(~0u, l, 3, 8) == (l & ~7) + 3);
    CHECK(__shfl_up_sync(~0u, l, 1) == (l ? l - 1 : 0));
    CHECK(__shfl_up_sync(~0u, l, 2, 8) == ((l & 7) >= 2 ? l - 2 : l));
    CHECK(__shfl_down_sync(~0u, l, 1) == (l < 31 ? l + 1 : 31));
    CHECK(__shfl_down_sync(~0u, l, 3, 16) == ((l & 15) + 3 < 16 ? l + 3 : l));
    CHECK(__shfl_xor_sync(~0u, l, 16) == (l ^ 16));
    CHECK(__ballot_sync(~0u, l & 1) == 0xaaaaaaaau);
    CHECK(__any_sync(~0u, l == 7) && !__all_sync(~0u, l == 7) && __all_sync(~0u, 1));
    CHECK(__match_any_sync(~0u, l / 4) == 0xfu << (l & ~3));
    CHECK(__reduce_add_sync(~0u, l) == 496);
    float4 f = make_float4(l, 2, 3, 4);
    CHECK(__shfl_xor_sync(~0u, f.x, 1) == (l ^ 1));
    // two halves of the warp in different collectives at the same time
    if (l < 16)
        CHECK(__shfl_xor_sync(0x0000ffffu, l, 3) == (l ^ 3));
    else {
        CHECK(__ballot_sync(0xffff0000u, l > 20) == 0xffe00000u);
        CHECK(__shfl_sync(0xffff0000u, l, 17) == 17);
    }
    __syncwarp();
}
__global__ void partial(int *bad)
{ // 40 threads: the second warp has 8 lanes
    int l = threadIdx.x & 31, n = threadIdx.x < 32 ? 32 : 8;
    CHECK(__popc(__ballot_sync(~0u, 1)) == n);
    CHECK(__syncthreads_count(threadIdx.x % 2) == 20);
    CHECK(__syncthreads_or(threadIdx.x == 39) && !__syncthreads_and(l < 31));
}
__global__ void early(int *bad, int n)
{ // exited threads do not hold up the others
    if ((int)threadIdx.x >= n)
        return;
    __syncthreads();
    CHECK(__popc(__ballot_sync(~0u, 1)) == min(32, n - (int)(threadIdx.x & ~31u)));
    __syncthreads();
}
__global__ void dims(int *bad, int *cnt)
{
    SHARED(int, s, [2][3][4]);
    s[threadIdx.z][threadIdx.y][threadIdx.x] = threadIdx.x + 4 * threadIdx.y + 12 * threadIdx.z;
    __syncthreads();
    CHECK((&s[0][0][0])[23 - (threadIdx.x + 4 * threadIdx.y + 12 * threadIdx.z)] ==
          23 - (int)(threadIdx.x + 4 * threadIdx.y + 12 * threadIdx.z));
    CHECK(blockDim.x == 4 && blockDim.y == 3 && blockDim.z == 2 && gridDim.x == 5 &&
          gridDim.y == 2 && gridDim.z == 3);
    atomicAdd(cnt, 1);
}
// warp 0 produces, warps 1..3 consume; named barriers 1 (full) and 2 (empty), 128 threads each
template <bool BUG> __global__ void prodcons(int *bad, int n)
{
    SHARED(int, buf, [32]);
    int w = threadIdx.x >> 5, l = threadIdx.x & 31;
    for (int i = 0; i < n; i++) {
        if (w == 0) {
            buf[l] = i * 100 + l;
            named_barrier_sync(1, 128);
            if (!BUG)
                named_barrier_sync(2, 128);
        } else {
            named_barrier_sync(1, 128);
            CHECK(buf[31 - l] == i * 100 + 31 - l);
            if (!BUG)
                named_barrier_sync(2, 128);
        }
    }
}
// warp 1 and 2 poll for what warp 3 and then warp 0 publish
__global__ void poll(int *bad)
{
    SHARED(int, flag, [2]);
    if (threadIdx.x < 2)
        flag[threadIdx.x] = 0;
    __syncthreads();
    int w = threadIdx.x >> 5;
    if (w == 3 && !(threadIdx.x & 31))
        atomicExch(&flag[0], 1);
    if (w == 1 || w == 2)
        while (atomicAdd(&flag[1], 0) == 0)
            spin_pause();
    if (w == 0 && !(threadIdx.x & 31)) {
        while (atomicAdd(&flag[0], 0) == 0)
            spin_pause();
        atomicExch(&flag[1], 1);
    }
    __syncthreads();
    CHECK(flag[0] == 1 && flag[1] == 1);
}
int main(int argc, char **)
{
    int *bad, *cnt, h = 0, c = 0;
    cudaMalloc(&bad, 4);
    cudaMalloc(&cnt, 4);
    cudaMemset(bad, 0, 4);
    cudaMemset(cnt, 0, 4);
    LAUNCH(shuffles, 2, 64, 0, 0, bad);
    LAUNCH(partial, 2, 40, 0, 0, bad);
    LAUNCH(poll, 3, 128, 0, 0, bad);
    LAUNCH(early, 2, 128, 0, 0, bad, 70);
    LAUNCH(dims, dim3(5, 2, 3), dim3(4, 3, 2), 0, 0, bad, cnt);
#ifdef CUSIM
    LAUNCH(prodcons<false>, 2, 128, 0, 0, bad, 5);
    if (argc > 1)
        LAUNCH(prodcons<true>, 2, 128, 0, 0, bad, 5);
#endif
    // graph capture and replay, events across two streams
    cudaStream_t s, t;
    cudaEvent_t e;
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking);
    cudaEventCreate(&e);
    cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
    LAUNCH(dims, dim3(5, 2, 3), dim3(4, 3, 2), 0, s, bad, cnt);
    cudaStreamEndCapture(s, &g);
    cudaGraphInstantiate(&x, g, 0);
    for (int i = 0; i < 3; i++)
        cudaGraphLaunch(x, s);
    cudaEventRecord(e, s);
    cudaStreamWaitEvent(t, e, 0);
    cudaMemcpyAsync(&c, cnt, 4, cudaMemcpyDeviceToHost, t);
    cudaStreamSynchronize(t);
    cudaMemcpy(&h, bad, 4, cudaMemcpyDeviceToHost);
    cudaGraphExecDestroy(x);
    cudaGraphDestroy(g);
    cudaEventDestroy(e);
    cudaStreamDestroy(s);
    cudaStreamDestroy(t);
    cudaFree(bad);
    cudaFree(cnt);
    printf("sim: %d bad, count %d %s\n", h, c, h || c != 4 * 30 * 24 ? "FAIL" : "ok");
    return h || c != 4 * 30 * 24;
}
