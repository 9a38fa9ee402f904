/* cmd_selftest.c - muster selftest: checks of this build on the user's machine, one line each. Every rank does all of them. */
#include "train/selftest.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { WATCHDOG = 300 };        /* seconds */
static const struct { const char *name; mu_selftest_check *check; } checks[] = {
    { "splits", mu_selftest_split },           { "device", mu_selftest_device }, { "batch invariance", mu_selftest_rows },
    { "checkpoint", mu_selftest_checkpoint },  { "speed", mu_selftest_speed },
};

/* Prints the result of the first rank on which the check failed, else that of rank 0. Collective. */
static bool tell(mu_selftest *t, const char *name, bool ok) {
    mu_comm *world = t->mesh->world;
    int32_t failing = ok ? INT32_MAX : world->rank;
    mu_all_reduce(world, MU_REDUCE_MIN, MU_DTYPE_I32, &failing, 1);
    ok = failing == INT32_MAX;
    mu_broadcast(world, ok ? 0 : failing, t->figures, sizeof t->figures);
    if (world->rank == 0) {
        mu_print("%-6s  %-16s  %s", ok ? "ok" : "FAILED", name, t->figures);
        if (!ok && world->size > 1) mu_print(" (rank %d)", failing);
        mu_print("\n");
        fflush(stdout);
    }
    return ok;
}

static mu_status run_all(mu_selftest *t, mu_error *e) {
    int n_terms = mu_selftest_n_terms(), n = (int)(sizeof checks / sizeof *checks), failed = 0;
    double start = mu_time();
    for (int i = 0; i < n_terms; i++) {
        const char *name;
        bool ok = mu_selftest_term(t, i, &name);
        failed += !tell(t, name, ok);
    }
    for (int i = 0; i < n; i++) {
        bool ok = checks[i].check(t);
        failed += !tell(t, checks[i].name, ok);
    }
    if (failed)
        return mu_error_set(e, MU_STATUS_INTERNAL, "selftest: %d of %d checks failed. Do not trust runs of this build on this machine; docs/running.md"
                            " says what each check means", failed, n_terms + n);
    if (t->mesh->world->rank == 0) mu_print("all %d checks passed in %.1f s\n", n_terms + n, mu_time() - start);
    return MU_STATUS_OK;
}

static mu_status parse(int argc, char **argv, mu_selftest *t, mu_error *e) {
    t->overrides = argv + 2, t->n_overrides = argc - 2;
    for (int i = 2; i < argc; i++) {
        if (!strchr(argv[i], '=') || argv[i][0] == '-')
            return mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'; overrides are section.key=value", argv[i]);
        mu_status status = mu_config_check_use(argv[i], MU_ON_GENERATE, "selftest", e);
        if (status != MU_STATUS_OK) return status;
    }
    return MU_STATUS_OK;
}

/* Are the overrides valid, and is their device there? Collective, agreed. */
static mu_status check_device(const mu_selftest *t, mu_error *e) {
    static const char text[] = "run: {dir: unused}\ndata: {train: [{domain: a, path: synthetic}]}\n";
    mu_config cfg;
    mu_device *dev = NULL;
    mu_status status = mu_agree(t->mesh->world, mu_config_load_text(&cfg, "selftest", text, t->n_overrides, t->overrides, e), e);
    if (status == MU_STATUS_OK) status = mu_train_device_open(&cfg.train, t->mesh, &dev, e);
    if (dev) mu_device_close(dev);
    mu_config_free(&cfg);
    return status;
}

int mu_cmd_selftest(int argc, char **argv) {
    mu_error e = { 0 };
    mu_dist_start(&argc, &argv);
    mu_selftest t = { .mesh = mu_mesh_open(NULL, 1), .alone = mu_mesh_alone() };
    mu_report_error(&e, t.mesh->world->rank); /* sets the rank of messages */
    mu_status status = mu_agree(t.mesh->world, parse(argc, argv, &t, &e), &e);
    if (status == MU_STATUS_OK) status = check_device(&t, &e);
    if (status == MU_STATUS_OK) {
        mu_watch_start(t.mesh->world, WATCHDOG, mu_report_stall);
        status = run_all(&t, &e);
        mu_watch_stop();
    }
    if (status != MU_STATUS_OK) mu_report_error(&e, t.mesh->world->rank);
    mu_mesh_close(t.alone);
    mu_mesh_close(t.mesh);
    mu_dist_stop();
    return (int)status;
}
