/* option_value.c - one option: from a YAML value to the field, and from the field to YAML text.
 *
 * Strict on purpose. Text that a lenient parser would silently read as another number (1e6 as 1, 010 as 8,
 * 10abc as 10) is refused, with the text that was probably meant. */
#define _GNU_SOURCE             /* strtod_l */
#include "base/base.h"
#include "base/internal.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DOMAINS_MAX = 4096, PHASES_MAX = 4096 };

/* ------------------------------------------------------------------ allowed values */

void mu_choices_split(mu_choices *c, const char *choices) {
    MU_CHECK(strlen(choices) < sizeof c->copy, "the choices '%s' are too long", choices);
    strcpy(c->copy, choices);
    c->n = 0;
    for (char *save = NULL, *word = strtok_r(c->copy, "|", &save); word; word = strtok_r(NULL, "|", &save)) {
        MU_CHECK(c->n < MU_CHOICES_MAX, "more than %d choices: '%s'", MU_CHOICES_MAX, choices);
        c->word[c->n++] = word;
    }
}

static int choice_index(const mu_choices *c, const char *word) {
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->word[i], word)) return i;
    return -1;
}

void mu_option_allowed(const mu_option *option, char *text, size_t size) {
    char low[40], high[40];
    mu_float_text(option->min, low);
    mu_float_text(option->max, high);
    switch (option->type) {
    case MU_OPTION_INT:     snprintf(text, size, "an integer from %s to %s", low, high); return;
    case MU_OPTION_FLOAT:   snprintf(text, size, "a number from %s to %s", low, high); return;
    case MU_OPTION_PAIR:    snprintf(text, size, "two numbers from %s to %s, as in [0.5, 0.5]", low,
                                     high); return;
    case MU_OPTION_BOOL:    snprintf(text, size, "true or false"); return;
    case MU_OPTION_STRING:  snprintf(text, size, "a text of at most 511 bytes"); return;
    case MU_OPTION_DOMAINS: snprintf(text, size, "a list of {domain: NAME, path: PATH, weight: NUMBER}"); return;
    case MU_OPTION_DOMAIN_INTS: snprintf(text, size, "{DOMAIN: NUMBER, ...} with integers from %s to %s", low, high); return;
    case MU_OPTION_NAMES:   snprintf(text, size, "a list of domains"); return;
    case MU_OPTION_PHASES:  snprintf(text, size, "a list of {until_step: STEP, mix: {DOMAIN: WEIGHT, ...}}"); return;
    case MU_OPTION_CHOICE:
    case MU_OPTION_CHOICES: break;
    }
    mu_choices c;
    mu_choices_split(&c, option->choices);
    size_t used = (size_t)snprintf(text, size, "%s", option->type == MU_OPTION_CHOICES ? "a list of " : "");
    for (int i = 0; i < c.n && used < size; i++) {
        const char *between = i == 0 ? "" : i == c.n - 1 ? " or " : ", ";
        used += (size_t)snprintf(text + used, size - used, "%s%s", between, c.word[i]);
    }
}

/* The value, its option, and the report for errors. */
typedef struct {
    const mu_option *option;
    const mu_yaml *at;
    mu_report *report;
} place;

