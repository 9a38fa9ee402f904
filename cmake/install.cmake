# install.cmake - what `cmake --install` puts down: libmuster with its headers, the program, and two ways for
# others to find the library, a CMake package and a pkg-config file. They may be moved: neither holds a path
# of the build.
#   <prefix>/bin/muster   lib/libmuster.{a,so}   include/muster/<folder>/<folder>.h   libexec/muster/muster-probe-hdf5
#   lib/cmake/muster/     lib/pkgconfig/muster.pc   share/doc/muster/LICENSE
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/muster)

# Before 1.0 every minor version may change the interface.
set_target_properties(muster PROPERTIES VERSION ${PROJECT_VERSION}
                                        SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
if(BUILD_SHARED_LIBS)                   # the program finds the library beside it, wherever both were moved
    file(RELATIVE_PATH from_bin ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
    set_target_properties(muster_program PROPERTIES INSTALL_RPATH "$ORIGIN/${from_bin}")
endif()

install(TARGETS muster EXPORT muster-targets)
install(TARGETS muster_program)
install(TARGETS muster_probe EXPORT muster-targets DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/muster)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
foreach(folder base kernels autograd dist moe layers optim data)
    install(FILES ${folder}/${folder}.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/muster/${folder})
endforeach()

# ---------------------------------------------------------------- find_package(muster)
install(EXPORT muster-targets NAMESPACE muster:: DESTINATION ${package_dir})
configure_package_config_file(cmake/muster-config.cmake.in ${PROJECT_BINARY_DIR}/muster-config.cmake
                              INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/muster-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/muster-config.cmake ${PROJECT_BINARY_DIR}/muster-config-version.cmake
        DESTINATION ${package_dir})

# ---------------------------------------------------------------- pkg-config
# Adds "-Lfolder -lname" of a library to PC_PRIVATE_LIBS: pkg-config may put full paths too early.
function(pc_add library)
    if(IS_ABSOLUTE ${library})
        get_filename_component(folder ${library} DIRECTORY)
        get_filename_component(name ${library} NAME_WE)
        string(REGEX REPLACE "^lib" "" name ${name})
        if(NOT folder IN_LIST CMAKE_C_IMPLICIT_LINK_DIRECTORIES)
            set(library "-L${folder} -l${name}")
        else()
            set(library "-l${name}")
        endif()
    endif()
    set(PC_PRIVATE_LIBS "${PC_PRIVATE_LIBS} ${library}" PARENT_SCOPE)
endfunction()

set(PC_PRIVATE_MODULES "")
set(PC_PRIVATE_LIBS "")
if(NOT BUILD_SHARED_LIBS)               # a shared library knows its own needs
    set(PC_PRIVATE_MODULES "${HDF5_MODULE_NAME} yaml-0.1 jansson libxxhash libutf8proc oniguruma zlib libzstd")
    if(MUSTER_MPI)
        foreach(library ${MPI_C_LIBRARIES})
            pc_add(${library})
        endforeach()
    endif()
    if(MUSTER_WITH_CUDA)
        foreach(target CUDA::cublas CUDA::cudart_static)
            get_target_property(library ${target} IMPORTED_LOCATION)
            pc_add(${library})
        endforeach()
        foreach(library -lstdc++ -lpthread -ldl -lrt)
            pc_add(${library})
        endforeach()
    endif()
    pc_add(-lm)
    pc_add(${OpenMP_C_FLAGS})
endif()
set(pc_dir ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH PC_PREFIX ${pc_dir} ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" PC_PREFIX ${PC_PREFIX})
file(RELATIVE_PATH PC_INCLUDEDIR ${pc_dir} ${CMAKE_INSTALL_FULL_INCLUDEDIR}/muster)
file(RELATIVE_PATH PC_PROBE ${pc_dir} ${CMAKE_INSTALL_FULL_LIBEXECDIR}/muster/muster-probe-hdf5)
configure_file(cmake/muster.pc.in ${PROJECT_BINARY_DIR}/muster.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/muster.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
