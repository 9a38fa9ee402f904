/* cmd_report.c - muster report: one page about a run. */
#include "train/report.h"

#include <stdlib.h>

typedef struct {
    char *run, *out;        /* heap */
    bool no_texts;
} arguments;

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    const char *out = NULL;
    int n = 0;
    mu_status status = mu_run_arguments(argc, argv, &(mu_run_options){ 1, 1, &out, "--no-texts", &a->no_texts }, &n, &a->run, e);
    if (status != MU_STATUS_OK) return status;
    if (out) return mu_expand_home(out, &a->out, e);
    a->out = mu_format("%s/report.html", a->run);
    return MU_STATUS_OK;
}

static void put_head(mu_page *p, const mu_report *r) {
    static const char *const links[][2] = { { "diagnosis", "Diagnosis" }, { "losses", "Losses" }, { "balance", "Balance" }, { "load", "Load" },
                                            { "domains", "Domains" }, { "pairs", "Pairs" }, { "texts", "Texts" }, { "knowledge", "Rare knowledge" }, { "states", "States" }, { "drops", "Drops" } };
    mu_page_put(p, "<h1>%s <span class=\"state\">%s</span></h1>\n<nav>", r->name, mu_run_state_name(r->view.state));
    for (size_t i = 0; i < (r->n_moe ? sizeof links / sizeof *links : 2); i++) mu_page_put(p, "<a href=\"#%s\">%s</a>", links[i][0], links[i][1]);
    mu_page_put(p, "</nav>\n");
}

/* The options of the run, folded away. */
static void put_configuration(mu_page *p, const mu_report *r) {
    mu_page_put(p, "<details class=\"aside\"><summary>Configuration</summary>\n<pre class=\"text\">%s</pre>\n", r->view.config_text);
    mu_page_unfold(p);
}

static void put_report(mu_page *p, const mu_report *r, mu_mesh *mesh, bool texts) {
    mu_page_begin(p, mu_show("muster report: %.200s", r->name));
    put_head(p, r);
    mu_report_put_summary(p, r);
    mu_report_put_diagnosis(p, r);
    mu_report_put_losses(p, r);
    if (r->n_moe) {
        mu_report_put_balance(p, r);
        mu_report_put_load(p, r);
        mu_report_put_specialisation(p, r);
        mu_report_put_pairs(p, r);
        mu_report_put_texts(p, r, mesh, texts);
        mu_report_put_knowledge(p, r);
        mu_report_put_timeline(p, r);
        mu_report_put_drops(p, r);
    }
    put_configuration(p, r);
}

static mu_status make_report(const arguments *a, mu_mesh *mesh, mu_error *e) {
    mu_report r;
    mu_page p;
    mu_status status = mu_report_read(&r, a->run, e);
    if (status == MU_STATUS_OK) status = mu_page_check(a->out, e);
    if (status == MU_STATUS_OK) {
        put_report(&p, &r, mesh, !a->no_texts);
        status = mu_page_end(&p, a->out, e);
        if (status == MU_STATUS_OK) mu_print("written to %s, %.1f MB\n", a->out, (double)p.bytes / 1e6);
    }
    mu_report_free(&r);
    return status;
}

int mu_cmd_report(int argc, char **argv) {
    mu_error e = { 0 };
    arguments a = { 0 };
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = mesh->world->size > 1 ? mu_error_set(&e, MU_STATUS_USAGE, "report runs on one rank") : parse(argc, argv, &a, &e);
    if (status == MU_STATUS_OK) status = make_report(&a, mesh, &e);
    free(a.run);
    free(a.out);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
