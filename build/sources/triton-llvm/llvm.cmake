# Compiles the LLVM that triton is built against, before triton's own configuration begins (build/recipes/triton.toml).
#
# From the environment: LLVM_PROJECT_DIR, the source; LLVM_SYSPATH, where it is installed; MAX_JOBS. The options are
# those of triton's .github/workflows/llvm-build.yml, without what triton does not use and a machine may or may not have.
if(NOT EXISTS "$ENV{LLVM_SYSPATH}/lib/cmake/llvm/LLVMConfig.cmake")
  message(STATUS "compiling LLVM from $ENV{LLVM_PROJECT_DIR}")
  execute_process(
    COMMAND
      "${CMAKE_COMMAND}" -G Ninja -S "$ENV{LLVM_PROJECT_DIR}/llvm" -B "$ENV{LLVM_SYSPATH}-objects"
      -DCMAKE_BUILD_TYPE=Release
      "-DCMAKE_INSTALL_PREFIX=$ENV{LLVM_SYSPATH}"
      "-DLLVM_ENABLE_PROJECTS=mlir;lld"
      "-DLLVM_TARGETS_TO_BUILD=host;NVPTX;AMDGPU"
      -DLLVM_BUILD_UTILS=ON
      -DLLVM_INSTALL_UTILS=ON
      -DLLVM_ENABLE_ASSERTIONS=ON
      -DMLIR_ENABLE_BINDINGS_PYTHON=OFF
      -DLLVM_INCLUDE_TESTS=OFF
      -DLLVM_INCLUDE_BENCHMARKS=OFF
      -DLLVM_INCLUDE_EXAMPLES=OFF
      -DLLVM_ENABLE_LIBXML2=OFF
      -DLLVM_ENABLE_TERMINFO=OFF
      -DLLVM_ENABLE_ZLIB=OFF
      -DLLVM_ENABLE_ZSTD=OFF
    COMMAND_ERROR_IS_FATAL ANY)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" --build "$ENV{LLVM_SYSPATH}-objects" --target install --parallel "$ENV{MAX_JOBS}"
    COMMAND_ERROR_IS_FATAL ANY)
endif()
