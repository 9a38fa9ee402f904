/* test_protection.c - which experts are protected, by their states and by the options. */
#include "moe/moe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

enum { LAYERS = 2, E = 4, N = LAYERS * E };
enum { COMMON, LATIN, CHEMISTRY, DOMAINS };
static mu_option_domain texts[DOMAINS] = { { .domain = "common" }, { .domain = "latin" }, { .domain = "chemistry" } };
static const mu_option_domains domains = { DOMAINS, texts };
static mu_expert_health h;
static mu_protection p;
static mu_protect_config cfg;
static mu_protection_change changes[N];
static int n_changes;

static int start(void **state) {
    (void)state;
    mu_expert_health_init(&h, LAYERS, E);
    mu_protection_init(&p, LAYERS, E);
    cfg = mu_protect_config_default();
    return 0;
}

static int end(void **state) {
    (void)state;
    mu_expert_health_free(&h);
    mu_protection_free(&p);
    return 0;
}

static void set(int layer, int expert, mu_expert_state state, int domain) { h.state[layer * E + expert] = state, h.carried[layer * E + expert] = domain + 1; }

/* Protected for these domains, in order of layers and experts, -1: not; and exempt, if they are to be. */
static void assert_protected(const int32_t wanted[N]) {
    n_changes = mu_protection_update(&p, &cfg, &h, &domains, changes);
    for (int i = 0; i < N; i++) {
        if (p.domain_of[i] != wanted[i]) fail_msg("expert %d of layer %d: domain %d, not %d", i % E, i / E, p.domain_of[i], wanted[i]);
        assert_int_equal(p.exempt[i], wanted[i] >= 0 && cfg.exempt);
    }
}

static void one_of_each(void) {
    set(0, 0, MU_EXPERT_CARRIER, LATIN);
    set(0, 1, MU_EXPERT_STARVED, -1);
    set(0, 2, MU_EXPERT_DORMANT, CHEMISTRY);
    set(1, 0, MU_EXPERT_OVERWRITTEN, CHEMISTRY);
    set(1, 1, MU_EXPERT_DEAD, LATIN);       /* once a carrier */
    set(1, 2, MU_EXPERT_HEALTHY, LATIN);
    set(1, 3, MU_EXPERT_DUPLICATE, -1);
}

static void nothing_is_protected_by_default(void **state) {
    (void)state;
    one_of_each();
    assert_protected((int32_t[N]){ -1, -1, -1, -1, -1, -1, -1, -1 });
}

static void carriers_of_the_listed_domains_are(void **state) {
    (void)state;
    char list[2][64] = { "chemistry", "common" };
    one_of_each();
    cfg.domains = (mu_option_names){ 2, list };
    assert_protected((int32_t[N]){ -1, -1, CHEMISTRY, -1, CHEMISTRY, -1, -1, -1 });
    assert_int_equal(n_changes, 2);
    assert_true(changes[0].layer == 0 && changes[0].expert == 2 && changes[0].domain == CHEMISTRY && changes[0].on);
    assert_true(changes[1].layer == 1 && changes[1].expert == 0 && changes[1].domain == CHEMISTRY && changes[1].on);
    assert_true(mu_protects_domain(&cfg, "chemistry") && !mu_protects_domain(&cfg, "latin") && !mu_protects_auto(&cfg));
    set(1, 0, MU_EXPERT_HEALTHY, CHEMISTRY);    /* no longer */
    assert_protected((int32_t[N]){ -1, -1, CHEMISTRY, -1, -1, -1, -1, -1 });
    assert_int_equal(n_changes, 1);
    assert_true(changes[0].layer == 1 && changes[0].expert == 0 && changes[0].domain == CHEMISTRY && !changes[0].on);
    cfg.exempt = false;                         /* protected, but balanced like others */
    assert_protected((int32_t[N]){ -1, -1, CHEMISTRY, -1, -1, -1, -1, -1 });
}

static void auto_is_every_domain_with_carriers(void **state) {
    (void)state;
    char list[1][64] = { "auto" };
    one_of_each();
    cfg.domains = (mu_option_names){ 1, list };
    assert_true(mu_protects_auto(&cfg) && mu_protects_domain(&cfg, "latin"));
    assert_protected((int32_t[N]){ LATIN, -1, CHEMISTRY, -1, CHEMISTRY, -1, -1, -1 });
    set(0, 0, MU_EXPERT_CARRIER, -1);           /* of a domain that this run does not have */
    assert_protected((int32_t[N]){ -1, -1, CHEMISTRY, -1, CHEMISTRY, -1, -1, -1 });
}

