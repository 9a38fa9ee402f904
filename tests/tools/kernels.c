/* kernels.c - the list of kernel cases on one device, without cmocka, for processors that are emulated:
 * kernels DEVICE compares every case with the reference; kernels --best prints the name of device "cpu". */
#include "kernels/cases.h"

#include <stdio.h>

static int agree(mu_device *dev) {
    mu_device *ref = mu_device_open("ref");
    int wrong = 0;
    for (int i = 0; i < N_KERNEL_CASES; i++)
        wrong += !case_agrees(ref, dev, &kernel_cases[i], 3, false, NULL);
    printf("%s: %d of %d cases agree with the reference\n", dev->name, N_KERNEL_CASES - wrong,
           N_KERNEL_CASES);
    mu_device_close(ref);
    return wrong != 0;
}

int main(int argc, char **argv) {
    bool best = argc == 2 && !strcmp(argv[1], "--best");
    mu_device *dev = argc == 2 ? mu_device_open(best ? "cpu" : argv[1]) : NULL;
    if (!dev) {
        fprintf(stderr, argc == 2 ? "this processor cannot run %s\n" : "usage: kernels DEVICE | --best\n",
                argv[argc - 1]);
        return 1;
    }
    int status = 0;
    if (best) printf("%s\n", dev->name);
    else status = agree(dev);
    mu_device_close(dev);
    return status;
}