/* "FILE:L:C: moe.top_k: WHAT; allowed: RANGE". Always false, so that callers can return it. */
static bool refuse(const place *p, const char *fmt, ...) MU_PRINTF(2, 3);
static bool refuse(const place *p, const char *fmt, ...) {
    char what[300], allowed[200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    mu_option_allowed(p->option, allowed, sizeof allowed);
    bool question = what[0] && what[strlen(what) - 1] == '?';
    mu_report_add(p->report, p->at->line, p->at->column, "%s.%s: %s%s %s", p->option->section,
                  p->option->key, what,
                  question ? " Allowed:" : "; allowed:", allowed);
    return false;
}

/* ------------------------------------------------------------------ numbers */

static size_t digits(const char *s) {
    return strspn(s, "0123456789");
}

/* Length of the number at the beginning of s, as JSON writes numbers; 0 for none. */
static size_t number_length(const char *s, bool integer) {
    size_t n = s[0] == '-', whole = digits(s + n);
    if (whole == 0 || (whole > 1 && s[n] == '0')) return 0;
    n += whole;
    if (integer) return n;
    if (s[n] == '.' && digits(s + n + 1)) n += 1 + digits(s + n + 1);
    if (s[n] == 'e' || s[n] == 'E') {
        size_t sign = s[n + 1] == '+' || s[n + 1] == '-';
        if (digits(s + n + 1 + sign)) n += 1 + sign + digits(s + n + 1 + sign);
    }
    return n;
}

static bool is_number(const char *s, bool integer) {
    size_t n = number_length(s, integer);
    return n > 0 && s[n] == '\0';
}

static double to_double(const char *s) {
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    MU_CHECK(c != (locale_t)0, "no C locale");
    double value = strtod_l(s, NULL, c);
    freelocale(c);
    return value;
}

/* The number that was probably meant, in JSON's syntax: no digit separators, no '+', no leading zeros, digits around the
 * decimal point. False when the result is not a number either. */
static bool tidy_number(const char *s, char out[64]) {
    size_t n = 0;
    if (strlen(s) > 40) return false;
    bool hexadecimal = s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
    if (hexadecimal) {
        char *end;
        errno = 0;
        long long value = strtoll(s, &end, 16);
        snprintf(out, 64, "%lld", value);
        return *end == '\0' && s[2] && !errno;
    }
    if (*s == '+') s++;
    if (*s == '-') out[n++] = *s++;
    while (*s == '0' && digits(s) > 1) s++;
    if (*s == '.') out[n++] = '0';
    for (; *s; s++)
        if (*s != '_' && *s != '\'') out[n++] = *s;
    if (n && out[n - 1] == '.') out[n++] = '0';
    out[n] = '\0';
    return is_number(out, false);
}

/* The text to write instead, or the reason why it is not a number. */
static void number_hint(const char *s, bool integer, char hint[120]) {
    char tidy[64];
    size_t n = number_length(s, integer);
    hint[0] = '\0';
    if (tidy_number(s, tidy)) {
        double value = to_double(tidy);
        if (!integer || is_number(tidy, true))
            snprintf(hint, 120, " (write %s)", tidy);
        else if (value == floor(value) && fabs(value) <= 9007199254740992.0)
            snprintf(hint, 120, " (write %.0f)", value);
        else
            snprintf(hint, 120, " (a whole number is needed)");
    } else if (!strcasecmp(s, "nan") || !strcasecmp(s, ".nan") || strcasestr(s, "inf")) {
        snprintf(hint, 120, " (not a finite number)");
    } else if (n > 0 && s[n] == ',' && digits(s + n + 1) > 0) {
        snprintf(hint, 120, " (no commas in numbers; a decimal comma is written as a point)");
    } else if (n > 0) {
        mu_quoted junk;
        snprintf(hint, 120, " ('%s' after the number)", mu_quote(&junk, s + n));
    }
}

/* The text of a scalar that must not be quoted; NULL: refused. */
static const char *plain_text(const place *p) {
    mu_quoted shown;
    if (p->at->kind != MU_YAML_SCALAR) {
        refuse(p, "a %s is given", p->at->kind == MU_YAML_LIST ? "list" : "map");
    } else if (!p->at->plain) {
        refuse(p, "'%s' is quoted, which makes it a text; write it without quotes", mu_quote(&shown,
                                                                                             p->at->text));
    } else if (p->at->text[0] == '\0') {
        refuse(p, "the value is empty");
    } else {
        return p->at->text;
    }
    return NULL;
}

static bool read_int(const place *p, int64_t *field) {
    char hint[120];
    mu_quoted shown;
    const char *s = plain_text(p);
    if (!s) return false;
    if (!is_number(s, true)) {
        number_hint(s, true, hint);
        return refuse(p, "'%s' is not an integer%s", mu_quote(&shown, s), hint);
    }
    errno = 0;
    long long value = strtoll(s, NULL, 10);
    /* as integers: a double cannot tell 2^53 from 2^53 + 1 */
    if (errno || value < (int64_t)p->option->min || value > (int64_t)p->option->max)
        return refuse(p, "%s is out of range", mu_quote(&shown, s));
    *field = value;
    return true;
}

static bool read_float(const place *p, double *field) {
    char hint[120];
    mu_quoted shown;
    const char *s = plain_text(p);
    if (!s) return false;
    if (!is_number(s, false)) {
        number_hint(s, false, hint);
        return refuse(p, "'%s' is not a number%s", mu_quote(&shown, s), hint);
    }
    double value = to_double(s);
    if (isinf(value)) return refuse(p, "%s is too large for a double", mu_quote(&shown, s));
    bool zero = strcspn(s, "123456789") >= strcspn(s, "eE");    /* no digit but 0 before the exponent */
    if (value == 0 && !zero) return refuse(p, "%s is too small for a double", mu_quote(&shown, s));
    if (value < p->option->min || value > p->option->max)
        return refuse(p, "%s is out of range", mu_quote(&shown, s));
    *field = value;
    return true;
}

static bool read_bool(const place *p, bool *field) {
    static const char *const yes[] = { "true", "yes", "on", "y", "1" }, *const no[] = { "false", "no", "off",
                                                                                       "n", "0" };
    mu_quoted shown;
    const char *s = plain_text(p);
    if (!s) return false;
    if (!strcmp(s, "true") || !strcmp(s, "false")) {
        *field = s[0] == 't';
        return true;
    }
    for (int i = 0; i < 5; i++)
        if (!strcasecmp(s, yes[i]) || !strcasecmp(s, no[i]))
            return refuse(p, "'%s' is not a boolean (write %s)", mu_quote(&shown, s),
                          strcasecmp(s, yes[i]) ? "false" : "true");
    return refuse(p, "'%s' is not a boolean", mu_quote(&shown, s));
}

/* ------------------------------------------------------------------ texts and choices */

/* A character not allowed in paths and names; YAML would not preserve line breaks. */
static const char *odd_character(const char *s) {
    for (size_t i = 0, n = strlen(s); i < n;) {
        uint32_t code = 0;
        int length = mu_utf8_decode(s + i, n - i, &code);
        if (length == 0) return "bytes that are not UTF-8";
        if (code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029 || code == 0xFEFF)
            return "a line break or another control character";
        i += (size_t)length;
    }
    return NULL;
}

static bool read_string(const place *p, char *field) {
    const char *s = p->at->text;
    if (p->at->kind != MU_YAML_SCALAR)
        return refuse(p, "a %s is given", p->at->kind == MU_YAML_LIST ? "list" : "map");
    if (p->at->plain && (!s[0] || !strcmp(s, "~") || !strcasecmp(s, "null")))
        return refuse(p, "the value is empty");
    if (strlen(s) >= sizeof(mu_field_STRING)) return refuse(p, "%zu bytes are too long", strlen(s));
    if (odd_character(s)) return refuse(p, "the text has %s", odd_character(s));
    strcpy(field, s);
    return true;
}

static bool read_choice(const place *p, const mu_choices *c, int *index) {
    mu_quoted shown;
    const char *s = p->at->text;
    if (p->at->kind != MU_YAML_SCALAR)
        return refuse(p, "a %s is given", p->at->kind == MU_YAML_LIST ? "list" : "map");
    if (s[0] == '\0') return refuse(p, "the value is empty");
    *index = choice_index(c, s);
    if (*index >= 0) return true;
    const char *near = mu_suggest(s, c->word, c->n);
    if (near) return refuse(p, "'%s' is unknown; did you mean '%s'?", mu_quote(&shown, s), near);
    return refuse(p, "'%s' is unknown", mu_quote(&shown, s));
}

/* One item of a list of choices, added to `bits`. */
static bool add_choice(place p, const mu_choices *c, const mu_yaml *item, uint32_t *bits) {
    int index;
    p.at = item;
    if (!read_choice(&p, c, &index)) return false;
    if (*bits & (UINT32_C(1) << index)) return refuse(&p, "'%s' appears twice", item->text);
    *bits |= UINT32_C(1) << index;
    return true;
}

/* A single word stands for a list of one. */
static bool read_choices(const place *p, uint32_t *field) {
    mu_choices c;
    uint32_t bits = 0;
    bool good = true;
    mu_choices_split(&c, p->option->choices);
    if (p->at->kind == MU_YAML_MAP) return refuse(p, "a map is given");
    if (p->at->kind == MU_YAML_SCALAR) good = add_choice(*p, &c, p->at, &bits);
    else if (!p->at->child) return refuse(p, "the list is empty");
    else
        for (const mu_yaml *item = p->at->child; item; item = item->next)
            good = add_choice(*p, &c, item, &bits) && good;
    int none = choice_index(&c, "none");
    if (good && none >= 0 && (bits & (UINT32_C(1) << none)) && bits != (UINT32_C(1) << none))
        return refuse(p, "'none' cannot be combined with others");
    if (good) *field = bits;
    return good;
}

static bool read_pair(const place *p, double *field) {
    double value[2];
    int n = 0;
    if (p->at->kind != MU_YAML_LIST)
        return refuse(p, "a %s is given", p->at->kind == MU_YAML_MAP ? "map" : "single value");
    for (const mu_yaml *item = p->at->child; item; item = item->next) n++;
    if (n != 2) return refuse(p, "the list has %d value%s, not 2", n, n == 1 ? "" : "s");
    bool good = read_float(&(place){ p->option, p->at->child, p->report }, &value[0]);
    good = read_float(&(place){ p->option, p->at->child->next, p->report }, &value[1]) && good;
    if (good) memcpy(field, value, sizeof value);
    return good;
}

/* ------------------------------------------------------------------ lists of domains */

mu_status mu_option_domain_check(const char *name, const mu_option_domains *list, mu_status status, mu_error *e) {
    static const char good[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    mu_quoted shown;
    if (!name[0] || strlen(name) >= sizeof list->list->domain || name[strspn(name, good)])
        return mu_error_set(e, status, "'%s' is not a valid domain name: 1 to 63 letters, digits, '_' or '-'",
                            mu_quote(&shown, name));
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->list[i].domain, name))
            return mu_error_set(e, status, "domain '%s' appears twice; put its files into one folder", name);
    return MU_STATUS_OK;
}

