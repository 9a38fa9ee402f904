/* report_summary.c - what the run is: state, sizes, compute, time, communication. */
#include "train/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void fact(mu_page *p, const char *name, const char *value, const char *more) {
    mu_page_put(p, "<div><dt>%s</dt><dd>%s", name, value);
    if (more[0]) mu_page_put(p, "<small>%s</small>", more);
    mu_page_put(p, "</dd></div>\n");
}

static double tokens_per_step(const mu_report *r) {
    return (double)(r->view.cfg.train.global_batch_size * r->view.cfg.train.seq_len);
}

static void put_progress(mu_page *p, const mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    const char *loss = mu_show_number(mu_series_last(mu_report_series(r, "train/ce_loss")));
    fact(p, "steps", mu_show("%lld of %lld", (long long)r->last_step, (long long)cfg->train.steps), mu_show("%lld logged", (long long)r->n_steps));
    double tokens = mu_series_last(mu_report_series(r, "train/tokens"));
    fact(p, "tokens", isnan(tokens) ? "0" : mu_show_count(tokens), mu_show("%s per step", mu_show_count(tokens_per_step(r))));
    fact(p, "training loss", loss, "cross-entropy of the last step, nats/token");
    fact(p, "validation loss", mu_show_number(mu_series_last(mu_report_series(r, "val/ce_loss"))), "last evaluation, mean of the domains");
}

static void put_model(mu_page *p, const mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    const char *moe = r->n_moe ? mu_show("%lld MoE layers, top %lld of %lld experts", (long long)r->n_moe, (long long)cfg->moe.top_k, (long long)r->experts)
                               : "dense: no experts";
    fact(p, "model", mu_show("%lld layers, width %lld", (long long)cfg->model.num_layers, (long long)cfg->model.hidden_size), moe);
}

/* The dense model of equal size has the same parameters and uses all of them for every token. */
static void put_sizes(mu_page *p, const mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    if (!r->vocab_size) {
        fact(p, "parameters", "unknown", "data.tokenizer cannot be opened");
        return;
    }
    mu_moe_config all = cfg->moe;
    all.top_k = all.num_experts;
    mu_model_size size = mu_model_measure(&cfg->model, &cfg->moe, r->vocab_size, cfg->train.seq_len);
    fact(p, "parameters", mu_show_count((double)size.total), size.total >= 1e5 ? mu_show("%lld", (long long)size.total) : "");
    const char *flops = mu_show("%s FLOPs per token, forward and backward", mu_show_count(size.train_flops));
    fact(p, "active per token", mu_show_count((double)size.active), mu_show("%.0f %% of all parameters", 100 * (double)size.active / (double)size.total));
    if (!r->n_moe) {
        fact(p, "compute", mu_show_count(size.train_flops), "FLOPs per token, forward and backward");
        return;
    }
    mu_model_size dense = mu_model_measure(&cfg->model, &all, r->vocab_size, cfg->train.seq_len);
    fact(p, "compute saved against the dense model of equal size", mu_show("%.0f %%", 100 * (1 - size.train_flops / dense.train_flops)), flops);
}

static void put_time(mu_page *p, const mu_report *r) {
    int64_t n;
    double *seconds = mu_report_seconds(r, &n), step = mu_series_recent(mu_report_series(r, "perf/step_ms"));
    double comm = mu_series_recent(mu_report_series(r, "perf/comm_ms")), mfu = mu_series_recent(mu_report_series(r, "perf/mfu"));
    double speed = mu_series_recent(mu_report_series(r, "perf/tokens_per_s"));
    if (n) fact(p, "training time", mu_show_seconds(seconds[n - 1]), "up to the last logged step, all starts of the run");
    free(seconds);
    if (!isnan(speed))
        fact(p, "speed", mu_show("%s tokens/s", mu_show_count(rint(speed))), isnan(mfu) ? "" : mfu > 1 ? "more than the measured peak: the machine was busy at the start"
                                                                                         : mu_show("%.0f %% of the measured peak (MFU)", 100 * mfu));
    if (!isnan(step))
        fact(p, "time of a step", mu_show("%s ms", mu_show_number(step)),
             mu_show("%.1f %% of it in collectives, %.1f %% computing (rank 0)", 100 * comm / step, 100 - 100 * comm / step));
}

