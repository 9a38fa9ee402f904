/* tensorboard.c - RUN/tensorboard/: the numbers of each line of metrics.jsonl as TensorBoard's scalars, and maps of load and lift.
 *
 * Each job writes a file of its own, whose name sorts after the others: TensorBoard reads the files of a folder in the order of their names. The file
 * begins with a start at the first step that this job computes; there TensorBoard drops newer steps of earlier jobs
 * (tensorboard/backend/event_processing/event_accumulator.py, _CheckForRestartAndMaybePurge). A line is one write, so a kill leaves
 * at most one incomplete record at the end, which TensorBoard ignores. */
#include "train/picture.h"
#include "train/tfevents.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct mu_tensorboard {
    char *path;
    int file;                   /* -1: could not be written */
    mu_log_source src;
    mu_bytes out, summary;      /* scratch */
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------ the file */

static void give_up(mu_tensorboard *t, const char *reason) {
    mu_log(MU_LOG_WARNING, "%s cannot be written: %s; this job writes no further events for TensorBoard (metrics.jsonl has all numbers)",
           t->path, reason);
    if (t->file >= 0) close(t->file);
    t->file = -1;
}

/* Writes t->out and empties it. */
static void flush(mu_tensorboard *t) {
    size_t done = 0;
    bool good = !mu_fault("tensorboard", 0);
    if (!good) errno = ENOSPC;
    while (good && done < t->out.n) {
        ssize_t n = write(t->file, t->out.data + done, t->out.n - done);
        if (n > 0) done += (size_t)n;
        else good = n < 0 && errno == EINTR;
    }
    t->out.n = 0;
    if (!good) give_up(t, strerror(errno));
}

/* The name's first number: seconds since 1970, and larger than those of the files in the folder. */
static int64_t name_number(const char *folder) {
    DIR *d = opendir(folder);
    long long number = (long long)now(), other;
    for (struct dirent *f; d && (f = readdir(d)); )
        if (sscanf(f->d_name, "events.out.tfevents.%10lld.", &other) == 1 && other >= number && other < 9999999999) number = other + 1;
    if (d) closedir(d);
    return number;
}

mu_tensorboard *mu_tensorboard_open(const mu_log_source *src) {
    mu_tensorboard *t = mu_alloc(1, sizeof *t);
    char *folder = mu_format("%s/tensorboard", src->cfg->run.dir), host[MU_HOST_NAME];
    mu_error e;
    *t = (mu_tensorboard){ .path = folder, .file = -1, .src = *src };
    if (mu_file_make_dirs(folder, &e) != MU_STATUS_OK) return give_up(t, e.text), t;
    mu_host_name(host);
    t->path = mu_format("%s/events.out.tfevents.%010lld.%s.%ld.0", folder, (long long)name_number(folder), host, (long)getpid());
    free(folder);
    t->file = open(t->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (t->file < 0) return give_up(t, strerror(errno)), t;
    mu_event_version(&t->out, now());
    mu_event_start(&t->out, now(), mu_run_resume_step(src) + 1);
    flush(t);
    return t;
}

void mu_tensorboard_sync(mu_tensorboard *t) {
    if (t && t->file >= 0 && fsync(t->file)) give_up(t, strerror(errno));
}

void mu_tensorboard_close(mu_tensorboard *t) {
    if (!t) return;
    if (t->file >= 0) close(t->file);
    mu_bytes_free(&t->out);
    mu_bytes_free(&t->summary);
    free(t->path);
    free(t);
}

/* ------------------------------------------------------------------ maps */

/* Adds cells [rows, cols] as an image of at most 256 x 256 pixels, or of one per cell. */
static void add_map(mu_bytes *summary, const char *tag, const uint8_t *levels, int64_t rows, int64_t cols) {
    enum { PIXELS = 256, LARGEST = 16 };
    int64_t most = rows > cols ? rows : cols, cell = PIXELS / most < 1 ? 1 : PIXELS / most > LARGEST ? LARGEST : PIXELS / most;
    int64_t width = cols * cell, height = rows * cell;
    uint8_t *pixels = mu_alloc((size_t)(width * height), 1);
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) pixels[y * width + x] = levels[y / cell * cols + x / cell];
    size_t bytes;
    uint8_t *png = mu_png_encode(pixels, width, height, MU_COLOURS_DIVERGING, &bytes);
    mu_summary_image(summary, tag, width, height, png, bytes);
    free(png);
    free(pixels);
}