static bool read_domain_name(const place *p, char *field) {
    mu_error e;
    const char *s = p->at->text;
    if (p->at->kind != MU_YAML_SCALAR) return refuse(p, "domain must be a name");
    if (mu_option_domain_check(s, &(mu_option_domains){ 0 }, MU_STATUS_CONFIG, &e)) return refuse(p, "%s", e.text);
    strcpy(field, s);
    return true;
}

static bool read_domain_path(const place *p, char *field) {
    const char *s = p->at->kind == MU_YAML_SCALAR ? p->at->text : "";
    if (s[0] == '\0') return refuse(p, "path must be a folder, a file or 'synthetic'");
    return read_string(p, field);
}

/* A weight has its own range, so it is read as an option of its own. */
static bool read_weight(const place *p, double *field) {
    const mu_option weight = { .section = p->option->section, .key = p->option->key, .type = MU_OPTION_FLOAT,
                               .min = 0, .max = 1e9 };
    return read_float(&(place){ &weight, p->at, p->report }, field);
}

static bool read_domain_weight(const place *p, double *field) {
    if (!read_weight(p, field)) return false;
    return *field > 0 || refuse(p, "a weight must be greater than 0; leave the domain out instead");
}

/* Which of n keys this entry of a map has, noted in `seen`; -1, refused: none of them, or one that it had before. */
static int read_key(const place *entry, const char *const *keys, int n, bool *seen) {
    const mu_yaml *key = entry->at->key;
    const char *name = key->text ? key->text : "", *near = mu_suggest(name, keys, n);
    mu_quoted shown;
    place p = { entry->option, key, entry->report };
    int k = 0;
    while (k < n && strcmp(keys[k], name)) k++;
    if (k == n)
        refuse(&p, "unknown key '%s'%s%s%s", mu_quote(&shown, name), near ? "; did you mean '" : "", near ? near : "",
               near ? "'?" : "");
    else if (seen[k]) refuse(&p, "%s appears twice", keys[k]);
    else return seen[k] = true, k;
    return -1;
}

