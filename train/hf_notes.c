/* hf_notes.c - files that belong to a model and not to its weights. */
#include "train/hf.h"

#include <stdlib.h>

mu_status mu_hf_copy_note(const char *from, const char *name, const char *to, const char *new_name, mu_error *e) {
    enum { MOST = 1 << 20 };
    char *source = mu_format("%s/%s", from, name), *copy = mu_format("%s/%s", to, new_name), *text = NULL;
    size_t n;
    mu_status status = MU_STATUS_OK;
    if (mu_file_exists(source)) {
        status = mu_file_read(source, MOST, &text, &n, e);
        if (status == MU_STATUS_OK) status = mu_file_replace(copy, text, n, e);
    }
    free(text);
    free(copy);
    free(source);
    return status;
}

mu_status mu_hf_copy_notes(const char *from, const char *to, mu_error *e) {
    static const char *const notes[] = { "generation_config.json", "chat_template.jinja", "special_tokens_map.json" };
    mu_status status = MU_STATUS_OK;
    for (size_t i = 0; i < sizeof notes / sizeof *notes && status == MU_STATUS_OK; i++) status = mu_hf_copy_note(from, notes[i], to, notes[i], e);
    return status;
}
