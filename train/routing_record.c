/* routing_record.c - files of the experts that every token had, of an evaluation or of training steps, to look at or to replay.
 *
 * A store with /about (text, lines "name: value": what must be the same to replay it), and for each validation domain
 * /domains/NAME/ids, or for each training step /steps/N: U16 [sequences * seq_len * MoE layers * top_k], each token's experts in the
 * order of their choice, sequences in the order of the validation split or of the global batch, which do not depend on ranks.
 * Rank 0 has the file; blocks of sequences are gathered from, or sent to, the ranks that process them. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 16 };       /* ids */

struct mu_routing_record {
    mu_store *store;            /* rank 0 */
    char *path, *temporary;     /* temporary: rank 0, until a new file is complete */
    char *last;                 /* rank 0: name of the array written last */
    mu_store *old;              /* rank 0: the file that a new one continues */
    const mu_model *model;      /* borrowed, like batch */
    mu_comm *batch;
    int64_t width;              /* ids of a sequence: S * L * K */
    mu_error error;             /* of the first failure: nothing is read or written after it */
};

/* ------------------------------------------------------------------ what must be the same */

static char *moe_layers(const mu_model *m) {
    char *text = mu_strdup("");
    for (int i = 0; i < m->n_moe; i++) {
        char *longer = mu_format("%s%s%d", text, i ? " " : "", m->moe_layers[i]);
        free(text);
        text = longer;
    }
    return text;
}

char *mu_routing_record_about(const mu_config *cfg, const mu_model *m, const mu_corpus *corpus, const char *kind, const char *more) {
    char *layers = moe_layers(m), *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    fprintf(out, "format: muster routing record 1\nrecord of: %s\nlayers: %s\nmoe.num_experts: %lld\nmoe.top_k: %lld\ntrain.seq_len: %lld\n", kind, layers,
            (long long)m->moe_cfg.num_experts, (long long)m->moe_cfg.top_k, (long long)cfg->train.seq_len);
    char *forced = mu_config_lines(cfg, "moe.force_domains");
    fprintf(out, "%stexts: %s\n%s", forced, corpus->fingerprint, more);
    fclose(out);
    free(forced);
    free(layers);
    return text;
}

/* A line "name: value" in words, n bytes; heap. */
static char *condition(const char *line, int n) {
    if (n > 2 && !strncmp(line + n - 2, ": ", 2)) return mu_format("without %.*s", n - 2, line);
    return mu_format("with \"%.*s\"", n, line);
}

