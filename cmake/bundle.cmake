# bundle.cmake - a folder that runs elsewhere: cmake --build BUILD --target bundle
#
# Builds muster once more with the single-rank twin of dist, and puts the program, its tests and benchmarks into
# BUILD/bundle/muster-VERSION, with every shared library they need but those of the C library and of the NVIDIA driver:
# any x86-64 Linux with glibc as new as the one here runs it, without MPI, HDF5 or CUDA installed: bin/muster trains,
# gpu/run.py tests and measures. Run as a script with SOURCE, BUILD, VERSION, CUDA (ON or OFF), CUDA_COMPILER.
set(inner ${BUILD}/bundle/build)
set(folder ${BUILD}/bundle/muster-${VERSION})

function(must)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "bundle: this failed: ${ARGN}")
    endif()
endfunction()

must(${CMAKE_COMMAND} -S ${SOURCE} -B ${inner} -DCMAKE_BUILD_TYPE=Release -DMUSTER_MPI=OFF -DMUSTER_CUDA=${CUDA}
     -DCMAKE_CUDA_COMPILER=${CUDA_COMPILER} -DMUSTER_EXAMPLES=OFF -DBUILD_TESTING=ON
     "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags,-rpath,'$ORIGIN/../lib'")
set(tests cuda_cases kernels_test_kernels kernels_test_reference)
set(bench muster_bench muster_bench_device muster_bench_attention)
cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
must(${CMAKE_COMMAND} --build ${inner} --parallel ${cores} --target muster_program ${tests} ${bench})
list(TRANSFORM tests PREPEND ${inner}/tests/)
list(TRANSFORM bench PREPEND ${inner}/bench/)

file(REMOVE_RECURSE ${folder})
file(COPY ${inner}/muster ${inner}/muster-probe-hdf5 DESTINATION ${folder}/bin)
file(COPY ${tests} DESTINATION ${folder}/tests)
file(COPY ${bench} DESTINATION ${folder}/bench)
file(COPY ${SOURCE}/configs DESTINATION ${folder})
file(COPY ${SOURCE}/bench/gpu/run.py ${SOURCE}/bench/peers/moe_layer.py DESTINATION ${folder}/gpu)

# ---------------------------------------------------------------- shared libraries
file(GET_RUNTIME_DEPENDENCIES EXECUTABLES ${folder}/bin/muster ${folder}/bin/muster-probe-hdf5 ${tests} ${bench}
     RESOLVED_DEPENDENCIES_VAR libraries UNRESOLVED_DEPENDENCIES_VAR missing
     POST_EXCLUDE_REGEXES "/(ld-linux[^/]*|libc|libm|libdl|libpthread|librt|libresolv)\\.so" "/libcuda\\.so" "/libnvidia-")
if(missing)
    message(FATAL_ERROR "bundle: these libraries were not found: ${missing}")
endif()
file(COPY ${libraries} DESTINATION ${folder}/lib FOLLOW_SYMLINK_CHAIN)

execute_process(COMMAND du -sh ${folder} OUTPUT_VARIABLE size OUTPUT_STRIP_TRAILING_WHITESPACE)
message(STATUS "bundle: ${size}")
