/* unit.c - one expert of one layer as a unit: router row, selection bias, weights, and the optimizer's state of each. */
#include "train/surgery.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ memory */

static const char *const part_names[MU_PARTS] = { "router", "gate", "up", "down" };

int64_t mu_expert_unit_count(const mu_expert_unit *u, int part) { return part == MU_PART_ROUTER ? u->D : u->F * u->D; }

static int n_slots(const mu_expert_unit *u) { return u->rule ? u->rule->n_slots : 0; }

/* The arrays of a part: number -1 its values, then the slots. */
static double **array_of(mu_expert_unit *u, int number, int part) { return number < 0 ? &u->values[part] : &u->slots[number][part]; }
static const double *values_of(const mu_expert_unit *u, int number, int part) { return number < 0 ? u->values[part] : u->slots[number][part]; }

void mu_expert_unit_init(mu_expert_unit *u, int64_t D, int64_t F, bool f64, const mu_rule *rule) {
    *u = (mu_expert_unit){ .D = D, .F = F, .rule = rule, .type = f64 ? MU_STORE_F64 : MU_STORE_F32 };
    for (int k = -1; k < n_slots(u); k++)
        for (int part = 0; part < MU_PARTS; part++) *array_of(u, k, part) = mu_alloc((size_t)mu_expert_unit_count(u, part), sizeof(double));
}

mu_expert_unit mu_expert_unit_copy(const mu_expert_unit *from) {
    mu_expert_unit u = *from;
    for (int k = -1; k < n_slots(&u); k++)
        for (int part = 0; part < MU_PARTS; part++) {
            size_t n = (size_t)mu_expert_unit_count(&u, part);
            *array_of(&u, k, part) = memcpy(mu_alloc(n, sizeof(double)), values_of(from, k, part), n * sizeof(double));
        }
    return u;
}

void mu_expert_unit_free(mu_expert_unit *u) {
    for (int k = -1; k < n_slots(u); k++)
        for (int part = 0; part < MU_PARTS; part++) free(*array_of(u, k, part));
    *u = (mu_expert_unit){ 0 };
}

void mu_expert_unit_restart(mu_expert_unit *u) {
    for (int part = 0; part < MU_PARTS; part++) {
        for (int k = 0; k < n_slots(u); k++) memset(u->slots[k][part], 0, (size_t)mu_expert_unit_count(u, part) * sizeof(double));
        if (part != MU_PART_ROUTER) u->steps[part] = 0;
    }
}

bool mu_expert_unit_equal(const mu_expert_unit *a, const mu_expert_unit *b) {
    bool same = a->D == b->D && a->F == b->F && a->rule == b->rule && !memcmp(&a->bias, &b->bias, sizeof a->bias) &&
                !memcmp(a->steps, b->steps, sizeof a->steps);
    for (int k = -1; same && k < n_slots(a); k++)
        for (int part = 0; same && part < MU_PARTS; part++)
            same = !memcmp(values_of(a, k, part), values_of(b, k, part), (size_t)mu_expert_unit_count(a, part) * sizeof(double));
    return same;
}

void mu_expert_unit_hash(const mu_expert_unit *u, char hex[33]) {
    mu_hash *h = mu_hash_new();
    mu_hash_add(h, &u->bias, sizeof u->bias);
    mu_hash_add(h, u->steps, sizeof u->steps);
    for (int k = -1; k < n_slots(u); k++)
        for (int part = 0; part < MU_PARTS; part++) mu_hash_add(h, values_of(u, k, part), (size_t)mu_expert_unit_count(u, part) * sizeof(double));
    mu_hash_finish(h, hex);
}

/* ------------------------------------------------------------------ in a checkpoint */

static const char *const weights[MU_PARTS] = { NULL, "gate_proj", "up_proj", "down_proj" };

