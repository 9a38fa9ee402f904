/* cuda_cases.c - the list of cases on a CUDA device, GPU or emulation, against the reference.
 *
 *     cuda_cases DEVICE [KERNEL...]       DEVICE: cuda, cuda-bf16; KERNEL: only these
 *
 * Each case runs dense, with gaps between rows, and with gaps and all operands aligned (MUSTER_CASES_PAD: with gaps of
 * these widths only, as in 3,8); then attention in one piece and in many. The last line has a digest of all results. Exit: 0 all
 * agree, 1 some do not, 77 there is no such device. */
#include "cases.h"
#include "pieces.h"

static bool wanted(const char *kernel, char **only) {
    bool found = !*only;
    for (; *only; only++) found |= !strcmp(kernel, *only);
    return found;
}

static const int64_t all_pads[] = { 0, 3, 8 };
static const int64_t *pads = all_pads;
static int n_pads = sizeof all_pads / sizeof *all_pads;

/* Widths and alignments that take every path through the kernel. */
static int attention_pieces(mu_device *dev) {
    static const int64_t shapes[][4] = { { 200, 2, 2, 64 }, { 150, 4, 2, 128 }, { 140, 3, 1, 10 } },
                         pieces[] = { 5, 1, 1, 3, 33, 1, 64, 2, 100 };
    int wrong = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int p = 0; p < n_pads; p++) wrong += attention_in_pieces(dev, shapes[i], pads[p], pieces, 9);
    return wrong;
}

int main(int argc, char **argv) {
    mu_device *dev = argc > 1 ? mu_device_open(argv[1]) : NULL, *ref = mu_device_open("ref");
    if (!dev) {
        printf("skipped: %s\n", argc > 1 ? mu_cuda_missing() : "usage: cuda_cases DEVICE [KERNEL...]");
        return argc > 1 ? 77 : 64;
    }
    int64_t only[8];
    const char *list = getenv("MUSTER_CASES_PAD");
    if (list) pads = only, n_pads = 0;
    for (char *end; list && *list && n_pads < 8; list = *end ? end + 1 : end) only[n_pads++] = strtol(list, &end, 10);
    uint64_t digest = 0;
    int wrong = 0, n = 0;
    for (int i = 0; i < N_KERNEL_CASES; i++) {
        if (!wanted(kernel_cases[i].kernel, argv + 2)) continue;
        for (int p = 0; p < n_pads; p++, n++)
            wrong += !case_agrees(ref, dev, &kernel_cases[i], pads[p], dev->compute == MU_DTYPE_BF16, &digest);
    }
    if (wanted("attention_fwd", argv + 2)) wrong += attention_pieces(dev);
    printf("%s: %d of %d runs agree with the reference; digest %016llx\n", dev->name, n - wrong, n,
           (unsigned long long)digest);
    mu_device_close(dev);
    mu_device_close(ref);
    return wrong || !n;
}