/* Names the first line that differs. */
static mu_status compare_about(const char *option, const char *path, const char *was, const char *is, mu_error *e) {
    while (*is || *was) {
        int n = (int)strcspn(was, "\n"), k = (int)strcspn(is, "\n");
        if (n != k || strncmp(was, is, (size_t)n)) {
            char *then = condition(was, n), *now = condition(is, k);
            mu_error_set(e, MU_STATUS_DATA, "%s %s does not fit: it was recorded %s, this is %s", option, path, then, now);
            free(then);
            free(now);
            return MU_STATUS_DATA;
        }
        was += n + (was[n] == '\n'), is += k + (is[k] == '\n');
    }
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ opening and closing */

/* Opens an existing record, of the same. */
static mu_status open_old(const char *option, const char *path, const char *about, mu_store **s, mu_error *e) {
    char *was = NULL;
    mu_status status = mu_store_open(s, path, e);
    if (status == MU_STATUS_OK) status = mu_store_read_text(*s, "/about", &was, e);
    if (status == MU_STATUS_OK) status = compare_about(option, path, was, about, e);
    free(was);
    return status;
}

static mu_status create(mu_routing_record *r, mu_routing_record_mode mode, const char *about, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    if (mu_file_exists(r->path) && mode != MU_ROUTING_CONTINUE)
        return mu_error_set(e, MU_STATUS_USAGE, "--record-routing %s: the file exists; remove it or choose another name", r->path);
    if (mu_file_exists(r->path)) status = open_old("--record-routing", r->path, about, &r->old, e);
    if (status == MU_STATUS_OK) status = mu_file_temporary(r->path, &r->temporary, e);
    if (status == MU_STATUS_OK) status = mu_store_create(&r->store, r->temporary, e);
    return status == MU_STATUS_OK ? mu_store_write_text(r->store, "/about", about, e) : status;
}

mu_status mu_routing_record_open(mu_routing_record **out, const char *path, mu_routing_record_mode mode, const mu_model *m, int64_t seq_len,
                                 mu_comm *batch, const char *about, mu_error *e) {
    mu_routing_record *r = *out = mu_alloc(1, sizeof *r);
    *r = (mu_routing_record){ .model = m, .batch = batch, .width = seq_len * m->n_moe * m->moe_cfg.top_k };
    mu_status status = mu_expand_home(path, &r->path, e);
    bool replays = mode == MU_ROUTING_REPLAY;
    if (status == MU_STATUS_OK && !m->n_moe)
        status = mu_error_set(e, MU_STATUS_USAGE, "--%s-routing %s: a dense model has no routing", replays ? "replay" : "record", path);
    else if (batch->rank != 0 || status != MU_STATUS_OK) return mu_agree(batch, status, e);
    else if (!replays) status = create(r, mode, about, e);
    else if (!mu_file_exists(r->path)) status = mu_error_set(e, MU_STATUS_NOINPUT, "--replay-routing %s: no such file", path);
    else status = open_old("--replay-routing", r->path, about, &r->store, e);
    return mu_agree(batch, status, e);
}

mu_status mu_routing_record_copy(mu_routing_record *r, const char *name, int64_t sequences, mu_error *e) {
    enum { AT_ONCE = 1 << 20 };
    int64_t n = sequences * r->width;
    if (!r->old || !mu_store_has(r->old, name)) return MU_STATUS_OK;
    uint16_t *values = mu_alloc(AT_ONCE, sizeof *values);
    mu_status status = mu_store_make(r->store, name, MU_STORE_U16, 1, &n, CHUNK, e);
    for (int64_t at = 0; at < n && status == MU_STATUS_OK; at += AT_ONCE) {
        int64_t here = n - at < AT_ONCE ? n - at : AT_ONCE;
        status = mu_store_read_part(r->old, name, MU_STORE_U16, at, here, values, e);
        if (status == MU_STATUS_OK) status = mu_store_write_part(r->store, name, MU_STORE_U16, at, here, values, e);
    }
    free(values);
    free(r->last);
    r->last = mu_strdup(name);
    return status;
}

bool mu_routing_record_has(const mu_routing_record *r, const char *name) { return mu_store_has(r->store, name); }

mu_status mu_routing_record_expect(mu_routing_record *r, const char *name, int64_t sequences, mu_error *e) {
    mu_store_type type;
    int n_dims;
    int64_t shape[4], n = sequences * r->width;
    mu_status status = mu_store_has(r->store, name) ? mu_store_shape(r->store, name, &type, &n_dims, shape, e)
                                                    : mu_error_set(e, MU_STATUS_DATA, "--replay-routing %s does not fit: it has no %s", r->path, name);
    if (status == MU_STATUS_OK && (type != MU_STORE_U16 || n_dims != 1 || shape[0] != n))
        status = mu_error_set(e, MU_STATUS_DATA, "--replay-routing %s does not fit: %s must have %lld sequences of %lld ids", r->path, name,
                              (long long)sequences, (long long)r->width);
    return status;
}

mu_status mu_routing_record_close(mu_routing_record *r, mu_status so_far, mu_error *e) {
    if (!r) return so_far;
    mu_status status = r->error.status;
    if (status != MU_STATUS_OK && so_far == MU_STATUS_OK) *e = r->error;
    mu_error why;
    mu_status closed = mu_store_finish(r->store, MU_STATUS_OK, &why);
    if (closed == MU_STATUS_OK) closed = mu_store_finish(r->old, MU_STATUS_OK, &why);
    if (r->temporary && status == MU_STATUS_OK && closed == MU_STATUS_OK && r->last) closed = mu_file_rename(r->temporary, r->path, &why);
    else if (r->temporary) remove(r->temporary);
    if (closed != MU_STATUS_OK && status == MU_STATUS_OK && so_far == MU_STATUS_OK) *e = why;
    status = so_far != MU_STATUS_OK ? so_far : status != MU_STATUS_OK ? status : closed;
    if (r->temporary && !r->last && status == MU_STATUS_OK) mu_log(MU_LOG_WARNING, "--record-routing %s: nothing to record, no file is written", r->path);
    mu_comm *batch = r->batch;
    free(r->path);
    free(r->temporary);
    free(r->last);
    free(r);
    return mu_agree(batch, status, e);
}

mu_status mu_routing_record_status(const mu_routing_record *r, mu_error *e) {
    if (r && r->error.status != MU_STATUS_OK) *e = r->error;
    return r ? r->error.status : MU_STATUS_OK;
}

void mu_routing_record_print(const char *replay, const char *record) {
    if (replay) mu_print("routing: replayed from %s\n", replay);
    if (record) mu_print("routing: recorded to %s\n", record);
}

/* ------------------------------------------------------------------ blocks of sequences */

static void write_block(mu_routing_record *r, const mu_routing_block *b, const int32_t *ids) {
    int64_t n = b->n * r->width, total = b->total * r->width;
    uint16_t *values = mu_alloc((size_t)n, sizeof *values);
    mu_error *e = &r->error;
    for (int64_t i = 0; i < n; i++) values[i] = (uint16_t)ids[i];
    if (!r->last || strcmp(r->last, b->name)) {
        e->status = mu_store_make(r->store, b->name, MU_STORE_U16, 1, &total, CHUNK, e);
        free(r->last);
        r->last = mu_strdup(b->name);
    }
    if (e->status == MU_STATUS_OK) e->status = mu_store_write_part(r->store, b->name, MU_STORE_U16, b->first * r->width, n, values, e);
    free(values);
}

void mu_routing_record_write(mu_routing_record *r, const mu_routing_block *b, const uint16_t *own) {
    if (r->error.status != MU_STATUS_OK) return;
    int32_t *ids = mu_alloc((size_t)(b->n * r->width), sizeof *ids);
    for (int64_t j = 0; j < b->own; j++)
        for (int64_t i = 0; i < r->width; i++) ids[(b->offset + j * b->stride) * r->width + i] = own[j * r->width + i];
    mu_all_reduce(r->batch, MU_REDUCE_SUM, MU_DTYPE_I32, ids, b->n * r->width); /* every other rank has 0 there */
    if (r->batch->rank == 0) write_block(r, b, ids);
    r->error.status = mu_agree(r->batch, r->error.status, &r->error);
    free(ids);
}

/* Every token has top_k different experts of the model. */
static mu_status check_ids(const mu_routing_record *r, const mu_routing_block *b, const uint16_t *ids, mu_error *e) {
    int64_t K = r->model->moe_cfg.top_k, E = r->model->moe_cfg.num_experts;
    for (int64_t i = 0; i < b->n * r->width; i++) {
        bool good = ids[i] < E;
        for (int64_t k = 1; k <= i % K; k++) good &= ids[i] != ids[i - k];
        if (!good)
            return mu_error_set(e, MU_STATUS_DATA, "%s: %s: value %lld is %d: not one of %lld different experts of %lld", r->path, b->name,
                                (long long)(b->first * r->width + i), ids[i], (long long)K, (long long)E);
    }
    return MU_STATUS_OK;
}

bool mu_routing_record_read(mu_routing_record *r, const mu_routing_block *b, uint16_t *own) {
    if (r->error.status != MU_STATUS_OK) return false;
    int64_t n = b->n * r->width;
    uint16_t *ids = mu_alloc((size_t)n, sizeof *ids);
    mu_error *e = &r->error;
    if (r->batch->rank == 0) {
        e->status = mu_store_read_part(r->store, b->name, MU_STORE_U16, b->first * r->width, n, ids, e);
        if (e->status == MU_STATUS_OK) e->status = check_ids(r, b, ids, e);
    }
    e->status = mu_agree(r->batch, e->status, e);
    if (e->status == MU_STATUS_OK) mu_broadcast(r->batch, 0, ids, n * (int64_t)sizeof *ids);
    for (int64_t j = 0; j < b->own; j++)
        memcpy(own + j * r->width, ids + (b->offset + j * b->stride) * r->width, (size_t)r->width * sizeof *own);
    free(ids);
    return e->status == MU_STATUS_OK;
}

/* ------------------------------------------------------------------ ids of a pass */

void mu_routing_ids(const mu_model *m, const mu_routing *routings, int64_t tokens, uint16_t *ids) {
    int64_t K = m->moe_cfg.top_k, L = m->n_moe;
    int32_t *layer = mu_alloc((size_t)(tokens * K), sizeof *layer);
    for (int64_t l = 0; l < L; l++) {
        mu_tensor_read(routings[l].ids_TK, layer);
        for (int64_t i = 0; i < tokens * K; i++) ids[(i / K * L + l) * K + i % K] = (uint16_t)layer[i];
    }
    free(layer);
}

/* All others are forbidden, instead of these required: so experts that must be chosen first still are. */
mu_expert_mask mu_routing_ids_mask(const mu_model *m, mu_tape *tp, int64_t tokens, const uint16_t *ids) {
    int64_t K = m->moe_cfg.top_k, L = m->n_moe, E = m->moe_cfg.num_experts;
    int32_t *values = mu_tape_alloc(tp, (size_t)(L * tokens * E) * sizeof *values); /* MU_ROUTE_FORBIDDEN */
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t l = 0; l < L; l++)
            for (int64_t k = 0; k < K; k++) values[(l * tokens + t) * E + ids[(t * L + l) * K + k]] = MU_ROUTE_ALLOWED;
    return (mu_expert_mask){ values, tokens };
}
