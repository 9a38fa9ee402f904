/* shards.c - ownership of units, and the all-gather of their values.
 *
 * Gradients, optimizer state and the update are divided among the ranks that hold the same units (ZeRO, Rajbhandari et
 * al. 2020, stage 1): a reduce-scatter before the step and an all-gather of values after it move as many bytes as one
 * all-reduce. Units are never split, so that each sum of squares has the same bits on any mesh. */
#include "optim/internal.h"

#include <stdlib.h>

static int rank_in(const mu_group *g) { return g->reduce ? comm_of(g)->rank : 0; }
static int ranks_of(const mu_group *g) { return g->reduce ? comm_of(g)->size : 1; }

static int64_t place_of(const mu_unit *u) { return u->param->slab_offset + u->offset; }

/* Shards end where units end, as close as possible to equal parts of the group's values. */
static int64_t *new_ends(const mu_params *ps, const mu_group *g) {
    int ranks = ranks_of(g);
    int64_t *ends = mu_alloc((size_t)ranks, sizeof *ends);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        if (u->param->desc.group == g)
            for (int r = 0; r < ranks; r++) {
                int64_t wanted = g->count / ranks * (r + 1), here = place_of(u);
                if (llabs(here - wanted) < llabs(ends[r] - wanted)) ends[r] = here;
                if (llabs(g->count - wanted) < llabs(ends[r] - wanted)) ends[r] = g->count;
            }
    ends[ranks - 1] = g->count;
    return ends;
}

static int64_t shard_begin(const mu_shards *s, int group, int rank) { return rank ? s->ends[group][rank - 1] : 0; }

static int64_t my_begin(const mu_shards *s, int group) { return shard_begin(s, group, rank_in(s->params->groups[group])); }

int64_t mu_shards_count(const mu_shards *s, int group, int rank) {
    return s->ends[group][rank] - shard_begin(s, group, rank);
}

int mu_shards_group(const mu_shards *s, const mu_unit *u) {
    int g = 0;
    while (s->params->groups[g] != u->param->desc.group) g++;
    return g;
}

int mu_shards_owner(const mu_shards *s, const mu_unit *u) {
    const int64_t *ends = s->ends[mu_shards_group(s, u)];
    int r = 0;
    while (place_of(u) >= ends[r]) r++;
    return r;
}

bool mu_shards_owns(const mu_shards *s, const mu_unit *u) {
    return mu_shards_owner(s, u) == rank_in(u->param->desc.group);
}

int64_t mu_shards_offset(const mu_shards *s, const mu_unit *u) { return place_of(u) - my_begin(s, mu_shards_group(s, u)); }

mu_mat mu_shards_mine(const mu_shards *s, int group, const mu_memory *slab, mu_dtype dtype) {
    return slab ? mu_mat_values((mu_mat){ slab->region.base, dtype, 1 }, my_begin(s, group)) : (mu_mat){ 0 };
}

mu_mat mu_shards_units(const mu_shards *s, int group, const mu_unit_set *set) {
    return mu_mat_rows((mu_mat){ s->units[group]->region.base, MU_DTYPE_I64, MU_SLAB_UNIT_WORDS }, set->first);
}

void *mu_shards_unit(const mu_shards *s, const mu_unit *u, const mu_memory *shard) {
    if (!mu_shards_owns(s, u)) return NULL;
    return mu_mat_values((mu_mat){ shard->region.base, s->params->dev->master, 1 }, mu_shards_offset(s, u)).data;
}

void mu_shards_unit_read(const mu_shards *s, const mu_unit *u, const mu_memory *shard, void *host) {
    mu_comm *c = comm_of(u->param->desc.group);
    int owner = mu_shards_owner(s, u);
    size_t bytes = (size_t)u->count * mu_dtype_size(s->params->dev->master);
    void *mine = mu_shards_unit(s, u, shard);
    if (mine) mu_device_read(s->params->dev, host, mine, bytes);
    if (owner == 0) return;
    int64_t *send = mu_alloc(2 * (size_t)c->size, sizeof *send), *recv = send + c->size;
    if (c->rank == owner) send[0] = (int64_t)bytes;
    if (c->rank == 0) recv[owner] = (int64_t)bytes;
    mu_exchange(c, host, send, host, recv);
    free(send);
}