enum { TENSOR_NAME = 112 };    /* as in manifests */
/* The tensor that holds a part. */
static void tensor_name(const mu_expert_unit *u, int part, char name[TENSOR_NAME]) {
    if (part == MU_PART_ROUTER) snprintf(name, TENSOR_NAME, "/layers/%d/mlp/gate/weight", u->layer);
    else snprintf(name, TENSOR_NAME, "/layers/%d/mlp/experts/%d/%s/weight", u->layer, u->expert, weights[part]);
}

static void bias_name(const mu_expert_unit *u, char name[MU_STATE_NAME]) {
    snprintf(name, MU_STATE_NAME, "/layers/%d/mlp/gate/e_score_correction_bias", u->layer);
}

static void array_name(const mu_expert_unit *u, int number, const char *tensor, char name[MU_STATE_NAME]) {
    if (number < 0) snprintf(name, MU_STATE_NAME, "%s", tensor);
    else snprintf(name, MU_STATE_NAME, "/optim/%s%s", u->rule->slots[number], tensor);
}

/* Of the router the whole array, [E, D], of which the unit has a row. */
static mu_status read_part(mu_expert_unit *u, mu_checkpoint_arrays *a, int number, int part, mu_error *e) {
    char tensor[TENSOR_NAME], name[MU_STATE_NAME];
    int64_t E = a->m->cfg.moe.num_experts, shape[2] = { u->F, u->D };
    if (part == MU_PART_ROUTER) shape[0] = E;
    if (part == MU_PART_DOWN) shape[0] = u->D, shape[1] = u->F;
    tensor_name(u, part, tensor);
    array_name(u, number, tensor, name);
    double *to = *array_of(u, number, part), *all = part == MU_PART_ROUTER ? mu_alloc((size_t)(E * u->D), sizeof *all) : to;
    mu_status status = mu_checkpoint_array(a, name, tensor, MU_STORE_F64, 2, shape, all, e);
    if (all != to) memcpy(to, all + u->expert * u->D, (size_t)u->D * sizeof *to), free(all);
    return status;
}

static mu_status read_bias(mu_expert_unit *u, mu_checkpoint_arrays *a, mu_error *e) {
    char name[MU_STATE_NAME];
    int64_t E = a->m->cfg.moe.num_experts;
    double *all = mu_alloc((size_t)E, sizeof *all);
    bias_name(u, name);
    mu_status status = mu_checkpoint_array(a, name, NULL, MU_STORE_F64, 1, &E, all, e);
    u->bias = all[u->expert];
    free(all);
    return status;
}

mu_status mu_expert_unit_read(mu_expert_unit *u, mu_checkpoint_arrays *a, int layer, int expert, mu_error *e) {
    const int64_t one = 1;
    const mu_config *cfg = &a->m->cfg;
    mu_expert_unit_init(u, cfg->model.hidden_size, cfg->moe.moe_ffn_hidden_size, !strcmp(a->m->dtype, mu_dtype_name(MU_DTYPE_F64)),
                        a->m->weights_only ? NULL : mu_rule_of(&cfg->optim));
    u->layer = layer, u->expert = expert;
    mu_status status = read_bias(u, a, e);
    for (int part = 0; part < MU_PARTS && status == MU_STATUS_OK; part++) {
        char tensor[TENSOR_NAME], name[MU_STATE_NAME];
        for (int k = -1; k < n_slots(u) && status == MU_STATUS_OK; k++) status = read_part(u, a, k, part, e);
        tensor_name(u, part, tensor);
        snprintf(name, sizeof name, "/optim/steps%s", tensor);
        if (u->rule && status == MU_STATUS_OK)
            status = mu_checkpoint_array(a, name, tensor, MU_STORE_I64, 1, &one, &u->steps[part], e);
    }
    return status;
}

static void put_values(const mu_state *s, const double *from, int64_t n, int64_t first, void *host) {
    for (int64_t i = 0; i < n; i++) {
        if (s->type == MU_STORE_F64) ((double *)host)[first + i] = from[i];
        else ((float *)host)[first + i] = (float)from[i];
    }
}