static bool read_domain(const place *whole, mu_option_domain *out) {
    static const char *const keys[3] = { "domain", "path", "weight" };
    bool seen[3] = { false }, good = true;
    if (whole->at->kind != MU_YAML_MAP) return refuse(whole, "each item must be a map with domain and path");
    out->weight = 1;
    for (const mu_yaml *entry = whole->at->child; entry; entry = entry->next) {
        place p = { whole->option, entry, whole->report };
        int k = read_key(&p, keys, 3, seen);
        good = (k == 0 ? read_domain_name(&p, out->domain) : k == 1 ? read_domain_path(&p, out->path)
                : k == 2 && read_domain_weight(&p, &out->weight)) && good;
    }
    if (good && (!seen[0] || !seen[1])) return refuse(whole, "%s is missing", seen[0] ? "path" : "domain");
    return good;
}

static bool read_domains(const place *p, mu_option_domains *field) {
    if (p->at->kind != MU_YAML_LIST || !p->at->child)
        return refuse(p, p->at->kind == MU_YAML_LIST ? "the list is empty" : "a list is needed, each item a map");
    int n = 0, room = 0;
    for (const mu_yaml *item = p->at->child; item; item = item->next) room++;
    if (room > DOMAINS_MAX) return refuse(p, "%d domains are more than %d", room, DOMAINS_MAX);
    mu_option_domain *list = mu_alloc((size_t)room, sizeof *list);
    bool good = true;
    for (const mu_yaml *item = p->at->child; item && !mu_report_full(p->report); item = item->next, n++) {
        place at = { p->option, item, p->report };
        good = read_domain(&at, &list[n]) && good;
        mu_error e;
        if (list[n].domain[0] && mu_option_domain_check(list[n].domain, &(mu_option_domains){ n, list }, MU_STATUS_CONFIG, &e))
            good = refuse(&at, "%s", e.text);
    }
    if (!good) {
        free(list);
        return false;
    }
    free(field->list);
    *field = (mu_option_domains){ n, list };
    return true;
}

