/* pieces.h - attention of a sequence in one piece and in many gives the same bits, on every device. */
#ifndef MUSTER_TESTS_KERNELS_PIECES_H
#define MUSTER_TESTS_KERNELS_PIECES_H
#include "harness.h"

static inline bool same_bits(mu_device *dev, mu_mat a, mu_mat b, int64_t rows) {
    size_t bytes = mu_dtype_size(a.dtype) * (size_t)(rows * a.ld);
    char *of_a = mu_alloc(2, bytes), *of_b = of_a + bytes;
    mu_device_read(dev, of_a, a.data, bytes);
    mu_device_read(dev, of_b, b.data, bytes);
    bool same = !memcmp(of_a, of_b, bytes);
    free(of_a);
    return same;
}

/* shape: S, H, G, d. One sequence of S tokens whose queries come in pieces of these lengths, over and over. */
static inline int attention_in_pieces(mu_device *dev, const int64_t *shape, int64_t pad, const int64_t *pieces,
                                      int n_pieces) {
    int64_t S = shape[0], H = shape[1], G = shape[2], d = shape[3];
    trial t = { .dev = dev, .seed = (uint64_t)d, .pad = pad, .memory = trial_memory(dev) };
    mu_attention_shape s = { 1, S, H, G, d, 1 / sqrt((double)d), 0 };
    mu_mat q = matrix(&t, "q", S, H * d), k = matrix(&t, "k", S, G * d), v = matrix(&t, "v", S, G * d);
    mu_mat y = new_matrix(&t, "y", S, H * d), lse = new_matrix(as_master(&t), "lse", H, S);
    mu_mat parts = new_matrix(&t, "parts", S, H * d), part_lse = new_matrix(as_master(&t), "part_lse", H, S);
    dev->k->attention_fwd(dev, &s, q, k, v, y, lse);
    for (int i = 0; s.past < S; s.past += s.S, i++) {
        mu_mat of[] = { q, parts, part_lse };
        for (int j = 0; j < 3; j++)
            of[j].data = (char *)of[j].data + (size_t)(s.past * (j < 2 ? of[j].ld : 1)) * mu_dtype_size(of[j].dtype);
        s.S = pieces[i % n_pieces] < S - s.past ? pieces[i % n_pieces] : S - s.past;
        dev->k->attention_fwd(dev, &s, of[0], k, v, of[1], of[2]);
    }
    int wrong = !same_bits(dev, y, parts, S) || !same_bits(dev, lse, part_lse, H);
    if (wrong)
        printf("%s: attention of %lld tokens, %lld heads over %lld of %lld differs in pieces\n", dev->name,
               (long long)S, (long long)H, (long long)G, (long long)d);
    trial_memory_free(t.memory);
    return wrong;
}

#endif
