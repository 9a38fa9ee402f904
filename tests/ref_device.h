/* ref_device.h - the double-precision device as the fixture of a group of tests. */
#ifndef MUSTER_TESTS_REF_DEVICE_H
#define MUSTER_TESTS_REF_DEVICE_H
#include "kernels/kernels.h"

static mu_device *dev;

static int open_device(void **state) {
    (void)state;
    dev = mu_device_open("ref");
    return dev ? 0 : -1;
}

static int close_device(void **state) {
    (void)state;
    mu_device_close(dev);
    return 0;
}

#endif
