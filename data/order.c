/* order.c - the order of a domain's training sequences in an epoch: a permutation, either made in memory (Fisher-Yates), or computed
 * for each place. The latter is a Feistel network of 8 rounds on the smallest even number of bits that holds n; places from n on
 * are sent through it again until the result is below n (J. Black and P. Rogaway, Ciphers with arbitrary finite domains, 2002: "cycle
 * walking"), at most 4 times on average. */
#include "data/internal.h"

#include <stdlib.h>

enum { ROUNDS = 8, IN_MEMORY_MAX = 1 << 20 };

/* A random function of one half, of at most 31 bits. */
static uint64_t mix(const mu_rng *key, int round, uint64_t half) {
    mu_rng r = *key;
    r.layer = 1 + (uint32_t)round;      /* 0: the shuffle in memory */
    return mu_rng_u32(&r, 4 * half);
}

int64_t mu_order_compute(const mu_rng *key, int64_t n, int64_t place) {
    int bits = 1;                   /* of a half */
    while ((n - 1) >> (2 * bits)) bits++;
    uint64_t mask = ((uint64_t)1 << bits) - 1, x = (uint64_t)place;
    do {
        uint64_t left = x >> bits, right = x & mask;
        for (int round = 0; round < ROUNDS; round++) {
            uint64_t next = left ^ (mix(key, round, right) & mask);
            left = right, right = next;
        }
        x = left << bits | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

static void shuffle(mu_order *o, const mu_rng *key) {
    if (!o->list) o->list = mu_alloc((size_t)o->n, sizeof *o->list);
    for (int64_t i = 0; i < o->n; i++) o->list[i] = (uint32_t)i;
    for (int64_t i = o->n - 1; i > 0; i--) {
        int64_t j = (int64_t)(mu_rng_uniform(key, (uint64_t)i) * (double)(i + 1));
        uint32_t moved = o->list[i];
        if (j > i) j = i;
        o->list[i] = o->list[j];
        o->list[j] = moved;
    }
}

void mu_order_init(mu_order *o, int64_t n, bool in_memory) {
    *o = (mu_order){ .n = n, .in_memory = in_memory || n <= IN_MEMORY_MAX, .epoch = -1 };
}

int64_t mu_order_at(mu_order *o, const mu_rng *key, int64_t epoch, int64_t place) {
    if (!o->in_memory) return mu_order_compute(key, o->n, place);
    if (epoch != o->epoch) shuffle(o, key);
    o->epoch = epoch;
    return o->list[place];
}

void mu_order_free(mu_order *o) { free(o->list); }