/* Bytes that a rank sends per step, from the sizes: gradients and weights of what it shares (a reduce-scatter and an all-gather over n
 * ranks send (n - 1)/n each, fp32), and the rows of an expert group in fp32, to the experts and back, forward and backward. */
static double estimated_bytes(const mu_report *r, double dp, double ep) {
    const mu_config *cfg = &r->view.cfg;
    mu_model_size size = mu_model_measure(&cfg->model, &cfg->moe, r->vocab_size, cfg->train.seq_len);
    double ranks = dp * ep, one = 3.0 * (double)(cfg->model.hidden_size * cfg->moe.moe_ffn_hidden_size);
    double experts = r->n_moe ? (double)(r->n_moe * r->experts) * one : 0, shared = (double)size.total - experts;
    double weights = 2 * 4 * (shared * (ranks - 1) / ranks + experts / ep * (dp - 1) / dp);
    double rows = (double)(r->n_moe * cfg->moe.top_k) * tokens_per_step(r) / ranks * (ep - 1) / ep;
    return weights + 4 * rows * 4 * (double)cfg->model.hidden_size;
}

static void put_machine(mu_page *p, const mu_report *r) {
    const json_t *facts = r->view.facts;
    double dp = (double)json_integer_value(json_object_get(facts, "dp")), ep = (double)json_integer_value(json_object_get(facts, "ep"));
    const char *device = json_string_value(json_object_get(facts, "device")), *started = json_string_value(json_object_get(facts, "started"));
    if (dp < 1 || ep < 1) dp = ep = 1;
    fact(p, "ranks", mu_show("%.0f", dp * ep), mu_show("dp %.0f x ep %.0f%s%s", dp, ep, device ? ", " : "", device ? device : ""));
    if (dp * ep == 1) fact(p, "communication", "none", "one rank");
    else if (r->vocab_size)
        fact(p, "communication", mu_show("%s MB per step and rank", mu_show_number(estimated_bytes(r, dp, ep) / 1e6)),
             mu_show("estimated, not measured: 8 (S (n-1)/n + X/ep (dp-1)/dp) + 16 L K T D/n (ep-1)/ep bytes of fp32, with n = %.0f ranks, "
                     "S shared and X expert parameters, L MoE layers, K experts of each of T tokens, width D", dp * ep));
    const json_t *parent = json_object_get(facts, "parent");
    const char *checkpoint = json_string_value(json_object_get(parent, "checkpoint"));
    if (checkpoint) fact(p, "forked from", checkpoint, mu_show("step %lld", (long long)json_integer_value(json_object_get(parent, "step"))));
    const json_t *earlier;
    size_t i;
    json_array_foreach(json_object_get(facts, "ancestors"), i, earlier) {
        const char *from = json_string_value(json_object_get(earlier, "checkpoint"));
        if (from) fact(p, "that one from", from, mu_show("step %lld", (long long)json_integer_value(json_object_get(earlier, "step"))));
    }
    if (started) fact(p, "last started", started, "");
}

void mu_report_put_summary(mu_page *p, const mu_report *r) {
    mu_page_put(p, "<dl class=\"facts\">\n");
    put_progress(p, r);
    put_model(p, r);
    put_sizes(p, r);
    put_time(p, r);
    put_machine(p, r);
    mu_page_put(p, "</dl>\n");
    if (r->view.moved) mu_page_missing(p, "The folder was moved or copied since the run last started.");
    if (r->skipped) mu_page_missing(p, "metrics.jsonl: %lld lines are damaged and left out.", (long long)r->skipped);
    if (r->skipped_events) mu_page_missing(p, "events.jsonl: %lld lines are damaged and left out.", (long long)r->skipped_events);
    if (r->damaged_records) mu_page_missing(p, "statistics.rec: %lld records are damaged and left out.", (long long)r->damaged_records);
    if (r->layer_step > 1)
        mu_page_missing(p, "Pictures of single layers are drawn for one layer of %lld, so that this page stays small; texts, tables and the diagnosis know all.",
                        (long long)r->layer_step);
    if (!r->n_steps) mu_page_missing(p, "No step was logged yet; log.every sets the interval.");
}
