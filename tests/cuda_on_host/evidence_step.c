/* evidence_step.c - how many kernels one training step launches on the emulated device, and how often the host waits.
 *
 *     evidence_step CONFIG [section.key=value...]
 *
 * Prints "<launches> launches, <waits> waits, <allocations> allocations" for each of three steps, after
 * some in which memory may still grow, of which the second has the most uneven routing. */
#include "tests/cuda_on_host/emulation.h"
#include "train/training.h"

enum { BEFORE = 8, COUNTED = 3 };

static void count_step(mu_training *t) {
    mu_emulation_counters c;
    int64_t launches = 0;
    mu_emulation_counters_reset();
    MU_CHECK(mu_training_step(t, NULL).finite, "step %lld is not finite", (long long)t->state.step);
    for (int i = 0; i < mu_emulation_kernel_count(); i++) {
        mu_emulation_kernel(i, &c);
        launches += c.launches;
    }
    printf("%lld launches, %lld waits, %lld allocations\n", (long long)launches, (long long)mu_emulation_host_waits(),
           (long long)mu_emulation_allocations());
}

int main(int argc, char **argv) {
    mu_error e = { 0 };
    mu_training t = { 0 };
    if (argc < 2) {
        printf("usage: evidence_step CONFIG [section.key=value...]\n");
        return MU_STATUS_USAGE;
    }
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int ranks = world->size;
    mu_comm_free(world);
    mu_status status = mu_config_load(&t.cfg, argv[1], argc - 2, argv + 2, ranks, true, &e);
    if (status == MU_STATUS_OK) {
        mu_mesh *mesh = mu_mesh_open(NULL, (int)t.cfg.parallel.ep);
        status = mu_training_open(&t, mesh, MU_VAL_DOCUMENTS_BY_HASH, &e);
        for (int i = 0; i < BEFORE && status == MU_STATUS_OK; i++) {
            t.state.model->moe_cfg.force_skew = i == 1;
            mu_training_step(&t, NULL);
        }
        for (int i = 0; i < COUNTED && status == MU_STATUS_OK; i++) count_step(&t);
        mu_training_close(&t);
        mu_mesh_close(mesh);
    }
    if (status != MU_STATUS_OK) printf("%s\n", e.text);
    mu_dist_stop();
    return (int)status;
}
