/* dry_run.c - what a run would need, found by running one step on the shape device: every allocation is made
 * and counted, nothing is computed or touched. */
#include "train/train.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void shape_step(mu_trainer *t) {
    int64_t T = t->micro_size * t->cfg.train.seq_len;
    mu_context cx = mu_trainer_context(t, MU_MODE_TRAIN, t->micro_size);
    mu_tensor *tokens = mu_tensor_ints(t->tape, MU_DTYPE_I32, T, NULL),
              *targets = mu_tensor_ints(t->tape, MU_DTYPE_I32, T, NULL);
    mu_tensor *x = mu_model_forward(t->model, t->tape, &cx, tokens, t->routings);
    mu_tensor *loss = mu_model_head_loss(t->model, t->tape, x, targets, 1.0, NULL);
    mu_release(t->tape, x);
    for (int i = 0; i < t->model->n_moe; i++) {
        const mu_moe *moe = &t->model->blocks[t->model->moe_layers[i]].moe;
        mu_mat counts = mu_data(mu_tensor_ints(t->tape, MU_DTYPE_I64, t->cfg.moe.num_experts, NULL));
        mu_balance_counts c = { counts, counts, T, T };
        mu_balance b = mu_balance_loss(moe, t->tape, &cx, &t->routings[i], &c);
        if (b.loss) loss = mu_add(t->tape, loss, b.loss);
    }
    mu_backward(t->tape, loss);
}

static double mib(double bytes) { return bytes / (1 << 20); }

/* Bytes of the files under a path: a token, two bytes in memory, is a byte of text or half of one in a token file. */
static double file_bytes(const char *path) {
    struct stat st;
    if (stat(path, &st)) return 0;
    if (S_ISREG(st.st_mode)) return (double)st.st_size;
    DIR *d = opendir(path);
    double sum = 0;
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        char *inner = mu_format("%s/%s", path, f->d_name);
        if (f->d_name[0] != '.') sum += file_bytes(inner);
        free(inner);
    }
    if (d) closedir(d);
    return sum;
}

static double text_memory(const mu_option_domains *domains) {
    double sum = 0;
    for (int i = 0; i < domains->n; i++) {
        const char *path = domains->list[i].path, *end = strrchr(path, '.');
        sum += (end && !strcmp(end, ".h5") ? 1 : 2) * file_bytes(path);
    }
    return sum;
}

/* The device whose types a run of this configuration has. */
static mu_device *open_shape(const mu_train_config *cfg) {
    bool half = cfg->dtype == MU_TRAIN_DTYPE_BF16 && cfg->device == MU_TRAIN_DEVICE_CUDA;
    return mu_device_open(cfg->device == MU_TRAIN_DEVICE_REF ? "shape-f64" : half ? "shape-bf16" : "shape");
}

static void print_memory(const mu_trainer *t, double parameters, double state, double activations) {
    const double program = 30 << 20; /* libraries and scratch of the threads; measured */
    printf("\nmemory a rank, MiB\n");
    printf("  weights, gradients, moments  %9.1f\n", mib(state));
    printf("  activations                  %9.1f\n", mib(activations));
    printf("  texts                        %9.1f\n", mib(text_memory(&t->cfg.data.train)));
    printf("  program, about               %9.1f\n", mib(program));
    printf("  total                        %9.1f\n",
           mib(state + activations + text_memory(&t->cfg.data.train) + program));
    printf("checkpoint, all ranks          %9.1f MiB\n", mib(3.0 * parameters * (double)mu_dtype_size(t->dev->fine)));
}

static void print_placement(const mu_trainer *t) {
    if (!t->model->place) return;
    printf("\nexperts of each MoE layer (%d of %lld layers), the same in each of %d replica%s\n",
           t->model->n_moe, (long long)t->cfg.model.num_layers, t->mesh->dp, t->mesh->dp == 1 ? "" : "s");
    for (int rank = 0; rank < t->mesh->ep; rank++) {
        printf("  rank %d:", rank);
        int n = 0;
        for (int i = 0; i < t->model->place->n_experts; i++)
            if (t->model->place->rank[i] == rank && n++ < 16) printf(" %d", i);
        printf(n > 16 ? " ... (%d)\n" : "\n", n);
    }
}

int mu_dry_run(mu_trainer *t, mu_mesh *mesh) {
    t->mesh = mesh;
    t->tokenizer = mu_tokenizer_open("bytes");
    t->dev = open_shape(&t->cfg.train);
    t->model = mu_model_new(&t->cfg.model, &t->cfg.moe, mu_tokenizer_vocab_size(t->tokenizer), 1, t->dev,
                            mesh);
    if (t->cfg.train.reproducible) mu_params_exact(t->model->params);
    t->opt = mu_adamw_new(&t->cfg.optim, t->model->params);
    double state = (double)mu_device_bytes(t->dev);
    t->tape = mu_tape_new(t->dev);
    if (t->cfg.train.reproducible) mu_tape_leaf(t->tape, t->cfg.train.seq_len);
    t->routings = mu_alloc((size_t)t->model->n_moe, sizeof *t->routings);
    int64_t share = t->cfg.train.global_batch_size / mesh->world->size;
    t->micro_size = t->cfg.train.micro_batch_size ? t->cfg.train.micro_batch_size : share;
    shape_step(t);
    if (mesh->world->rank) return MU_STATUS_OK;
    char *yaml = mu_options_dump(&t->options, &t->cfg);
    mu_model_size size = mu_model_measure(&t->cfg.model, &t->cfg.moe, t->model->vocab_size,
                                          t->cfg.train.seq_len);
    mu_print_text(yaml);
    printf("\nparameters: %lld total, %lld active a token\nFLOPs: %.4g a training token, %.4g a step\n",
           (long long)size.total, (long long)size.active, size.train_flops,
           size.train_flops * (double)(t->cfg.train.global_batch_size * t->cfg.train.seq_len));
    printf("ranks: %d = dp %d x ep %d, %lld micro-batch%s of %lld sequences\n", mesh->world->size, mesh->dp,
           mesh->ep, (long long)(share / t->micro_size), share == t->micro_size ? "" : "es",
           (long long)t->micro_size);
    print_memory(t, (double)size.total, state, (double)mu_tape_peak(t->tape));
    print_placement(t);
    free(yaml);
    return MU_STATUS_OK;
}
