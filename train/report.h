/* report.h - what the pages of `muster report` and `muster compare` show of a run (report_*.c). Local. */
#ifndef MUSTER_TRAIN_REPORT_H
#define MUSTER_TRAIN_REPORT_H
#include "train/page.h"
#include "train/run_view.h"

/* ------------------------------------------------------------------ the records of a run (report_data.c) */
/* A number that lines of metrics.jsonl have under this key: n points, steps ascending. */
typedef struct {
    char *key;
    int64_t n, room;
    double *step, *value;
} mu_series;
/* The states of all experts [n_moe, experts] from a step on; kept when they change. */
typedef struct { int64_t step; uint8_t *state; } mu_report_states;
typedef struct {
    int64_t step;
    int layer, expert;
    char state[16];             /* the new one: "starved" */
    char reason[160];           /* in words, with figures; "" when the run has no events.jsonl */
    int domain;                 /* that it is about, -1: unknown */
    double criticality;         /* of the expert for this domain at that step */
} mu_report_event;
typedef struct { int64_t step; char text[400]; } mu_report_advice;
typedef enum { MU_CARE_PROTECTED, MU_CARE_LEFT, MU_CARE_ARCHIVED, MU_CARE_OTHER } mu_report_care_kind;
typedef struct { int64_t step, layer, expert; mu_report_care_kind kind; char text[200]; } mu_report_care;
/* What holds a domain that is absent from this step on. weights: that are anchored, else 0. */
typedef struct { int64_t step; char domain[64], text[200]; double weights; } mu_report_absence;
/* Of one statistics line: the share of a domain's tokens that each expert gets [n_moe, experts, n_domains] (0 for a domain without tokens),
 * and loads [n_moe, experts], over `steps` steps up to `step`. */
enum { MU_REPORT_SHARES = 8, MU_REPORT_CELLS = 64 * 256 * 50 };
typedef struct mu_report_shares { int64_t step, steps; float *of_domain; double *load; } mu_report_shares;
typedef struct {
    mu_run_view view;
    char *name;                 /* last part of the folder's path */
    int64_t first_step, last_step, n_steps;     /* logged steps */
    int64_t skipped, skipped_events;            /* damaged lines of metrics.jsonl and events.jsonl */
    int64_t vocab_size;         /* 0: the tokenizer cannot be opened */
    int n_series;
    mu_series *series;
    json_t *statistics;         /* the last statistics line, or NULL */
    int64_t n_moe, experts, n_domains;          /* n_moe 0: a dense model */
    int64_t *layer;             /* [n_moe]: their numbers in the model */
    const char **domain;        /* [n_domains] */

    /* From statistics.rec. Time is divided into columns of equal width from step 0 to last_step. */
    char *no_counts;            /* why there are no counts, or NULL */
    int64_t n_records, damaged_records, columns;
    int64_t *load;              /* [n_moe, columns, experts]: assignments */
    int64_t *recent;            /* [n_moe, experts, n_domains]: assignments in the logged steps from recent_from on */
    int64_t *of_expert, *of_domain, *of_layer;      /* its sums: [n_moe, experts], [n_moe, n_domains], [n_moe] */
    int64_t recent_from;        /* the second half of the run: enough tokens of rare domains */
    bool by_domain;             /* recent is; else all counts are under domain 0 */

    /* From the last statistics lines with lists by domain, which count every step. */
    int64_t n_shares;           /* lines, 0: none */
    struct mu_report_shares *shares;    /* [n_shares], the newest last */

    int64_t layer_step;         /* every how many layers have pictures of their own, so that the page stays small */

    int64_t n_states;
    mu_report_states *states;
    bool all_states;            /* from statistics lines: all of mu_expert_state; else healthy, starved and dead only */
    int64_t n_events;           /* changes of state: of events.jsonl, else from the lists of states */
    mu_report_event *events;
    int64_t n_advice;           /* of events.jsonl: what the run said once about its routing */
    mu_report_advice *advice;
    int64_t n_care;             /* what was done for experts: protected, archived */
    mu_report_care *care;
    int64_t n_absences;
    mu_report_absence *absences;
} mu_report;
/* Reads what there is: a run that is being written, damaged lines and records, missing files. Errors are those of mu_run_view_open.
 * mu_report_free may follow any outcome. */
mu_status mu_report_read(mu_report *r, const char *dir, mu_error *e) MU_MUST_USE;
void mu_report_free(mu_report *r);
const mu_series *mu_report_series(const mu_report *r, const char *format, ...) MU_PRINTF(2, 3);     /* NULL: no such key */
double mu_series_last(const mu_series *s);              /* NAN: none */
double mu_series_recent(const mu_series *s);            /* mean of the last tenth of its values; NAN: none */
/* A list of the last statistics line with `n` numbers, heap; NULL: no such key, or another length. */
double *mu_report_list(const mu_report *r, int64_t n, const char *format, ...) MU_PRINTF(3, 4);
/* Wall-clock seconds at each point of `train/tokens`, over all starts of the run; heap [n]. */
double *mu_report_seconds(const mu_report *r, int64_t *n);

/* ------------------------------------------------------------------ numbers derived from it (report_derive.c) */
/* log2 of P(expert | domain) / P(expert), over the statistics lines if there are shares, else the logged recent steps; -INFINITY: no
 * token; NAN: too few tokens to tell (fewer than MU_LIFT_TOKENS assignments expected). */
enum { MU_LIFT_TOKENS = 5 };
double mu_report_lift(const mu_report *r, int64_t layer, int64_t expert, int64_t domain);
/* Share of the domain's tokens that this expert gets (with top_k of 2 two experts can get all); NAN without tokens. */
double mu_report_share(const mu_report *r, int64_t layer, int64_t expert, int64_t domain);
/* At least so many tokens of the domain are behind the lift: a training sequence has one domain, so an interval with a domain has a
 * whole sequence of it. */
double mu_report_domain_tokens(const mu_report *r, int64_t domain);
/* "the statistics of steps 801 to 1600", "the logged steps since 801": what lift and shares are from. */
const char *mu_report_lift_source(const mu_report *r);
/* "stats.budget is 0": why a run has no measurements on the probe. */
const char *mu_report_why_no_probe(const mu_report *r);
/* Mutual information of expert and domain over the smaller of their entropies, with the small-sample correction (Miller and Madow). */
double mu_report_information(const mu_report *r, int64_t layer);

/* ------------------------------------------------------------------ parts of the page, one file each */
void mu_report_put_summary(mu_page *p, const mu_report *r);             /* report_summary.c */
void mu_report_put_diagnosis(mu_page *p, const mu_report *r);           /* report_diagnosis.c */
void mu_report_put_losses(mu_page *p, const mu_report *r);              /* report_losses.c */
void mu_report_put_drops(mu_page *p, const mu_report *r);
void mu_report_put_balance(mu_page *p, const mu_report *r);             /* report_load.c */
void mu_report_put_load(mu_page *p, const mu_report *r);
void mu_report_put_specialisation(mu_page *p, const mu_report *r);      /* report_experts.c */
void mu_report_put_pairs(mu_page *p, const mu_report *r);
void mu_report_put_knowledge(mu_page *p, const mu_report *r);           /* report_knowledge.c */
void mu_report_put_timeline(mu_page *p, const mu_report *r);            /* report_states.c */
/* Runs the newest checkpoint on a validation sequence of each domain, if it and the texts can be opened (report_texts.c). */
void mu_report_put_texts(mu_page *p, const mu_report *r, mu_mesh *mesh, bool open);

#endif