/* One entry, with the entries before it in `field`. */
static bool read_domain_int(const place *whole, const mu_yaml *entry, mu_option_domain_ints *field) {
    const place key = { whole->option, entry->key, whole->report }, p = { whole->option, entry, whole->report };
    mu_option_domain_int *out = &field->list[field->n];
    if (!read_domain_name(&key, out->domain) || !read_int(&p, &out->value)) return false;
    for (int i = 0; i < field->n; i++)
        if (!strcmp(field->list[i].domain, out->domain)) return refuse(&key, "domain '%s' appears twice", out->domain);
    field->n++;
    return true;
}

static bool read_domain_ints(const place *p, mu_option_domain_ints *field) {
    int room = 0;
    bool good = true;
    if (p->at->kind != MU_YAML_MAP) return refuse(p, "a %s is given", p->at->kind == MU_YAML_LIST ? "list" : "single value");
    for (const mu_yaml *entry = p->at->child; entry; entry = entry->next) room++;
    if (room > DOMAINS_MAX) return refuse(p, "%d domains are more than %d", room, DOMAINS_MAX);
    mu_option_domain_ints read = { 0, room ? mu_alloc((size_t)room, sizeof *read.list) : NULL };
    for (const mu_yaml *entry = p->at->child; entry && !mu_report_full(p->report); entry = entry->next)
        good = read_domain_int(p, entry, &read) && good;
    if (!good) {
        free(read.list);
        return false;
    }
    free(field->list);
    *field = read;
    return true;
}

/* One name, added to the list. */
static bool add_name(place p, const mu_yaml *item, mu_option_names *field) {
    char *out = field->list[field->n];
    p.at = item;
    if (!read_domain_name(&p, out)) return false;
    for (int i = 0; i < field->n; i++)
        if (!strcmp(field->list[i], out)) return refuse(&p, "'%s' appears twice", out);
    field->n++;
    return true;
}

static bool read_names(const place *p, mu_option_names *field) {
    const bool word = p->at->kind == MU_YAML_SCALAR;
    int room = word;
    bool good = true;
    if (p->at->kind == MU_YAML_MAP) return refuse(p, "a map is given");
    for (const mu_yaml *item = p->at->child; item; item = item->next) room++;
    if (room > DOMAINS_MAX) return refuse(p, "%d domains are more than %d", room, DOMAINS_MAX);
    mu_option_names read = { 0, room ? mu_alloc((size_t)room, sizeof *read.list) : NULL };
    if (word && strcmp(p->at->text, "none")) good = add_name(*p, p->at, &read);
    for (const mu_yaml *item = p->at->child; item && !mu_report_full(p->report); item = item->next)
        good = add_name(*p, item, &read) && good;
    if (!good) {
        free(read.list);
        return false;
    }
    free(field->list);
    *field = read;
    return true;
}