void mu_expert_unit_put(const mu_expert_unit *u, const mu_state *s, bool with_bias, void *host) {
    char tensor[TENSOR_NAME], name[MU_STATE_NAME];
    bias_name(u, name);
    if (!strcmp(s->name, name)) ((double *)host)[u->expert] = with_bias ? u->bias : 0;
    for (int part = 0; part < MU_PARTS; part++) {
        tensor_name(u, part, tensor);
        if (!s->tensor || strcmp(s->tensor, tensor)) continue;
        for (int k = -1; k < n_slots(u); k++) {
            array_name(u, k, tensor, name);
            if (!strcmp(s->name, name))
                put_values(s, values_of(u, k, part), mu_expert_unit_count(u, part), part == MU_PART_ROUTER ? u->expert * u->D : 0, host);
        }
        snprintf(name, sizeof name, "/optim/steps%s", tensor);
        if (!strcmp(s->name, name) && part != MU_PART_ROUTER && u->rule) *(int64_t *)host = u->steps[part];
    }
}

/* ------------------------------------------------------------------ in a run */

const mu_unit *mu_expert_unit_find(const mu_moe *m, int part, int expert) {
    const mu_param *const params[MU_PARTS] = { m->router_ED, m->gate_eFD, m->up_eFD, m->down_eDF };
    const mu_param *p = params[part];
    for (int i = 0; i < p->n_units; i++)
        if (part == MU_PART_ROUTER || p->units[i].expert == expert) return &p->units[i];
    return NULL;
}

/* The part's array from the rank that has it: all of a weight, or a row of the router. */
static void take_array(mu_expert_unit *u, const mu_train_state *t, const mu_unit *p, int number, int part, int root) {
    mu_device *dev = t->model->params->dev;
    double *to = *array_of(u, number, part);
    size_t size = mu_dtype_size(dev->master);
    int64_t n = mu_expert_unit_count(u, part), first = part == MU_PART_ROUTER ? u->expert * u->D : 0;
    if (p && number < 0) mu_reals_get(dev, dev->master, (char *)mu_unit_data(p) + (size_t)first * size, n, to);
    if (p && number >= 0) {
        char *host = mu_alloc((size_t)p->count, size);
        mu_optimizer_slot_read(t->opt, p, number, host);
        for (int64_t i = 0; i < n; i++) to[i] = size == sizeof(double) ? ((double *)(void *)host)[first + i] : (double)((float *)(void *)host)[first + i];
        free(host);
    }
    mu_broadcast(t->mesh->batch, root, to, n * (int64_t)sizeof *to);
}

void mu_expert_unit_take(mu_expert_unit *u, const mu_train_state *t, int layer, int expert) {
    const mu_moe *m = &t->model->blocks[layer].moe;
    mu_comm *batch = t->mesh->batch;
    mu_expert_unit_init(u, m->D, m->F, t->model->params->dev->master == MU_DTYPE_F64, t->opt ? t->opt->rule : NULL);
    u->layer = layer, u->expert = expert, u->bias = m->bias[expert];
    for (int part = 0; part < MU_PARTS; part++) {
        const mu_unit *p = mu_expert_unit_find(m, part, expert);
        bool mine = part == MU_PART_ROUTER ? mu_mesh_writes_shared(t->mesh) : p && mu_mesh_writes_experts(t->mesh);
        int32_t root = mine ? batch->rank : -1;
        mu_all_reduce(batch, MU_REDUCE_MAX, MU_DTYPE_I32, &root, 1);
        for (int k = -1; k < n_slots(u); k++) take_array(u, t, p, k, part, root);
        if (p && t->opt) u->steps[part] = mu_optimizer_steps(t->opt, p);
        mu_broadcast(batch, root, &u->steps[part], sizeof u->steps[part]);
    }
}

/* Where this rank has the part's array, NULL: nowhere. Slots are on the rank that owns the parameter's unit. */
static void *place_of(const mu_train_state *t, const mu_unit *p, int number) {
    return !p ? NULL : number < 0 ? mu_unit_data(p) : mu_optimizer_slot(t->opt, p, number);
}

