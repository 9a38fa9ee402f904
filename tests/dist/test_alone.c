/* test_alone.c - a mesh of one process without MPI: collectives and a layer work. */
#include "moe/layer.h"
#include "optim/optim.h"

static void test_collectives(void **state) {
    (void)state;
    mu_comm *c = mu_comm_alone();
    assert_int_equal(c->rank, 0);
    assert_int_equal(c->size, 1);
    double x = 3, y = 0;
    int64_t bytes = (int64_t)sizeof x, none = 0;
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_F64, &x, 1);
    mu_broadcast(c, 0, &x, bytes);
    mu_barrier(c);
    mu_all_gather(c, &x, bytes, &y);
    assert_true(y == 3);
    y = 0;
    mu_exchange(c, &x, &bytes, &y, &bytes);
    assert_true(y == 3);
    mu_exchange(c, NULL, &none, NULL, &none);
    mu_error e = { 0 };
    assert_int_equal(mu_agree(c, MU_STATUS_IO, &e), MU_STATUS_IO);
    mu_comm_free(c);
}

static void test_layer(void **state) {
    (void)state;
    enum { E = 8, K = 2, SEQUENCES = 3, S = 4 };
    mu_mesh *mesh = mu_mesh_alone();
    layer *l = layer_new("ref", mesh, layer_config(E, K, 3), SEQUENCES, S, 5);
    layer_forward(l, l->tp);
    int64_t *counts = layer_counts(l), sum = 0;
    for (int i = 0; i < E; i++) sum += counts[i];
    assert_int_equal(sum, SEQUENCES * S * K);
    free(counts);

    /* An expert's three matrices share its load; the router has none. */
    int with_load = 0;
    assert_int_equal(l->ps->n_loads, E);
    for (mu_unit *u = mu_unit_next(l->ps, NULL); u; u = mu_unit_next(l->ps, u)) {
        assert_int_equal(u->load, u->expert);
        with_load += u->load >= 0;
    }
    assert_int_equal(with_load, 3 * E);
    layer_free(l);
    mu_mesh_close(mesh);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_collectives), cmocka_unit_test(test_layer) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
