# tests.cmake - is everything here that the tests need to be built?
#
# Sets MUSTER_WITH_TESTS. BUILD_TESTING is CTest's option: ON, OFF, or AUTO, the default: where cmocka, a C++ compiler
# and Boost.Context are found (docs/dependencies.md says what for).
set(BUILD_TESTING AUTO CACHE STRING "build the tests: ON, OFF, or AUTO: where what they need is found")
set_property(CACHE BUILD_TESTING PROPERTY STRINGS AUTO ON OFF)
include(CTest)
set(MUSTER_WITH_TESTS OFF)
if(NOT BUILD_TESTING)
    return()
endif()

set(missing "")
pkg_check_modules(CMOCKA QUIET IMPORTED_TARGET cmocka)
if(NOT CMOCKA_FOUND)
    list(APPEND missing libcmocka-dev)
endif()
include(CheckLanguage)
check_language(CXX)                     # for the CUDA kernels on the host alone
if(NOT CMAKE_CXX_COMPILER)
    list(APPEND missing g++)
endif()
find_path(BOOST_CONTEXT_INCLUDE boost/context/detail/fcontext.hpp)
find_library(BOOST_CONTEXT_LIBRARY boost_context)
if(NOT BOOST_CONTEXT_INCLUDE OR NOT BOOST_CONTEXT_LIBRARY)
    list(APPEND missing libboost-context-dev)
endif()

string(REPLACE ";" ", " missing "${missing}")
if(NOT missing)
    set(MUSTER_WITH_TESTS ON)
elseif(BUILD_TESTING STREQUAL "AUTO")
    message(STATUS "tests are left out: they also need ${missing} (Debian's names; BUILD_TESTING=AUTO)")
else()
    message(FATAL_ERROR "BUILD_TESTING=${BUILD_TESTING}, but the tests also need ${missing} (Debian's names): "
                        "BUILD_TESTING=AUTO or OFF builds without")
endif()
