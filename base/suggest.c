/* suggest.c - "did you mean ...?": the nearest of several words, the nearest name in a folder. */
#include "base/base.h"
#include "base/internal.h"

#include <ctype.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { WORD_MAX = 63 };

/* Lower case, '-' as '_': these differences do not count. Returns the length, or -1 for a word that is too long. */
static int fold(const char *word, char out[WORD_MAX + 1]) {
    size_t n = strlen(word);
    if (n > WORD_MAX)
        return -1;
    for (size_t i = 0; i <= n; i++)
        out[i] = word[i] == '-' ? '_' : (char)tolower((unsigned char)word[i]);
    return (int)n;
}

static int least(int a, int b) {
    return a < b ? a : b;
}

/* Insertions, deletions, replacements and swaps of neighbours that turn a into b. */
static int distance(const char *a, int n, const char *b, int m) {
    int rows[3][WORD_MAX + 1];
    int *before = rows[0], *above = rows[1], *row = rows[2];
    for (int k = 0; k <= m; k++)
        above[k] = k;
    for (int i = 1; i <= n; i++) {
        row[0] = i;
        for (int k = 1; k <= m; k++) {
            int replaced = above[k - 1] + (a[i - 1] != b[k - 1]);
            row[k] = least(replaced, least(above[k], row[k - 1]) + 1);
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1])
                row[k] = least(row[k], before[k - 2] + 1);
        }
        int *spare = before;
        before = above;
        above = row;
        row = spare;
    }
    return above[m];
}

/* Names that other programs use for the same. */
static const char *translate(const char *word, const char *const *candidates, int n) {
    static const char *const names[][2] = {
        { "gpu", "cuda" }, { "nvidia", "cuda" }, { "float32", "fp32" }, { "float", "fp32" }, { "bfloat16", "bf16" },
        { "learning_rate", "lr" }, { "max_steps", "steps" }, { "n_layers", "num_layers" }, { "n_experts", "num_experts" },
    };
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        for (int i = 0; i < n && !strcasecmp(word, names[k][0]); i++)
            if (!strcmp(candidates[i], names[k][1])) return candidates[i];
    return NULL;
}

const char *mu_suggest(const char *word, const char *const *candidates, int n) {
    char folded[WORD_MAX + 1], other[WORD_MAX + 1];
    int length = fold(word, folded);
    const char *nearest = translate(word, candidates, n);
    int limit = (length + 1) / 3, best = nearest ? 0 : limit + 1;
    for (int i = 0; i < n && length > 0; i++) {
        int m = fold(candidates[i], other);
        if (m <= 0)
            continue;
        int d = distance(folded, length, other, m);
        if (least(length, m) >= 4 && (strstr(folded, other) || strstr(other, folded)))
            d = least(d, limit);        /* batch_size counts as near to global_batch_size */
        if (d < best) {
            best = d;
            nearest = candidates[i];
        }
    }
    return nearest;
}

/* The name in `folder` that is nearest to `name`, heap, or NULL. */
static char *suggest_in_folder(const char *folder, const char *name) {
    DIR *dir = opendir(folder);
    if (!dir)
        return NULL;
    enum { NAMES_MAX = 4096 };
    char **names = mu_alloc(NAMES_MAX, sizeof *names);
    int n = 0;
    for (struct dirent *entry; n < NAMES_MAX && (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.' || name[0] == '.')
            names[n++] = mu_strdup(entry->d_name);
    closedir(dir);
    const char *near = mu_suggest(name, (const char *const *)names, n);
    char *result = near ? mu_strdup(near) : NULL;
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
    return result;
}

/* Follows the path as far as it exists, then looks beside the first name that is missing. */
char *mu_suggest_path(const char *path) {
    char *copy = mu_strdup(path), *result = NULL;
    struct stat info;
    for (char *name = copy; *name && !result;) {
        name += strspn(name, "/");
        char *end = name + strcspn(name, "/"), kept = *end;
        *end = '\0';
        if (*name && stat(copy, &info) != 0) {
            char *folder = name == copy ? mu_strdup(".") : mu_format("%.*s", (int)(name - copy), copy);
            char *near = suggest_in_folder(folder, name);
            if (near)
                result = mu_format("%s%s", name == copy ? "" : folder, near);
            free(folder);
            free(near);
            break;
        }
        *end = kept;
        name = end;
    }
    free(copy);
    return result;
}
