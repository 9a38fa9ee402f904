/* metrics.c - the records of a logged step: a line of metrics.jsonl, one flushed object with a checksum, and a record
 * of statistics.rec, from which routing.h5 is derived. Names follow dashboard conventions; values that depend on the clock or the
 * machine are under perf/ and mem/, and stats/seconds_share, so that the rest can be compared bit for bit. */
#include "train/tfevents.h"
#include "train/train.h"

#include <math.h>
#include <stdlib.h>

struct mu_metrics {
    mu_lines_out out;
    mu_tensorboard *tensorboard;    /* NULL: log.tensorboard is off */
    char *routing_path;
    mu_statistics *statistics;      /* NULL: a dense model has none */
    mu_json line;
    double start;
    bool routing_failed;            /* the last write of routing.h5 failed */
    double routing_time, routing_seconds;   /* time and duration of the last write of routing.h5 */
};

mu_status mu_metrics_open(mu_metrics **out, const mu_log_source *src, mu_error *e) {
    mu_metrics *m = *out = mu_alloc(1, sizeof *m);
    char *path = mu_format("%s/metrics.jsonl", src->cfg->run.dir);
    m->routing_path = mu_format("%s/routing.h5", src->cfg->run.dir);
    char *statistics = mu_format("%s/statistics.rec", src->cfg->run.dir);
    m->start = mu_time();
    mu_json_init(&m->line);
    mu_logged_steps logged = { 0 };
    mu_status status = mu_metrics_continue(&m->out, path, m->routing_path, src, &logged, e);
    if (status == MU_STATUS_OK && src->state->model->n_moe)
        status = mu_statistics_resume(&m->statistics, statistics, path, src, &logged, e);
    if (status == MU_STATUS_OK && src->cfg->log.tensorboard) m->tensorboard = mu_tensorboard_open(src);
    if (status == MU_STATUS_OK) status = mu_file_sync(src->cfg->run.dir, e);
    free(logged.step);
    free(statistics);
    free(path);
    return status;
}

void mu_metrics_close(mu_metrics *m) {
    if (!m) return;
    mu_lines_out_close(&m->out);
    mu_tensorboard_close(m->tensorboard);
    mu_json_free(&m->line);
    free(m->routing_path);
    mu_statistics_close(m->statistics);
    free(m);
}

/* The line, and what is derived from it. */
static mu_status write_line(mu_metrics *m, mu_error *e) {
    mu_status status = mu_lines_write(&m->out, &m->line, e);
    if (status == MU_STATUS_OK) mu_tensorboard_line(m->tensorboard, &m->line);
    return status;
}

static void begin_line(mu_metrics *m, int64_t step) {
    mu_json_reset(&m->line);
    mu_json_begin(&m->line, NULL, '{');
    mu_json_int(&m->line, "step", step);
}

/* Values that are not finite are left out. */
static void add_value(mu_json *j, const char *key, double value) {
    if (isfinite(value)) mu_json_float(j, key, value);
}

mu_status mu_metrics_step(mu_metrics *m, const mu_log_source *src, const mu_step_result *r, double tokens_per_s,
                          mu_error *e) {
    mu_json *j = &m->line;
    mu_model_size size = mu_model_measure(&src->cfg->model, &src->cfg->moe, src->state->model->vocab_size,
                                          src->cfg->train.seq_len);
    begin_line(m, src->state->step);
    mu_json_int(j, "train/tokens", mu_tokens_seen(src->cfg, &src->state->parent, src->state->step));
    mu_json_float(j, "train/loss", r->values.loss);
    mu_json_float(j, "train/ce_loss", r->values.ce);
    add_value(j, "train/ppl", exp(r->values.ce));
    mu_json_float(j, "optim/lr", r->lr);
    mu_json_float(j, "optim/grad_norm", r->values.grad_norm);
    if (r->absent && src->cfg->protect.replay > 0) mu_json_int(j, "protect/replayed", r->replayed);
    if (src->state->model->n_moe) mu_metrics_add_routing(j, src, r);
    mu_json_float(j, "perf/tokens_per_s", tokens_per_s);
    mu_json_float(j, "perf/step_ms", 1e3 * r->seconds);
    mu_json_float(j, "perf/comm_ms", 1e3 * r->comm_seconds);
    if (src->peak_flops > 0) mu_json_float(j, "perf/mfu", tokens_per_s * size.train_flops / src->peak_flops);
    mu_json_float(j, "perf/elapsed_s", mu_time() - m->start);
    mu_json_float(j, "mem/rss_gib", (double)mu_memory_rss() / (1 << 30));
    mu_status status = MU_STATUS_OK; /* the record first: a line without one counts as damage */
    if (m->statistics) status = mu_statistics_append(m->statistics, src->state->step, true, src->state->stats->by_domain, e);
    return status == MU_STATUS_OK ? write_line(m, e) : status;
}

mu_status mu_metrics_statistics(mu_metrics *m, const mu_log_source *src, double measuring_seconds, double protecting_seconds, mu_error *e) {
    begin_line(m, src->state->step);
    mu_metrics_add_window(&m->line, src);
    mu_metrics_add_knowledge(&m->line, src);
    mu_metrics_add_states(&m->line, src);
    mu_json_float(&m->line, "stats/seconds_share", measuring_seconds / (mu_time() - m->start));
    if (protecting_seconds > 0) mu_json_float(&m->line, "perf/protect_share", protecting_seconds / (mu_time() - m->start));
    return write_line(m, e);
}

mu_status mu_metrics_eval(mu_metrics *m, const mu_log_source *src, double mean, const mu_domain_loss *results,
                          mu_error *e) {
    begin_line(m, src->state->step);
    mu_json_float(&m->line, "val/ce_loss", mean);
    for (int i = 0; i < src->corpus->n_domains; i++) {
        char key[96];
        if (!results[i].tokens) continue; /* no validation text: no value, rather than null */
        snprintf(key, sizeof key, "val/%s/ce_loss", src->corpus->domains[i].name);
        mu_json_float(&m->line, key, results[i].ce);
        if (!results[i].bytes) continue;
        snprintf(key, sizeof key, "val/%s/bits_per_byte", src->corpus->domains[i].name);
        mu_json_float(&m->line, key, results[i].bits_per_byte);
    }
    return write_line(m, e);
}

mu_status mu_metrics_sync(mu_metrics *m, mu_error *e) {
    mu_status status = mu_lines_sync(&m->out, e);
    mu_tensorboard_sync(m->tensorboard);
    return status == MU_STATUS_OK && m->statistics ? mu_statistics_sync(m->statistics, e) : status;
}

/* Limits the writing of routing.h5 to about 1 % of the time of a long run. */
static bool routing_is_due(const mu_metrics *m) {
    return m->routing_seconds <= 1 || mu_time() - m->routing_time >= 100 * m->routing_seconds;
}

void mu_metrics_write_routing(mu_metrics *m, bool last) {
    mu_error e;
    if (!m->statistics || !(last || routing_is_due(m))) return;
    double start = mu_time();
    mu_status status = mu_routing_file_write(m->routing_path, m->statistics->path, m->out.path, &e);
    m->routing_time = mu_time();
    m->routing_seconds = m->routing_time - start;
    if (status != MU_STATUS_OK && !m->routing_failed)
        mu_log(MU_LOG_WARNING, "%s; the loads are in statistics.rec, and routing.h5 is retried at each checkpoint", e.text);
    m->routing_failed = status != MU_STATUS_OK;
}