static void give_array(mu_expert_unit *u, const mu_train_state *t, const mu_unit *p, int number, int part) {
    mu_device *dev = t->model->params->dev;
    double *from = *array_of(u, number, part);
    int64_t n = mu_expert_unit_count(u, part), first = part == MU_PART_ROUTER ? u->expert * u->D : 0;
    char *to = place_of(t, p, number);
    mu_broadcast(t->mesh->batch, 0, from, n * (int64_t)sizeof *from);
    if (to) mu_reals_set(dev, dev->master, to + (size_t)first * mu_dtype_size(dev->master), n, from);
}

void mu_expert_unit_give(mu_expert_unit *u, const mu_train_state *t) {
    const mu_moe *m = &t->model->blocks[u->layer].moe;
    mu_broadcast(t->mesh->batch, 0, &u->bias, sizeof u->bias);
    mu_broadcast(t->mesh->batch, 0, u->steps, sizeof u->steps);
    m->bias[u->expert] = u->bias;
    for (int part = 0; part < MU_PARTS; part++) {
        const mu_unit *p = mu_expert_unit_find(m, part, u->expert);
        for (int k = -1; k < n_slots(u); k++) give_array(u, t, p, k, part);
        if (p && t->opt && part != MU_PART_ROUTER) mu_optimizer_steps_set(t->opt, p, u->steps[part]);
    }
}

/* ------------------------------------------------------------------ its function */

/* Of one input: gate and up products, and what goes into the down product. */
static void hidden(const mu_expert_unit *u, const double *h, double *gate, double *up, double *a) {
    for (int64_t f = 0; f < u->F; f++) {
        gate[f] = up[f] = 0;
        for (int64_t i = 0; i < u->D; i++) {
            gate[f] += u->values[MU_PART_GATE][f * u->D + i] * h[i];
            up[f] += u->values[MU_PART_UP][f * u->D + i] * h[i];
        }
        a[f] = gate[f] / (1 + exp(-gate[f])) * up[f];
    }
}

static void outputs(const mu_expert_unit *u, const double *a, double *y) {
    for (int64_t i = 0; i < u->D; i++) {
        y[i] = 0;
        for (int64_t f = 0; f < u->F; f++) y[i] += u->values[MU_PART_DOWN][i * u->F + f] * a[f];
    }
}

void mu_expert_unit_apply(const mu_expert_unit *u, int64_t n, const double *h, double *y) {
    double *gate = mu_alloc(3 * (size_t)u->F, sizeof *gate), *up = gate + u->F, *a = up + u->F;
    for (int64_t r = 0; r < n; r++) {
        hidden(u, h + r * u->D, gate, up, a);
        outputs(u, a, y + r * u->D);
    }
    free(gate);
}

/* Of one sample, with dy: the gradient of its output. */
static void pull_one(const mu_expert_unit *u, const double *h, const double *gate, const double *up, const double *a, const double *dy,
                     double *const grads[MU_PARTS]) {
    for (int64_t f = 0; f < u->F; f++) {
        double da = 0, sigmoid = 1 / (1 + exp(-gate[f]));
        for (int64_t i = 0; i < u->D; i++) {
            da += dy[i] * u->values[MU_PART_DOWN][i * u->F + f];
            grads[MU_PART_DOWN][i * u->F + f] += dy[i] * a[f];
        }
        double dgate = da * up[f] * sigmoid * (1 + gate[f] * (1 - sigmoid)), dup = da * gate[f] * sigmoid;
        for (int64_t i = 0; i < u->D; i++) {
            grads[MU_PART_GATE][f * u->D + i] += dgate * h[i];
            grads[MU_PART_UP][f * u->D + i] += dup * h[i];
        }
    }
}