/* The next unit of a group that is not frozen. */
static mu_unit *next_active(const mu_params *ps, int group, const mu_unit *after) {
    mu_unit *u = mu_unit_next(ps, after);
    while (u && (u->param->desc.group != ps->groups[group] || u->frozen)) u = mu_unit_next(ps, u);
    return u;
}

/* One set for each learning-rate factor, in order of appearance. */
static void find_sets(mu_shards *s, int group) {
    s->n_sets[group] = 0;
    for (mu_unit *u = next_active(s->params, group, NULL); u; u = next_active(s->params, group, u)) {
        int n = s->n_sets[group], i = 0;
        while (i < n && s->sets[group][i].lr_factor != u->lr_factor) i++;
        if (i < n) continue;
        s->sets[group] = mu_realloc(s->sets[group], (size_t)n + 1, sizeof *s->sets[group]);
        s->sets[group][s->n_sets[group]++] = (mu_unit_set){ .lr_factor = u->lr_factor };
    }
}

/* Appends a set's units to the table, which has `first` rows so far. Units of other ranks have count 0: only their steps are
 * counted. */
static void fill_set(const mu_shards *s, int group, mu_unit_set *set, int64_t first, mu_slab_unit *table) {
    set->first = first;
    for (mu_unit *u = next_active(s->params, group, NULL); u; u = next_active(s->params, group, u)) {
        if (u->lr_factor != set->lr_factor) continue;
        bool mine = mu_shards_owns(s, u);
        table[first + set->n_units++] = (mu_slab_unit){ .first = mine ? mu_shards_offset(s, u) : 0,
                                                        .count = mine ? u->count : 0,
                                                        .piece = set->n_pieces,
                                                        .id = u->global_index,
                                                        .load = u->load,
                                                        .decays = u->param->desc.decay };
        set->n_pieces += mu_slab_pieces(mine ? u->count : 0);
    }
}

static void make_table(mu_shards *s, int group) {
    int64_t n = 0;
    mu_slab_unit *table = mu_alloc((size_t)s->params->n_global_units, sizeof *table);
    find_sets(s, group);
    for (int i = 0; i < s->n_sets[group]; i++) {
        fill_set(s, group, &s->sets[group][i], n, table);
        n += s->sets[group][i].n_units;
    }
    mu_memory_commit(s->units[group], (size_t)n * sizeof *table);
    mu_device_write(s->params->dev, s->units[group]->region.base, table, (size_t)n * sizeof *table);
    free(table);
    s->versions[group] = s->params->groups[group]->version;
}

void mu_shards_refresh(mu_shards *s) {
    for (int i = 0; i < s->params->n_groups; i++)
        if (s->versions[i] != s->params->groups[i]->version) make_table(s, i);
}

void mu_shards_init(mu_shards *s, mu_params *ps) {
    *s = (mu_shards){ .params = ps };
    for (int i = 0; i < ps->n_groups; i++) {
        MU_CHECK(ps->groups[i]->values, "parameter group %s has no memory yet: call mu_params_alloc first", ps->groups[i]->name);
        s->ends[i] = new_ends(ps, ps->groups[i]);
        s->units[i] = mu_memory_new(ps->dev, (size_t)ps->n_global_units * sizeof(mu_slab_unit));
        make_table(s, i);
    }
    s->complete = mu_alloc((size_t)ps->n_params, sizeof *s->complete);
}

void mu_shards_free(mu_shards *s) {
    for (int i = 0; s->params && i < s->params->n_groups; i++) {
        mu_reduction_free(s->early[i]);
        mu_memory_free(s->units[i]);
        free(s->sets[i]);
        free(s->ends[i]);
    }
    free(s->complete);
}

void mu_values_gather(mu_shards *s) {
    mu_params *ps = s->params;
    bool shared = false; /* other ranks have changed values, too */
    for (int i = 0; i < ps->n_groups; i++) {
        if (ranks_of(ps->groups[i]) == 1) continue;
        mu_gather_shards(comm_of(ps->groups[i]), ps->dev, ps->dev->master, ps->groups[i]->values->region.base, s->ends[i]);
        shared = true;
    }
    if (shared) mu_params_refresh(ps);
}
