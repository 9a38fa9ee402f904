# cuda.cmake - is there a CUDA toolkit, and how the .cu files are compiled.
#
# Sets MUSTER_WITH_CUDA, MUSTER_CUDA_SOURCES, MUSTER_CUDA_LIBRARIES. Machine code for Ampere and Hopper (sm_80, sm_90),
# PTX for what comes later.
set(MUSTER_WITH_CUDA OFF)
set(MUSTER_CUDA_LEAST 12.5)                         # has cudaGetDriverEntryPointByVersion
if(NOT MUSTER_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "MUSTER_CUDA is '${MUSTER_CUDA}': AUTO, ON or OFF")
endif()
if(MUSTER_CUDA STREQUAL "OFF")
    return()
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(ENV{CUDACXX} /usr/local/cuda/bin/nvcc)      # where NVIDIA's packages put it, often not in PATH
endif()
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
    enable_language(CUDA)
    find_package(CUDAToolkit ${MUSTER_CUDA_LEAST})
endif()
if(NOT CUDAToolkit_FOUND OR NOT TARGET CUDA::cublas OR NOT TARGET CUDA::curand)
    if(MUSTER_CUDA STREQUAL "ON")
        message(FATAL_ERROR "MUSTER_CUDA=ON, but nvcc, cuBLAS and cuRAND of CUDA ${MUSTER_CUDA_LEAST} or newer were not found: "
                            "-DCMAKE_CUDA_COMPILER=.../bin/nvcc names the toolkit, MUSTER_CUDA=OFF builds without")
    endif()
    message(STATUS "no CUDA toolkit from ${MUSTER_CUDA_LEAST} on: muster is built for the CPU (MUSTER_CUDA=AUTO)")
    return()
endif()

set(MUSTER_WITH_CUDA ON)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: muster is built for NVIDIA GPUs, too (MUSTER_CUDA=${MUSTER_CUDA})")
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -lineinfo")
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
file(GLOB MUSTER_CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu)
set_source_files_properties(${MUSTER_CUDA_SOURCES} PROPERTIES COMPILE_OPTIONS
    "-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror,-fvisibility=hidden")
set(MUSTER_CUDA_LIBRARIES CUDA::cudart_static CUDA::cublas stdc++)
