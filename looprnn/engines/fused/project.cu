// The projection (project.cuh) as a kernel of its own.
#define APPROX 0
#include "persistent.cuh"
#include "project.cuh"

extern "C" __global__ void __launch_bounds__(384, 1) project(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const float* __restrict__ bias,
    float* __restrict__ y, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char raw[];
    projection::Shared& s = *reinterpret_cast<projection::Shared*>(raw);
    const projection::Work work{s, x, w, bias, y, nullptr, 1, M, projection::SIDE, N, K, (int)blockIdx.x, (int)gridDim.x};
    work.begin();
    asm volatile("griddepcontrol.launch_dependents;");  // for a kernel that waits for this one's end by itself
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp >= 8) {
        keep_registers<40>();
        if (threadIdx.x == 256) {
            previous_kernel_done();
            work.fetch();
        }
    } else {
        keep_registers<232>();
        work.compute(warp, threadIdx.x % 32);
    }
}