/* ------------------------------------------------------------------ lists of phases */

void mu_option_phases_free(mu_option_phases *phases) {
    for (int i = 0; i < phases->n; i++) free(phases->list[i].mix);
    free(phases->list);
    *phases = (mu_option_phases){ 0 };
}

static bool read_until(const place *p, int64_t *field) {
    const mu_option until = { .section = p->option->section, .key = p->option->key, .type = MU_OPTION_INT, .min = 1, .max = 1e9 };
    return read_int(&(place){ &until, p->at, p->report }, field);
}

/* One domain of a mix. */
static bool read_share(const place *p, const mu_option_phase *before, mu_option_weight *out) {
    place name = { p->option, p->at->key, p->report };
    if (!read_domain_name(&name, out->domain)) return false;
    out->line = name.at->line, out->column = name.at->column;
    for (int i = 0; i < before->n; i++)
        if (!strcmp(before->mix[i].domain, out->domain)) return refuse(&name, "domain '%s' appears twice", out->domain);
    return read_weight(p, &out->weight);
}

static bool read_mix(const place *p, mu_option_phase *phase) {
    if (p->at->kind != MU_YAML_MAP) return refuse(p, "mix must be a map, as in {latin: 1, chemistry: 0.5}");
    int room = 0;
    bool good = true;
    double sum = 0;
    for (const mu_yaml *entry = p->at->child; entry; entry = entry->next) room++;
    if (room > DOMAINS_MAX) return refuse(p, "%d domains are more than %d", room, DOMAINS_MAX);
    phase->mix = mu_alloc((size_t)room, sizeof *phase->mix);
    for (const mu_yaml *entry = p->at->child; entry; entry = entry->next) {
        good = read_share(&(place){ p->option, entry, p->report }, phase, &phase->mix[phase->n]) && good;
        sum += phase->mix[phase->n++].weight;
    }
    return good && !(sum > 0) ? refuse(p, room ? "all weights are 0: no training data" : "the mix is empty") : good;
}

static bool read_phase(const place *whole, bool last, mu_option_phase *out) {
    static const char *const keys[2] = { "until_step", "mix" };
    bool seen[2] = { false }, good = true;
    if (whole->at->kind != MU_YAML_MAP) return refuse(whole, "each item must be a map with until_step and mix");
    for (const mu_yaml *entry = whole->at->child; entry; entry = entry->next) {
        place p = { whole->option, entry, whole->report };
        int k = read_key(&p, keys, 2, seen);
        good = (k == 0 ? read_until(&p, &out->until_step) : k == 1 && read_mix(&p, out)) && good;
    }
    if (good && !seen[1]) return refuse(whole, "mix is missing");
    if (good && !seen[0] && !last) return refuse(whole, "until_step is missing; only the last phase may leave it out");
    return good;
}

static bool read_phases(const place *p, mu_option_phases *field) {
    if (p->at->kind != MU_YAML_LIST) return refuse(p, "a list is needed, each item a map");
    int room = 0;
    for (const mu_yaml *item = p->at->child; item; item = item->next) room++;
    if (room > PHASES_MAX) return refuse(p, "%d phases are more than %d", room, PHASES_MAX);
    mu_option_phases read = { 0, mu_alloc((size_t)room, sizeof *read.list) };
    bool good = true;
    for (const mu_yaml *item = p->at->child; item && !mu_report_full(p->report); item = item->next) {
        place at = { p->option, item, p->report };
        mu_option_phase *phase = &read.list[read.n++], *before = read.n > 1 ? phase - 1 : NULL;
        good = read_phase(&at, !item->next, phase) && good;
        if (before && phase->until_step && phase->until_step <= before->until_step)
            good = refuse(&at, "until_step %" PRId64 " must be greater than that of the phase before, %" PRId64, phase->until_step,
                          before->until_step);
    }
    if (!good) {
        mu_option_phases_free(&read);
        return false;
    }
    mu_option_phases_free(field);
    *field = read;
    return true;
}

