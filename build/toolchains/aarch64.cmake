# CMake toolchain file: compile on x86_64 for aarch64, CUDA's host code too. Debian's g++-aarch64-linux-gnu, and a CUDA
# toolkit with targets/sbsa-linux (build/toolkit.py). CMake takes nvcc and its host compiler from CUDACXX, CUDAHOSTCXX.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_STRIP aarch64-linux-gnu-strip)

# Debian's cross packages: libraries and headers of the target, nothing of this host. Programs run here.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