/* The list of a layer, of this length; NULL: the line has none. */
static const json_t *list_of(const json_t *line, int layer, const char *what, int64_t n) {
    char key[64];
    snprintf(key, sizeof key, "moe/layer_%d/%s", layer, what);
    const json_t *list = json_object_get(line, key);
    return json_array_size(list) == (size_t)n ? list : NULL;
}

static double number(const json_t *list, int64_t i) { return json_number_value(json_array_get(list, (size_t)i)); }

/* "moe/load": layer x expert, from 1/4 to 4 times the mean load of the layer. */
static void add_load(mu_tensorboard *t, const json_t *line) {
    int64_t L = t->src.state->model->n_moe, E = t->src.cfg->moe.num_experts;
    uint8_t *levels = mu_alloc((size_t)(L * E), 1);
    bool complete = true;
    for (int64_t l = 0; l < L && complete; l++) {
        const json_t *load = list_of(line, t->src.state->model->moe_layers[l], "load", E);
        double sum = 0;
        complete = load != NULL;
        for (int64_t i = 0; i < E; i++) sum += number(load, i);
        for (int64_t i = 0; i < E; i++) {
            double x = number(load, i) * (double)E / sum;
            levels[l * E + i] = x > 0 ? mu_colours_level(log2(x), -2, 2) : MU_LEVEL_SPECIAL;
        }
    }
    if (complete) add_map(&t->summary, "moe/load", levels, L, E);
    free(levels);
}

/* "moe/layer_3/lift": domain x expert, from 1/8 to 8 times the share of the expert among all tokens. */
static void add_lift(mu_tensorboard *t, const json_t *line, int layer) {
    enum { NO_TOKEN = -99 };
    int64_t E = t->src.cfg->moe.num_experts, D = t->src.corpus->n_domains;
    const json_t *lift = list_of(line, layer, "lift", E * D);
    char tag[64];
    if (!lift) return;
    uint8_t *levels = mu_alloc((size_t)(D * E), 1);
    for (int64_t i = 0; i < E; i++)
        for (int64_t d = 0; d < D; d++) {
            double x = number(lift, i * D + d);
            levels[d * E + i] = x > NO_TOKEN ? mu_colours_level(x, -3, 3) : MU_LEVEL_SPECIAL;
        }
    snprintf(tag, sizeof tag, "moe/layer_%d/lift", layer);
    add_map(&t->summary, tag, levels, D, E);
    free(levels);
}

/* ------------------------------------------------------------------ lines */

static void add_values(mu_tensorboard *t, json_t *line) {
    const mu_model *model = t->src.state->model;
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value)
        if (json_is_number(value) && strcmp(key, "step")) mu_summary_scalar(&t->summary, key, (float)json_number_value(value));
    if (!model->n_moe || !json_object_get(line, "stats/steps")) return;
    add_load(t, line);
    for (int l = 0; l < model->n_moe; l++) add_lift(t, line, model->moe_layers[l]);
}

void mu_tensorboard_line(mu_tensorboard *t, const mu_json *line) {
    if (!t || t->file < 0) return;
    char *text = mu_format("%s}", line->text);
    json_t *json = json_loads(text, 0, NULL);
    MU_CHECK(json, "not a line of metrics: %.80s", text);
    t->summary.n = 0;
    add_values(t, json);
    mu_event_summary(&t->out, now(), json_integer_value(json_object_get(json, "step")), &t->summary);
    flush(t);
    json_decref(json);
    free(text);
}