bool mu_option_set(const mu_option *option, void *config, const mu_yaml *value, mu_report *r) {
    void *field = (char *)config + option->offset;
    const place p = { option, value, r };
    mu_choices c;
    switch (option->type) {
    case MU_OPTION_INT:     return read_int(&p, field);
    case MU_OPTION_FLOAT:   return read_float(&p, field);
    case MU_OPTION_BOOL:    return read_bool(&p, field);
    case MU_OPTION_STRING:  return read_string(&p, field);
    case MU_OPTION_CHOICE:
        mu_choices_split(&c, option->choices);
        return read_choice(&p, &c, field);
    case MU_OPTION_CHOICES: return read_choices(&p, field);
    case MU_OPTION_PAIR:    return read_pair(&p, field);
    case MU_OPTION_DOMAINS: return read_domains(&p, field);
    case MU_OPTION_DOMAIN_INTS: return read_domain_ints(&p, field);
    case MU_OPTION_NAMES:   return read_names(&p, field);
    case MU_OPTION_PHASES:  return read_phases(&p, field);
    }
    return false;
}

/* ------------------------------------------------------------------ values set by a program */

void mu_complain(mu_complaints *c, const char *section, const char *key, const char *compared, const char *fmt, ...) {
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    c->status = MU_STATUS_CONFIG;
    if (c->add) c->add(c, section, key, compared, text);
    else mu_error_add(c->e, MU_STATUS_CONFIG, "%s.%s: %s", section, key, text);
}

static bool within(const mu_option *o, double value) { return value >= o->min && value <= o->max; }

static bool ints_in_range(const mu_option *o, const mu_option_domain_ints *ints) {
    for (int i = 0; i < ints->n; i++)
        if (ints->list[i].value < (int64_t)o->min || ints->list[i].value > (int64_t)o->max) return false;
    return true;
}

static bool in_range(const mu_option *o, const void *field) {
    const double *d = field;
    mu_choices choices;
    if (o->choices) mu_choices_split(&choices, o->choices);
    switch (o->type) {
    case MU_OPTION_INT:     return *(const int64_t *)field >= (int64_t)o->min && *(const int64_t *)field <= (int64_t)o->max;
    case MU_OPTION_FLOAT:   return within(o, d[0]);
    case MU_OPTION_PAIR:    return within(o, d[0]) && within(o, d[1]);
    case MU_OPTION_CHOICE:  return *(const int *)field >= 0 && *(const int *)field < choices.n;
    case MU_OPTION_CHOICES: return *(const uint32_t *)field >> choices.n == 0;
    case MU_OPTION_DOMAIN_INTS: return ints_in_range(o, field);
    case MU_OPTION_BOOL:
    case MU_OPTION_STRING:
    case MU_OPTION_DOMAINS:
    case MU_OPTION_NAMES:
    case MU_OPTION_PHASES:  break;
    }
    return true;
}

/* The value as text; unlike a configuration, a program may set NaN. */
static void describe(const mu_option *o, const void *field, char text[96]) {
    const double *d = field;
    if (o->type == MU_OPTION_INT) snprintf(text, 96, "%" PRId64, *(const int64_t *)field);
    else if (o->type == MU_OPTION_FLOAT) snprintf(text, 96, "%g", d[0]);
    else if (o->type == MU_OPTION_PAIR) snprintf(text, 96, "[%g, %g]", d[0], d[1]);
    else if (o->type == MU_OPTION_DOMAIN_INTS) snprintf(text, 96, "one of the integers");
    else snprintf(text, 96, "choice %" PRId32, *(const int32_t *)field);
}

bool mu_options_check(const char *section, const mu_option *table, int n, const void *config, mu_complaints *c) {
    bool good = true;
    for (int i = 0; i < n; i++) {
        const void *field = (const char *)config + table[i].offset;
        if (in_range(&table[i], field)) continue;
        char allowed[200], name[96], value[96];
        describe(&table[i], field, value);
        mu_option_allowed(&table[i], allowed, sizeof allowed);
        snprintf(name, sizeof name, "%s.%s", section, table[i].key);
        mu_complain(c, section, table[i].key, name, "%s is out of range; allowed: %s", value, allowed);
        good = false;
    }
    return good;
}

/* ------------------------------------------------------------------ back to text */

