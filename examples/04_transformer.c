/* 04_transformer.c - a whole transformer with experts, and the loop that trains it. `muster train` makes the same
 * calls and adds checkpoints, evaluation and metrics. Also on several ranks: mpirun -n 2 build/examples/example_04_transformer */
#include "data/data.h"
#include "layers/layers.h"
#include "optim/optim.h"
#include "check.h"

#include <math.h>
#include <stdlib.h>

enum { STEPS = 60, SEQUENCES = 8, S = 64, DOMAINS = 2 }; /* of a global batch; tokens of a sequence */

/* This rank's part of the next global batch, on the tape. */
static mu_context next_batch(mu_loader *loader, mu_tape *tape, const mu_comm *batch, mu_tensor **tokens, mu_tensor **targets) {
    int64_t mine = SEQUENCES / batch->size, *ids = mu_tape_alloc(tape, sizeof *ids * SEQUENCES);
    int32_t *domains = mu_tape_alloc(tape, sizeof *domains * SEQUENCES), in[SEQUENCES * S], out[SEQUENCES * S];
    mu_sample samples[SEQUENCES];
    mu_loader_next(loader, SEQUENCES, samples); /* the same on every rank, which reads its own slice */
    for (int64_t i = 0; i < mine; i++) {
        const mu_sample *s = &samples[batch->rank * mine + i];
        mu_loader_read(loader, s, in + i * S, out + i * S);
        ids[i] = s->global_sample, domains[i] = s->domain;
    }
    *tokens = mu_tensor_ints(tape, MU_DTYPE_I32, mine * S, in);
    *targets = mu_tensor_ints(tape, MU_DTYPE_I32, mine * S, out);
    return (mu_context){ .mode = MU_MODE_TRAIN, .n_sequences = mine, .seq_len = S, .global_samples = ids, .domains = domains };
}

int main(int argc, char **argv) {
    mu_dist_start(&argc, &argv);
    mu_error e = { 0 };
    mu_option_domain texts[DOMAINS] = { { .domain = "common-1", .path = "synthetic", .weight = 1 },
                                        { .domain = "rare-1", .path = "synthetic", .weight = 1 } };
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    mu_device *dev = mu_device_open("cpu");
    mu_tokenizer *tokenizer = NULL;
    mu_corpus corpus = { 0 };
    mu_loader *loader = NULL;
    mu_status status = mu_tokenizer_open(&tokenizer, "bytes", &e);
    if (status == MU_STATUS_OK) status = mu_corpus_open(&corpus, &(mu_option_domains){ DOMAINS, texts }, "text", tokenizer, 1, 1 << 24, &e);
    if (status == MU_STATUS_OK) status = mu_loader_open(&loader, &corpus, S, 0.02, MU_VAL_DOCUMENTS, 1, &e);
    MU_CHECK(status == MU_STATUS_OK, "%s", e.text);

    mu_model_config cfg = mu_model_config_default();
    mu_moe_config moe = mu_moe_config_default();
    mu_optim_config optim = mu_optim_config_default();
    cfg.hidden_size = 32, cfg.num_layers = 2, moe.moe_ffn_hidden_size = 32, optim.lr = 1e-2, optim.warmup_steps = 10;
    mu_model *model = mu_model_new(&cfg, &moe, mu_tokenizer_vocab_size(tokenizer), 1, dev, mesh);
    mu_optimizer *opt = mu_optimizer_new(&mu_rule_adamw, &optim, model->params);
    mu_tape *tape = mu_tape_new(dev);
    mu_loss *loss = mu_loss_new(model, tape, mesh->batch, &(mu_batch_shape){ SEQUENCES, S, 1, DOMAINS, 0 });

    int64_t n;
    double first = 0, last = 0;
    for (int64_t step = 1; step <= STEPS; step++) {
        mu_tensor *tokens, *targets;
        mu_params_zero_grad(model->params);
        mu_loss_begin(loss);
        mu_context cx = next_batch(loader, tape, mesh->batch, &tokens, &targets);
        mu_backward_last(opt, tape, mu_loss_forward(loss, &cx, tokens, targets));
        mu_tape_reset(tape);                        /* frees every activation of the step */
        mu_grads_reduce(opt);                       /* the loss is divided by all tokens, so gradients are summed */
        mu_mat terms = mu_loss_terms(loss, &n);
        mu_grad_clip(opt, mesh->batch, optim.grad_clip, n, terms);
        mu_optimizer_step(opt, mu_learning_rate(&optim, step, STEPS), mu_loss_loads(loss));
        mu_loss_values v = mu_loss_read(loss, mu_grad_norm_on_device(opt), false);
        mu_loss_end(loss, true);
        first = step == 1 ? v.ce : first, last = v.ce;
        if (step % 20 == 0 && mesh->world->rank == 0)
            printf("step %3lld  loss %.3f  norm %.2f  domain rare-1: %lld assignments to expert 0 of layer 0\n",
                   (long long)step, v.ce, v.grad_norm, (long long)loss->stats->by_domain[1]);
    }
    if (mesh->world->rank == 0) check(last < 0.7 * first, "cross-entropy fell from %.3f to %.3f", first, last);

    mu_loss_free(loss), mu_tape_free(tape), mu_optimizer_free(opt), mu_model_free(model);
    mu_loader_close(loader), mu_corpus_close(&corpus), mu_tokenizer_close(tokenizer);
    mu_device_close(dev), mu_mesh_close(mesh), mu_dist_stop();
    return failed_checks > 0;
}
