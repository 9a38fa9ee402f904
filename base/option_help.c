/* option_help.c - the table of options as a YAML file with comments, as help for a terminal, as a page of
 * the documentation. */
#include "base/base.h"
#include "base/internal.h"

#include <stdlib.h>
#include <string.h>

static bool begins_section(const mu_options *o, int i) {
    return i == 0 || strcmp(o->table[i].section, o->table[i - 1].section) != 0;
}

/* An item of a list on a line of its own; `one`: a list of it alone. */
static void dump_item(FILE *f, mu_option_type type, const void *one) {
    char *text = mu_option_text(&(mu_option){ .type = type }, one);
    fprintf(f, "    - %.*s\n", (int)strlen(text) - 2, text + 1);         /* without the brackets */
    free(text);
}

static void dump_lists(FILE *f, const mu_option *option, const mu_option_domains *domains, const mu_option_phases *phases) {
    fprintf(f, "  %s: %*s # %s\n", option->key, 36 - (int)strlen(option->key), "", option->help);
    for (int i = 0; domains && i < domains->n; i++) dump_item(f, option->type, &(mu_option_domains){ 1, &domains->list[i] });
    for (int i = 0; phases && i < phases->n; i++) dump_item(f, option->type, &(mu_option_phases){ 1, &phases->list[i] });
}

/* One item per line. False: the option is not a list, or an empty one that can be read back. An empty list of domains is not valid
 * input: it becomes a comment. */
static bool dump_list(FILE *f, const mu_option *option, const void *field) {
    const mu_option_domains *domains = option->type == MU_OPTION_DOMAINS ? field : NULL;
    const mu_option_phases *phases = option->type == MU_OPTION_PHASES ? field : NULL;
    if (domains && domains->n == 0) fprintf(f, "  # %s: not given\n", option->key);
    else if (domains || (phases && phases->n)) dump_lists(f, option, domains, phases);
    else return false;
    return true;
}

char *mu_options_dump(const mu_options *o, const void *config) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    MU_CHECK(f, "out of memory");
    for (int i = 0; i < o->n; i++) {
        const mu_option *option = &o->table[i];
        if (option->use == MU_USE_RETIRED) continue;
        if (begins_section(o, i)) fprintf(f, "%s%s:\n", i ? "\n" : "", option->section);
        if (dump_list(f, option, (const char *)config + option->offset)) continue;
        char *value = mu_option_text(option, config);
        int width = 36 - (int)strlen(option->key);
        fprintf(f, "  %s: %-*s # %s\n", option->key, width > 0 ? width : 0, value, option->help);
        free(value);
    }
    MU_CHECK(!fclose(f), "out of memory");
    return text;
}

static const char *type_name(mu_option_type type) {
    switch (type) {
    case MU_OPTION_INT:     return "integer";
    case MU_OPTION_FLOAT:   return "number";
    case MU_OPTION_BOOL:    return "true or false";
    case MU_OPTION_STRING:  return "text";
    case MU_OPTION_CHOICE:  return "choice";
    case MU_OPTION_CHOICES: return "list of choices";
    case MU_OPTION_PAIR:    return "two numbers";
    case MU_OPTION_DOMAINS: return "list of domains";
    case MU_OPTION_DOMAIN_INTS: return "map of domains to integers";
    case MU_OPTION_NAMES:   return "list of domains";
    case MU_OPTION_PHASES:  return "list of phases";
    }
    return "";
}

static bool must_be_given(const mu_option *option) {
    return (option->type == MU_OPTION_STRING || option->type == MU_OPTION_DOMAINS) && option->min == 1;
}

static const char *default_text(const mu_option *option) {
    if (must_be_given(option)) return "must be given";
    return option->fallback && option->fallback[0] ? option->fallback : "empty";
}

/* "0 to 65536", or the choices, each between `quote`s. */
static void write_range(FILE *f, const mu_option *option, const char *quote) {
    char low[40], high[40];
    mu_float_text(option->min, low);
    mu_float_text(option->max, high);
    if (option->choices) {
        mu_choices c;
        mu_choices_split(&c, option->choices);
        for (int i = 0; i < c.n; i++) fprintf(f, "%s%s%s%s", i ? ", " : "", quote, c.word[i], quote);
    } else if (option->type == MU_OPTION_INT || option->type == MU_OPTION_FLOAT || option->type == MU_OPTION_PAIR) {
        fprintf(f, "%s to %s", low, high);
    }
}

static void help_plain(FILE *f, const mu_options *o) {
    for (int i = 0; i < o->n; i++) {
        const mu_option *option = &o->table[i];
        if (option->use == MU_USE_RETIRED) continue;
        if (begins_section(o, i)) fprintf(f, "%s%s:\n", i ? "\n" : "", option->section);
        fprintf(f, "  %-20s  %s, ", option->key, type_name(option->type));
        if (option->choices || option->max > option->min) write_range(f, option, "");
        fprintf(f, "%s%s%s%s\n      %s\n", option->choices || option->max > option->min ? "; " : "",
                must_be_given(option) ? "" : "default ", default_text(option),
                option->use & MU_ON_RESUME ? "" : option->use & MU_USE_SHAPE ? "; fixed by a checkpoint, also for --fork"
                                                                             : "; fixed by a checkpoint", option->help);
    }
}

/* Escapes '|', which would end the cell. */
static void write_cell(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '|') fputc('\\', f);
        fputc(*text, f);
    }
}

static void help_markdown(FILE *f, const mu_options *o) {
    fputs("# Configuration\n\n"
          "A configuration is a YAML file of sections; an option left out has its default. On the command line\n"
          "`section.key=value` overrides the file, the value written as in YAML: `moe.top_k=2`,\n"
          "`moe.balance='[aux_loss, expert_bias]'`, `data.train='[{domain: en, path: texts/en}]'`.\n"
          "Integers are written out (`1000000`, not `1e6`); numbers are written as in JSON.\n"
          "An option that is *fixed* or *shape* keeps the value of the checkpoint that a run resumes from; all others may change.\n"
          "A fork (`train --fork`) may change those that are *fixed*, too.\n"
          "Made from the option tables by `muster --help-config`; edit those instead of this page.\n", f);
    for (int i = 0; i < o->n; i++) {
        const mu_option *option = &o->table[i];
        if (option->use == MU_USE_RETIRED) continue;
        if (begins_section(o, i))
            fprintf(f, "\n## %s\n\n| key | type | allowed | default | on resume | meaning |\n| --- | --- | --- | --- | --- | --- |\n",
                    option->section);
        fprintf(f, "| `%s` | %s | ", option->key, type_name(option->type));
        write_range(f, option, "`");
        const char *quote = must_be_given(option) || !strcmp(default_text(option), "empty") ? "" : "`";
        fprintf(f, " | %s%s%s | %s | ", quote, default_text(option), quote, option->use & MU_ON_RESUME ? "" : option->use & MU_USE_SHAPE ? "shape" : "fixed");
        write_cell(f, option->help);
        fputs(" |\n", f);
    }
}

char *mu_options_help(const mu_options *o, bool markdown) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    MU_CHECK(f, "out of memory");
    if (markdown) help_markdown(f, o);
    else help_plain(f, o);
    MU_CHECK(!fclose(f), "out of memory");
    return text;
}