/* Unquoted where every YAML reader takes it for a string. */
static void write_string(FILE *f, const char *s) {
    static const char safe[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_/.-";
    static const char *const words[] = { "true", "false", "null", "yes", "no", "on", "off", "y", "n" };
    bool plain = s[0] && !s[strspn(s, safe)] && !strchr("0123456789.-", s[0]);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcasecmp(s, words[i])) plain = false;
    if (plain) {
        fputs(s, f);
        return;
    }
    mu_json j;                  /* a JSON string is a YAML string */
    mu_json_init(&j);
    mu_json_string(&j, NULL, s);
    fputs(j.text, f);
    mu_json_free(&j);
}

static void write_domains(FILE *f, const mu_option_domains *domains) {
    char weight[40];
    fputc('[', f);
    for (int i = 0; i < domains->n; i++) {
        const mu_option_domain *d = &domains->list[i];
        mu_float_text(d->weight, weight);
        fprintf(f, "%s{domain: ", i ? ", " : "");
        write_string(f, d->domain);
        fputs(", path: ", f);
        write_string(f, d->path);
        fprintf(f, ", weight: %s}", weight);
    }
    fputc(']', f);
}

static void write_domain_ints(FILE *f, const mu_option_domain_ints *ints) {
    fputc('{', f);
    for (int i = 0; i < ints->n; i++) {
        if (i) fputs(", ", f);
        write_string(f, ints->list[i].domain);
        fprintf(f, ": %" PRId64, ints->list[i].value);
    }
    fputc('}', f);
}

static void write_names(FILE *f, const mu_option_names *names) {
    fputc('[', f);
    for (int i = 0; i < names->n; i++) {
        if (i) fputs(", ", f);
        write_string(f, names->list[i]);
    }
    fputc(']', f);
}

static void write_phases(FILE *f, const mu_option_phases *phases) {
    char weight[40];
    fputc('[', f);
    for (int i = 0; i < phases->n; i++) {
        const mu_option_phase *phase = &phases->list[i];
        fputs(i ? ", {" : "{", f);
        if (phase->until_step) fprintf(f, "until_step: %" PRId64 ", ", phase->until_step);
        fputs("mix: {", f);
        for (int k = 0; k < phase->n; k++) {
            mu_float_text(phase->mix[k].weight, weight);
            fputs(k ? ", " : "", f);
            write_string(f, phase->mix[k].domain);
            fprintf(f, ": %s", weight);
        }
        fputs("}}", f);
    }
    fputc(']', f);
}

static void write_choices(FILE *f, const char *choices, uint32_t bits) {
    mu_choices c;
    const char *between = "";
    mu_choices_split(&c, choices);
    fputc('[', f);
    for (int i = 0; i < c.n; i++)
        if (bits & (UINT32_C(1) << i)) {
            fprintf(f, "%s%s", between, c.word[i]);
            between = ", ";
        }
    fputc(']', f);
}

static void write_value(FILE *f, const mu_option *option, const void *field) {
    mu_choices c;
    char number[2][40];
    const double *d = field;
    switch (option->type) {
    case MU_OPTION_INT:
        fprintf(f, "%" PRId64, *(const int64_t *)field);
        return;
    case MU_OPTION_PAIR:
        mu_float_text(d[0], number[0]);
        mu_float_text(d[1], number[1]);
        fprintf(f, "[%s, %s]", number[0], number[1]);
        return;
    case MU_OPTION_FLOAT:
        mu_float_text(*d, number[0]);
        fputs(number[0], f);
        return;
    case MU_OPTION_CHOICE:
        mu_choices_split(&c, option->choices);
        fputs(c.word[*(const int *)field], f);
        return;
    case MU_OPTION_BOOL:    fputs(*(const bool *)field ? "true" : "false", f); return;
    case MU_OPTION_STRING:  write_string(f, field); return;
    case MU_OPTION_CHOICES: write_choices(f, option->choices, *(const uint32_t *)field); return;
    case MU_OPTION_DOMAINS: write_domains(f, field); return;
    case MU_OPTION_DOMAIN_INTS: write_domain_ints(f, field); return;
    case MU_OPTION_NAMES:   write_names(f, field); return;
    case MU_OPTION_PHASES:  write_phases(f, field); return;
    }
}

char *mu_option_text(const mu_option *option, const void *config) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    MU_CHECK(f, "out of memory");
    write_value(f, option, (const char *)config + option->offset);
    MU_CHECK(!fclose(f), "out of memory");
    return text;
}
