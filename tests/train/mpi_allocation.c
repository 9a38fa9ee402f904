/* mpi_allocation.c - after the largest step, steps allocate nothing: no call of malloc and related functions,
 * no page committed. This program wraps these functions to count calls.
 * With several ranks MPI itself calls malloc; then only pages count. */
#include "mpi_check.h"
#include "train/training.h"

#include <setjmp.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int heap_calls, page_calls;

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

#ifndef __SANITIZE_ADDRESS__
void *malloc(size_t bytes) {
    heap_calls++;
    return __libc_malloc(bytes);
}
void *calloc(size_t n, size_t bytes) {
    heap_calls++;
    return __libc_calloc(n, bytes);
}
void *realloc(void *old, size_t bytes) {
    heap_calls++;
    return __libc_realloc(old, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
    heap_calls++;
    return __libc_memalign(alignment, bytes);
}
#endif
int mprotect(void *at, size_t bytes, int protection) {
    page_calls++;
    return (int)syscall(SYS_mprotect, at, bytes, protection);
}

static const char *const common =
    "run: {dir: unused}\n"
    "model: {hidden_size: 48, num_layers: 3, num_heads: 4, num_kv_heads: 2, head_dim: 12, max_seq_len: 32}\n"
    "data: {train: [{domain: common-1, path: synthetic}, {domain: rare-1, path: synthetic}]}\n"
    "log: {progress: quiet}\n";

/* `ep`: if there are that many ranks. */
static void no_allocation(int ep, const char *rest) {
    mu_error e = { 0 };
    mu_training t = { 0 };
    char *text = mu_format("%s%s", common, rest);
    mu_mesh *world = mu_mesh_open(NULL, 1), *mesh = mu_mesh_open(NULL, ep <= world->world->size ? ep : 1);
    if (mu_config_load_text(&t.cfg, "test", text, 0, NULL, &e) != MU_STATUS_OK)
        check(false, "%s", e.text);
    if (mu_training_open(&t, mesh, MU_VAL_DOCUMENTS_BY_HASH, &e) != MU_STATUS_OK) check(false, "%s", e.text);
    for (int i = 0; i < 12; i++) {
        t.state.model->moe_cfg.force_skew = i == 1; /* among the first steps is the most uneven one */
        int heap = heap_calls, pages = page_calls;
        mu_step_result r = mu_training_step(&t, NULL);
        check(r.finite, "step %d", i);
        heap = mesh->world->size == 1 ? heap_calls - heap : 0, pages = page_calls - pages;
        if (i == 0) check(pages > 0, "the first step commits its memory");
        if (i >= 4)
            check(!heap && !pages, "step %d: %d calls of malloc, %d of mprotect; %s", i, heap, pages, rest);
    }
    mu_training_close(&t);
    mu_mesh_close(mesh);
    mu_mesh_close(world);
    free(text);
}

static void test_steps(void **state) {
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* the sanitizer wraps malloc itself */
#endif
    no_allocation(2, "moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 40}\n"
                     "train: {steps: 20, global_batch_size: 4, seq_len: 32, threads: 2}\n");
    no_allocation(
        1,
        "moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 40, num_shared_experts: 1, capacity_factor: 1.25,\n"
        "      score_func: sigmoid, balance: [seq_aux_loss, expert_bias]}\n"
        "train: {steps: 20, global_batch_size: 8, micro_batch_size: 1, seq_len: 32, threads: 2}\n");
    no_allocation(1, "moe: {num_experts: 0}\n"
                     "train: {steps: 20, global_batch_size: 4, seq_len: 32, threads: 1}\n");
    no_allocation(2, "moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 40}\n"
                     "train: {steps: 20, global_batch_size: 4, seq_len: 32, threads: 2, dtype: bf16}\n");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_steps) };
    mpi_tests_begin(&argc, &argv);
    return mpi_tests_end(cmocka_run_group_tests(tests, NULL, NULL));
}
