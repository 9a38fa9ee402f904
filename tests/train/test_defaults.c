/* test_defaults.c - the defaults that a library user gets are those of the program's configuration. */
#include "train/config.h"

#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#define SAME(TYPE, key, fallback, low, high, choices, use, help) \
    if (memcmp(&ours.key, &theirs->key, sizeof ours.key)) fail_msg("%s differs", #key);

static void test_sections(void **state) {
    (void)state;
    int n;
    const mu_option *table = mu_config_table(&n);
    mu_config *config = mu_alloc(1, sizeof *config);
    mu_options o;
    mu_options_init(&o, table, n, config);
    {
        mu_moe_config ours = mu_moe_config_default(), *theirs = &config->moe;
        MU_OPTIONS_MOE(SAME)
    }
    {
        mu_model_config ours = mu_model_config_default(), *theirs = &config->model;
        MU_OPTIONS_MODEL(SAME)
    }
    {
        mu_optim_config ours = mu_optim_config_default(), *theirs = &config->optim;
        MU_OPTIONS_OPTIM(SAME)
    }
    mu_options_free(&o, config);
    free(config);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_sections) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
