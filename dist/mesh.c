/* mesh.c - groups of ranks, and the placement of experts. */
#include "dist/dist.h"

#include <stdlib.h>

mu_mesh *mu_mesh_open_groups(const void *mpi_comm, int groups, int ep) {
    mu_comm *world = mu_comm_new(mpi_comm), *batch = world;
    MU_CHECK(groups >= 1 && world->size % groups == 0, "%d batch groups do not divide %d ranks", groups, world->size);
    if (groups > 1) batch = mu_comm_split(world, world->rank / (world->size / groups), world->rank);
    int rank = batch->rank, size = batch->size;
    MU_CHECK(ep >= 1 && size % ep == 0, "ep %d does not divide %d ranks", ep, size);
    mu_mesh *m = mu_alloc(1, sizeof *m);
    m->world = world, m->batch = batch, m->ep = ep, m->dp = size / ep;
    m->expert = mu_comm_split(batch, rank / ep, rank);
    m->replica = mu_comm_split(batch, rank % ep, rank);
    mu_comm_node(world, &m->local_rank, &m->local_size);
    return m;
}

mu_mesh *mu_mesh_open(const void *mpi_comm, int ep) { return mu_mesh_open_groups(mpi_comm, 1, ep); }

static mu_comm *planned(int rank, int size) {
    mu_comm *c = mu_comm_alone();
    c->rank = rank, c->size = size;
    return c;
}

mu_mesh *mu_mesh_planned(int rank, int size, int ep) {
    MU_CHECK(rank >= 0 && rank < size, "planned mesh: rank %d of %d ranks", rank, size);
    MU_CHECK(ep >= 1 && size % ep == 0, "ep %d does not divide %d ranks", ep, size);
    mu_mesh *m = mu_alloc(1, sizeof *m);
    *m = (mu_mesh){ .world = planned(rank, size),
                    .expert = planned(rank % ep, ep),
                    .replica = planned(rank / ep, size / ep),
                    .dp = size / ep,
                    .ep = ep,
                    .local_rank = rank,
                    .local_size = size };
    m->batch = m->world;
    return m;
}

mu_mesh *mu_mesh_alone(void) { return mu_mesh_planned(0, 1, 1); }

void mu_mesh_close(mu_mesh *m) {
    if (!m) return;
    mu_comm_free(m->replica);
    mu_comm_free(m->expert);
    if (m->batch != m->world) mu_comm_free(m->batch);
    mu_comm_free(m->world);
    free(m);
}

double mu_mesh_seconds(const mu_mesh *m) {
    double batch = m->batch != m->world ? m->batch->seconds : 0;
    return m->world->seconds + batch + m->expert->seconds + m->replica->seconds;
}

bool mu_mesh_writes_shared(const mu_mesh *m) { return m->batch->rank == 0; }
bool mu_mesh_writes_experts(const mu_mesh *m) { return m->replica->rank == 0; }

mu_placement *mu_placement_new(const mu_comm *group, int n_experts) {
    MU_CHECK(group, "placement of %d experts: the expert group is NULL", n_experts);
    MU_CHECK(n_experts >= 1 && n_experts % group->size == 0,
             "%d experts are not a multiple of %d ranks", n_experts, group->size);
    mu_placement *p = mu_alloc(1, sizeof *p);
    p->n_experts = n_experts, p->n_local = n_experts / group->size;
    p->rank = mu_alloc((size_t)n_experts, sizeof(int));
    p->slot = mu_alloc((size_t)n_experts, sizeof(int));
    p->local = mu_alloc((size_t)p->n_local, sizeof(int));
    p->order = mu_alloc((size_t)n_experts, sizeof(int32_t));
    for (int i = 0; i < n_experts; i++) {
        p->rank[i] = i / p->n_local, p->slot[i] = i % p->n_local;
        p->order[i] = p->rank[i] * p->n_local + p->slot[i];
        if (p->rank[i] == group->rank) p->local[p->slot[i]] = i;
    }
    return p;
}

void mu_placement_free(mu_placement *p) {
    if (!p) return;
    free(p->rank);
    free(p->slot);
    free(p->local);
    free(p->order);
    free(p);
}