double mu_expert_unit_pull(const mu_expert_unit *u, const mu_expert_samples *p, double weight, double *const grads[MU_PARTS]) {
    double *gate = mu_alloc(3 * (size_t)u->F + (size_t)u->D, sizeof *gate), *up = gate + u->F, *a = up + u->F, *y = a + u->F, loss = 0;
    for (int64_t r = 0; r < p->n; r++) {
        const double *h = p->h + r * u->D, *wanted = p->y + r * u->D;
        hidden(u, h, gate, up, a);
        outputs(u, a, y);
        for (int64_t i = 0; i < u->D; i++) {
            double off = y[i] - wanted[i];
            loss += weight / (double)p->n * off * off;
            y[i] = 2 * weight / (double)p->n * off;
        }
        pull_one(u, h, gate, up, a, y, grads);
    }
    free(gate);
    return loss;
}

/* ------------------------------------------------------------------ in a file of its own */

static int shape_of(const mu_expert_unit *u, int part, int64_t shape[2]) {
    shape[0] = part == MU_PART_GATE || part == MU_PART_UP ? u->F : u->D;
    shape[1] = part == MU_PART_DOWN ? u->F : u->D;
    return part == MU_PART_ROUTER ? 1 : 2;
}

mu_status mu_expert_part_store(const mu_expert_unit *u, mu_store *s, const char *group, int part, const double *values, mu_error *e) {
    char name[64];
    int64_t shape[2], n = mu_expert_unit_count(u, part);
    int n_dims = shape_of(u, part, shape);
    snprintf(name, sizeof name, "%s/%s", group, part_names[part]);
    if (u->type == MU_STORE_F64) return mu_store_write(s, name, MU_STORE_F64, n_dims, shape, values, e);
    float *narrow = mu_alloc((size_t)n, sizeof *narrow);
    for (int64_t i = 0; i < n; i++) narrow[i] = (float)values[i];
    mu_status status = mu_store_write(s, name, MU_STORE_F32, n_dims, shape, narrow, e);
    free(narrow);
    return status;
}

mu_status mu_expert_part_load(const mu_expert_unit *u, mu_store *s, const char *group, int part, double *values, mu_error *e) {
    char name[64];
    int64_t shape[2];
    int n_dims = shape_of(u, part, shape);
    snprintf(name, sizeof name, "%s/%s", group, part_names[part]);
    return mu_store_read(s, name, MU_STORE_F64, n_dims, shape, values, e);
}

static void group_name(const mu_expert_unit *u, int number, char name[48]) {
    snprintf(name, 48, "/unit/%s", number < 0 ? "values" : u->rule->slots[number]);
}

mu_status mu_expert_unit_store(const mu_expert_unit *u, mu_store *s, mu_error *e) {
    const int64_t one = 1, parts = MU_PARTS;
    mu_status status = mu_store_write(s, "/unit/bias", MU_STORE_F64, 1, &one, &u->bias, e);
    if (status == MU_STATUS_OK) status = mu_store_write(s, "/unit/steps", MU_STORE_I64, 1, &parts, u->steps, e);
    for (int k = -1; k < n_slots(u); k++) {
        char group[48];
        group_name(u, k, group);
        for (int part = 0; part < MU_PARTS && status == MU_STATUS_OK; part++)
            status = mu_expert_part_store(u, s, group, part, values_of(u, k, part), e);
    }
    return status;
}

mu_status mu_expert_unit_load(mu_expert_unit *u, mu_store *s, mu_error *e) {
    const int64_t one = 1, parts = MU_PARTS;
    mu_status status = mu_store_read(s, "/unit/bias", MU_STORE_F64, 1, &one, &u->bias, e);
    if (status == MU_STATUS_OK) status = mu_store_read(s, "/unit/steps", MU_STORE_I64, 1, &parts, u->steps, e);
    for (int k = -1; k < n_slots(u); k++) {
        char group[48];
        group_name(u, k, group);
        for (int part = 0; part < MU_PARTS && status == MU_STATUS_OK; part++)
            status = mu_expert_part_load(u, s, group, part, *array_of(u, k, part), e);
    }
    return status;
}
