/* metrics_resume.c - continues the metrics.jsonl of an earlier job: what its training lines must hold in addition to what every
 * line must (metrics_lines.c). */
#include "train/run_view.h"
#include "train/train.h"

#include <stdlib.h>

bool mu_metrics_read_loads(const mu_log_source *src, const json_t *line, int64_t *loads) {
    int64_t E = src->cfg->moe.num_experts;
    for (int layer = 0; layer < src->state->model->n_moe; layer++) {
        char key[64];
        snprintf(key, sizeof key, "moe/layer_%d/load", src->state->model->moe_layers[layer]);
        const json_t *list = json_object_get(line, key);
        int64_t rest = src->cfg->train.global_batch_size * src->cfg->train.seq_len * src->cfg->moe.top_k;
        if (json_array_size(list) != (size_t)E) return false;
        for (int64_t i = 0; i < E; i++) {
            const json_t *load = json_array_get(list, (size_t)i);
            int64_t value = json_integer_value(load);
            if (!json_is_integer(load) || value < 0 || value > rest) return false;
            rest -= loads[layer * E + i] = value;
        }
        if (rest != 0) return false;
    }
    return true;
}

bool mu_run_rewinds(const mu_log_source *src) {
    int64_t *steps = NULL;
    bool yes = mu_checkpoint_list(src->cfg->run.dir, &steps) > 0 && steps[0] > src->state->step;
    free(steps);
    return yes;
}

int64_t mu_run_resume_step(const mu_log_source *src) {
    const mu_train_state *s = src->state;
    int64_t *steps = NULL;
    bool begins = s->parent.checkpoint[0] && s->step == s->parent.step && mu_checkpoint_list(src->cfg->run.dir, &steps) == 0;
    free(steps);
    return begins ? 0 : s->step;
}

typedef struct {
    const mu_log_source *src;
    int64_t *loads;             /* scratch, [MoE layers, experts] */
} training_check;

/* Are the tokens and loads of a training line those of its step? */
static bool check(void *context, const mu_line *line) {
    const training_check *c = context;
    const json_t *tokens = json_object_get(line->json, "train/tokens");
    const mu_parent *p = &c->src->state->parent;
    int64_t batch = c->src->cfg->train.global_batch_size * c->src->cfg->train.seq_len, seen = json_integer_value(tokens) - p->tokens;
    if (line->kind != MU_LINE_TRAINING) return true;
    return json_is_integer(tokens) && seen % batch == 0 && seen / batch == line->step - p->step && mu_metrics_read_loads(c->src, line->json, c->loads);
}

mu_status mu_metrics_continue(mu_lines_out *f, const char *path, const char *routing_path, const mu_log_source *src, mu_logged_steps *logged,
                              mu_error *e) {
    training_check c = { src, mu_alloc((size_t)(src->state->model->n_moe * src->cfg->moe.num_experts), sizeof *c.loads) };
    mu_lines_resume how = { .path = path, .format = MU_LINES_METRICS, .step = mu_run_resume_step(src), .rewinds = mu_run_rewinds(src),
                            .derived = routing_path, .check = check, .context = &c };
    mu_status status = mu_lines_continue(f, &how, logged, e);
    free(c.loads);
    return status;
}
