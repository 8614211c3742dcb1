// GPU: copy within device memory, and a tiled float32 matrix product whose result is checked.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kTile = 64;   // rows and columns of the product a block makes
constexpr int kDepth = 16;  // how far it reads into the factors at a time
constexpr int kEach = 4;    // rows and columns a thread makes: 16 x 16 threads a block

__global__ void copy(float4* __restrict__ to, const float4* __restrict__ from, std::size_t count) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = from[i];
  }
}

__global__ void fill(float* to, std::size_t count, float value) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = value;
  }
}

// c = a * b for square matrices whose order is a multiple of kTile.
__global__ void product(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int order) {
  __shared__ float left[kDepth][kTile];
  __shared__ float right[kDepth][kTile];
  const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  float sums[kEach][kEach] = {};
  for (int start = 0; start < order; start += kDepth) {
    for (int i = thread; i < kTile * kDepth; i += blockDim.x * blockDim.y) {
      left[i % kDepth][i / kDepth] = a[static_cast<std::size_t>(row + i / kDepth) * order + start + i % kDepth];
      right[i / kTile][i % kTile] = b[static_cast<std::size_t>(start + i / kTile) * order + column + i % kTile];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] += left[k][threadIdx.y * kEach + i] * right[k][threadIdx.x * kEach + j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < kEach; ++i) {
    for (int j = 0; j < kEach; ++j) {
      c[static_cast<std::size_t>(row + threadIdx.y * kEach + i) * order + column + threadIdx.x * kEach + j] = sums[i][j];
    }
  }
}

// Device memory that is freed on every way out.
struct Buffer {
  float* data = nullptr;
  ~Buffer() { cudaFree(data); }
  cudaError_t take(std::size_t bytes) { return cudaMalloc(reinterpret_cast<void**>(&data), bytes); }
};

struct Timer {
  cudaEvent_t begun = nullptr, ended = nullptr;
  Timer() {
    cudaEventCreate(&begun);
    cudaEventCreate(&ended);
  }
  ~Timer() {
    cudaEventDestroy(begun);
    cudaEventDestroy(ended);
  }
};

// Runs `work` once to warm up and then `repeats` times; each time's seconds go into `seconds`.
template <typename Work>
cudaError_t measure(int repeats, double* seconds, Work work) {
  Timer timer;
  work();
  for (int i = 0; i < repeats; ++i) {
    float milliseconds = 0;
    cudaEventRecord(timer.begun);
    work();
    cudaEventRecord(timer.ended);
    if (cudaError_t error = cudaEventSynchronize(timer.ended)) return error;
    cudaEventElapsedTime(&milliseconds, timer.begun, timer.ended);
    seconds[i] = milliseconds / 1e3;
  }
  return cudaGetLastError();
}

}  // namespace

// Returns the number of GPUs, or minus the CUDA error.
EXPORT int sparkstack_device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return error ? -static_cast<int>(error) : count;
}

EXPORT const char* sparkstack_device_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Writes the GPU's name into `name` (256 bytes) and its compute capability into `capability` (major, minor).
EXPORT int sparkstack_device_name(int device, char* name, int* capability) {
  cudaDeviceProp properties;
  if (cudaError_t error = cudaGetDeviceProperties(&properties, device)) return error;
  std::snprintf(name, 256, "%s", properties.name);
  capability[0] = properties.major;
  capability[1] = properties.minor;
  return cudaSuccess;
}

// Copies `bytes` within the GPU's memory, `repeats` times; returns the CUDA error, 0 for none.
EXPORT int sparkstack_device_copy(int device, std::uint64_t bytes, int repeats, double* seconds) {
  if (cudaError_t error = cudaSetDevice(device)) return error;
  Buffer from, to;
  if (cudaError_t error = from.take(bytes)) return error;
  if (cudaError_t error = to.take(bytes)) return error;
  fill<<<1024, 256>>>(from.data, bytes / sizeof(float), 1.0f);
  return measure(repeats, seconds, [&] {
    copy<<<2048, 256>>>(reinterpret_cast<float4*>(to.data), reinterpret_cast<const float4*>(from.data), bytes / sizeof(float4));
  });
}

// Multiplies two square matrices of `order` (a multiple of 64) `repeats` times; `worst` is the largest deviation of a
// corner of the result from what it must be. Returns the CUDA error, 0 for none.
EXPORT int sparkstack_device_product(int device, int order, int repeats, double* seconds, double* worst) {
  if (order < kTile || order % kTile) return cudaErrorInvalidValue;
  if (cudaError_t error = cudaSetDevice(device)) return error;
  const std::size_t count = static_cast<std::size_t>(order) * order;
  Buffer a, b, c;
  for (Buffer* buffer : {&a, &b, &c}) {
    if (cudaError_t error = buffer->take(count * sizeof(float))) return error;
  }
  fill<<<1024, 256>>>(a.data, count, 0.5f);
  fill<<<1024, 256>>>(b.data, count, 0.25f);
  const dim3 grid(order / kTile, order / kTile), block(kTile / kEach, kTile / kEach);
  if (cudaError_t error = measure(repeats, seconds, [&] { product<<<grid, block>>>(c.data, a.data, b.data, order); })) return error;
  *worst = 0;
  for (std::size_t place : {std::size_t{0}, static_cast<std::size_t>(order) - 1, count - 1}) {
    float value = 0;
    if (cudaError_t error = cudaMemcpy(&value, c.data + place, sizeof value, cudaMemcpyDeviceToHost)) return error;
    *worst = std::fmax(*worst, std::fabs(value - 0.125 * order));
  }
  return cudaSuccess;
}
