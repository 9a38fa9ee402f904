/* test_huggingface.c - muster computes what Hugging Face's classes compute: logits, loss and every gradient of a small model of
 * each type (fixtures/make_fixtures.py says how they were made). */
#include "train/config.h"
#include "gradcheck.h"

enum { B = 2, S = 17, V = 96, T = B * S, MOST_MOE = 8 };

typedef struct {
    mu_store *store;
    mu_config config;
    mu_device *dev;
    mu_model *m;
    mu_tape *tp;
    mu_routing routings[MOST_MOE];
    double *logits, loss;
} run;

static mu_error e;

static void need(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

static char *text_of(mu_store *s) {
    mu_store_type type;
    int n_dims;
    int64_t shape[4];
    need(mu_store_shape(s, "/config", &type, &n_dims, shape, &e));
    assert_int_equal(type, MU_STORE_U8);
    char *text = mu_alloc((size_t)shape[0] + 1, 1);
    need(mu_store_read(s, "/config", MU_STORE_U8, 1, shape, text, &e));
    return text;
}

/* Required options that do not affect the model. */
static char *others[] = { "run.dir=unused", "data.train=[{domain: none, path: synthetic}]",
                          "train.seq_len=17" };

static void read_config(run *r) {
    char *text = text_of(r->store);
    need(mu_config_load_text(&r->config, "fixture", text, sizeof others / sizeof *others, others,
                             &e));
    free(text);
}

/* /weights/... or /grads/... of a unit. Heap, double. */
static double *stored(const run *r, const char *kind, const mu_unit *u) {
    char name[160];
    const mu_param_desc *d = &u->param->desc;
    double *x = mu_alloc((size_t)u->count, sizeof *x);
    snprintf(name, sizeof name, "/%s%s", kind, u->name);
    need(mu_store_read(r->store, name, MU_STORE_F64, d->n_dims, d->shape, x, &e));
    return x;
}

static void set_weights(run *r) {
    for (mu_unit *u = mu_unit_next(r->m->params, NULL); u; u = mu_unit_next(r->m->params, u)) {
        double *x = stored(r, "weights", u);
        mu_reals_set(r->dev, r->dev->master, mu_unit_data(u), u->count, x);
        free(x);
    }
    for (int i = 0; i < r->m->n_moe; i++) {
        mu_moe *moe = &r->m->blocks[r->m->moe_layers[i]].moe;
        char name[96];
        snprintf(name, sizeof name, "/weights/layers/%d/mlp/gate/e_score_correction_bias", moe->layer);
        if (mu_store_has(r->store, name))
            need(mu_store_read(r->store, name, MU_STORE_F64, 1, &moe->E, moe->bias, &e));
        assert_int_equal(mu_store_has(r->store, name), (moe->cfg->balance & MU_BALANCE_BIAS) != 0);
    }
}

static mu_tensor *ints(run *r, const char *name) {
    int32_t host[T];
    need(mu_store_read(r->store, name, MU_STORE_I32, 2, (int64_t[]){ B, S }, host, &e));
    return mu_tensor_ints(r->tp, MU_DTYPE_I32, T, host);
}

/* Loads the fixture, and runs forward and backward of its loss. */
static run *run_new(const char *fixture, const char *device) {
    run *r = mu_alloc(1, sizeof *r);
    char path[512];
    snprintf(path, sizeof path, "%s/%s.h5", MUSTER_FIXTURES, fixture);
    need(mu_store_open(&r->store, path, &e));
    read_config(r);
    r->dev = mu_device_open(device);
    r->m = mu_model_new(&r->config.model, &r->config.moe, V, 1, r->dev, mesh_alone());
    r->tp = mu_tape_new(r->dev);
    set_weights(r);
    mu_context cx = { .mode = MU_MODE_TRAIN, .n_sequences = B, .seq_len = S };
    assert_in_range(r->m->n_moe, r->config.moe.num_experts > 0, MOST_MOE);
    mu_tensor *x = mu_model_forward(r->m, r->tp, &cx, ints(r, "/tokens"), r->routings);
    r->logits = mu_alloc(T * V, sizeof(double));
    mu_tensor_get(mu_model_logits(r->m, r->tp, x), r->logits);
    mu_tensor *loss = mu_model_head_loss(r->m, r->tp, x, ints(r, "/targets"), 1.0 / T, NULL);
    r->loss = mu_tensor_scalar_get(loss);
    mu_backward(r->tp, loss);
    return r;
}

static void run_free(run *r) {
    free(r->logits);
    mu_tape_free(r->tp);
    mu_model_free(r->m);
    mu_device_close(r->dev);
    mu_config_free(&r->config);
    need(mu_store_close(r->store, &e));
    free(r);
}

/* |a - b| / |b| in the Euclidean norm; when b is zero, a must be too. */
static double relative(const double *a, const double *b, int64_t n) {
    double apart = 0, size = 0;
    for (int64_t i = 0; i < n; i++) apart += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
    return size > 0 ? sqrt(apart / size) : apart > 0 ? INFINITY : 0;
}

/* Tokens that an expert took in both sequences; 1 for other units. */
static int64_t tokens_of(const run *r, const mu_unit *u) {
    int64_t counts[B * 64], sum = 0;
    if (u->expert < 0) return 1;
    for (int i = 0; i < r->m->n_moe; i++) {
        if (r->m->moe_layers[i] != u->param->desc.layer) continue;
        mu_tensor_read(r->routings[i].counts_SE, counts);
        for (int s = 0; s < B; s++) sum += counts[s * r->config.moe.num_experts + u->expert];
    }
    return sum;
}

static int check_gradients(const run *r, double tolerance) {
    int idle = 0;
    for (mu_unit *u = mu_unit_next(r->m->params, NULL); u; u = mu_unit_next(r->m->params, u)) {
        double *wanted = stored(r, "grads", u), *g = mu_alloc((size_t)u->count, sizeof *g), size = 0;
        mu_reals_get(r->dev, r->dev->master, mu_unit_grad(u), u->count, g);
        double apart = relative(g, wanted, u->count);
        if (!(apart <= tolerance)) fail_msg("gradient of %s is %.2e of its size away", u->name, apart);
        for (int64_t i = 0; i < u->count; i++) size += fabs(g[i]);
        assert_int_equal(size == 0, tokens_of(r, u) == 0);
        idle += size == 0;
        free(wanted);
        free(g);
    }
    return idle;
}

/* tolerance: of logits and loss; gradients are allowed `gradients` of their size. */
static void check_fixture(const char *fixture, const char *device, double tolerance, double gradients) {
    run *r = run_new(fixture, device);
    double *wanted = mu_alloc(T * V, sizeof *wanted), loss, apart = 0;
    need(mu_store_read(r->store, "/logits", MU_STORE_F64, 3, (int64_t[]){ B, S, V }, wanted, &e));
    need(mu_store_read(r->store, "/loss", MU_STORE_F64, 1, (int64_t[]){ 1 }, &loss, &e));
    for (int i = 0; i < T * V; i++) apart = fmax(apart, fabs(r->logits[i] - wanted[i]));
    if (!(apart <= tolerance)) fail_msg("%s on %s: logits %.2e apart", fixture, device, apart);
    if (!(fabs(r->loss - loss) <= tolerance))
        fail_msg("%s on %s: loss %.9f, not %.9f", fixture, device, r->loss, loss);
    int idle = check_gradients(r, gradients);
    assert_int_equal(idle > 0, r->m->n_moe > 0);    /* each fixture with experts has one without a token */
    free(wanted);
    run_free(r);
}

/* The files hold results rounded to fp32: 6e-8 of logits up to about 10, and of each gradient. */
static void in_double(void **state) { check_fixture(*state, "ref", 1e-6, 2e-7); }
static void in_single(void **state) { check_fixture(*state, "cpu", 1e-5, 1e-4); }

#define TYPE(name) \
    { name " in double", in_double, NULL, NULL, (void *)(uintptr_t)name }, { name " in single", in_single, NULL, NULL, (void *)(uintptr_t)name }

int main(void) {
    const struct CMUnitTest tests[] = {
        TYPE("qwen3_moe"), TYPE("dots1"), TYPE("mixtral"), TYPE("granitemoe"), TYPE("granitemoeshared"),
        TYPE("qwen3"), TYPE("llama"), TYPE("olmoe"), TYPE("qwen2_moe"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
