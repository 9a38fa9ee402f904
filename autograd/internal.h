/* internal.h - shared by the files of autograd/. */
#ifndef MUSTER_AUTOGRAD_INTERNAL_H
#define MUSTER_AUTOGRAD_INTERNAL_H
#include "autograd/autograd.h"

/* Device memory of the tape: first fit over a list of free blocks, so that the same sequence of requests gets the
 * same addresses every step, and no more memory is committed than the largest step needs. */
typedef struct { size_t at, bytes; } mu_free_block;
typedef struct {
    mu_memory *memory;
    mu_free_block *free_list;        /* ascending, never adjacent */
    int n_free, capacity;
    size_t end;                 /* nothing beyond this is in use */
    size_t peak;
} mu_pool;
void  mu_pool_init(mu_pool *p, mu_device *dev);
void  mu_pool_free(mu_pool *p);
void  mu_pool_reset(mu_pool *p);
void *mu_pool_take(mu_pool *p, size_t bytes);
void  mu_pool_give(mu_pool *p, void *data, size_t bytes);

typedef struct { mu_node **list; int n, capacity; } mu_node_list;
struct mu_tape {
    mu_device *dev;
    mu_pool pool;               /* activations and their gradients */
    mu_arena host;              /* nodes, tensors, extras */
    mu_node_list nodes;
    bool recording;
    int segment, n_segments;    /* the one being recorded (0: none); number since the last reset */
    int segment_start;          /* its first node */
    int64_t unit_rows;          /* of a reduction unit; 0: the whole batch is one */
    int layer;                  /* of the ops being recorded; -1: none */
    const char *part;           /* profile: current part, and its start below */
    double part_start;
    mu_part_time times[16];
    int n_times;
};
void mu_tape_check_inputs(const mu_tape *tp, const mu_node *n);     /* fatal unless all have data on this device */
mu_part_time *mu_tape_time(mu_tape *tp, const char *part);
void mu_tape_take_data(mu_tape *tp, mu_tensor *t);          /* allocates the data in the tape's pool */
void mu_tape_give_data(mu_tape *tp, mu_tensor *t);          /* frees the data if it is in the tape's pool */
void mu_tape_give_if_unread(mu_tape *tp, mu_tensor *t);     /* the same, if it was released and nothing will read it */
/* Recomputes what the backward of node `last`, and of earlier nodes of its segment, reads. */
void mu_tape_recompute(mu_tape *tp, int last);
#endif