static void given_carriers_need_no_state(void **state) {
    (void)state;
    mu_option_domain_int list[] = { { "latin", 3 }, { "chemistry", 1 } };
    cfg.carriers = (mu_option_domain_ints){ 2, list };
    assert_protected((int32_t[N]){ -1, CHEMISTRY, -1, LATIN, -1, CHEMISTRY, -1, LATIN });
    set(0, 0, MU_EXPERT_CARRIER, LATIN);        /* not of a listed domain */
    assert_protected((int32_t[N]){ -1, CHEMISTRY, -1, LATIN, -1, CHEMISTRY, -1, LATIN });
}

/* Units of protected dormant experts are slowed or frozen as long as they are dormant; nothing else is. */
static void dormant_experts_learn_slowly(void **state) {
    (void)state;
    char list[1][64] = { "chemistry" };
    static const int local[E] = { 0, 1, 2, 3 };
    mu_device *dev = mu_device_open("shape");
    mu_params *ps = mu_params_new(dev);
    mu_group *g = mu_params_group(ps, "expert", NULL);
    mu_params_add(ps, &(mu_param_desc){ .group = g, .name = "/norm", .n_dims = 1, .shape = { 3 }, .layer = -1 });
    for (int layer = 0; layer < LAYERS; layer++)
        mu_params_add(ps, &(mu_param_desc){ .group = g, .name = layer ? "/1/%d" : "/0/%d", .n_dims = 1, .shape = { 3 }, .layer = layer, .n_experts = E,
                                            .local = local, .n_local = E, .first_load = layer * E });
    mu_params_alloc(ps);
    cfg.domains = (mu_option_names){ 1, list };
    one_of_each();                              /* expert 2 of layer 0 is dormant; expert 0 of layer 1 was overwritten */
    set(1, 3, MU_EXPERT_DORMANT, LATIN);        /* not to be protected */
    h.frozen[3] = MU_FROZEN_NOW, h.frozen[1] = MU_FROZEN_PAST;
    const double factors[] = { 1, 0.1, 0, 0.5, 0 };
    for (int i = 0; i < 6; i++) {
        bool back = i == 5;
        if (back) set(0, 2, MU_EXPERT_CARRIER, CHEMISTRY);
        mu_protection_update(&p, &cfg, &h, &domains, NULL);
        double factor = back ? 0.5 : factors[i];
        mu_protection_slow(&p, &h, ps, factor);
        for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
            bool slow = u->load == 2 && !back;
            assert_int_equal(u->frozen, (slow && factor == 0) || (u->load == 3 && i > 0));
            if (u->load >= 0) assert_int_equal(mu_protection_freezes(&p, &h, u->load, factor), (slow && factor == 0) || u->load == 3);
            if (!u->frozen) assert_true(u->lr_factor == (slow ? factor : 1));
        }
    }
    mu_params_free(ps);
    mu_device_close(dev);
}

static void options_are_checked(void **state) {
    (void)state;
    mu_error e = { 0 };
    char list[2][64] = { "auto", "latin" };
    mu_option_domain_int carriers[] = { { "latin", 4 } };
    mu_complaints c = { .e = &e };
    mu_protect_config_check(&cfg, E, &c);
    assert_int_equal(c.status, MU_STATUS_OK);
    cfg.domains = (mu_option_names){ 2, list }, cfg.carriers = (mu_option_domain_ints){ 1, carriers };
    mu_protect_config_check(&cfg, E, &c);
    assert_int_equal(c.status, MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "protect.domains: 'auto' cannot be combined with others"));
    assert_non_null(strstr(e.text, "protect.carriers: domain 'latin' has expert 4, but moe.num_experts is 4: experts are 0 to 3"));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, end)
int main(void) {
    const struct CMUnitTest tests[] = { TEST(nothing_is_protected_by_default), TEST(carriers_of_the_listed_domains_are),
                                        TEST(auto_is_every_domain_with_carriers), TEST(given_carriers_need_no_state), TEST(dormant_experts_learn_slowly), TEST(options_are_checked) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
