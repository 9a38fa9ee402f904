/* yaml.c - YAML as configurations need it: libyaml's events become a small tree. Anchors, tags, aliases,
 * merge keys and further documents are marked or refused; nothing is interpreted here, a scalar stays text. */
#include "base/internal.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

typedef struct {
    yaml_parser_t parser;
    mu_yaml_document *document;
    int max_depth;
} builder;

static void stop(mu_yaml_document *d, int line, int column, char *problem) {
    if (d->problem) {
        free(problem);
        return;
    }
    d->problem = problem;
    d->line = line;
    d->column = column;
}

static void place_of(const char *text, size_t offset, int *line, int *column) {
    *line = *column = 1;
    for (size_t i = 0; i < offset; i++) {
        if (text[i] == '\n') {
            ++*line;
            *column = 1;
        } else if (((unsigned char)text[i] & 0xC0) != 0x80) {
            ++*column;
        }
    }
}

/* A binary file gets a clear error, not the parser's about its first odd byte. */
static bool is_text(mu_yaml_document *d, const char *text, size_t bytes) {
    char *problem = NULL;
    size_t at = 0;
    while (at < bytes && !problem) {
        uint32_t code = 0;
        int length = mu_utf8_decode(text + at, bytes - at, &code);
        if (length == 0 && at == 0 && bytes > 1 && (!memcmp(text, "\xFF\xFE", 2) || !memcmp(text, "\xFE\xFF",
                                                                                            2)))
            problem = mu_strdup("the file is UTF-16; save it as UTF-8");
        else if (length == 0)
            problem = mu_format("byte 0x%02x is not UTF-8: is this a text file?", (unsigned char)text[at]);
        else if (code == 0)
            problem = mu_strdup("a NUL byte: is this a text file?");
        else if ((code < 0x20 && !strchr("\t\n\r", (int)code)) || code == 0x7F)
            problem = mu_format("control character 0x%02x: is this a text file?", (unsigned)code);
        else
            at += (size_t)length;
    }
    if (!problem)
        return true;
    int line, column;
    place_of(text, at, &line, &column);
    stop(d, line, column, problem);
    return false;
}

/* libyaml's message, with the position where parsing failed. */
static void stop_at_syntax_error(builder *b) {
    const yaml_parser_t *p = &b->parser;
    const char *problem = p->problem ? p->problem : "not YAML";
    int line = (int)p->problem_mark.line + 1, column = (int)p->problem_mark.column + 1;
    const char *hint = strstr(problem, "cannot start any token")
        ? " (a tab? indent with spaces; quote texts that begin with @, ` or %)" : "";
    if (p->context && p->context_mark.line + 1 < (size_t)line)
        stop(b->document, line, column, mu_format("YAML: %s, %s that begins in line %d%s", problem, p->context,
                                                  (int)p->context_mark.line + 1, hint));
    else
        stop(b->document, line, column, mu_format("YAML: %s%s%s%s", problem, p->context ? ", " : "",
                                                  p->context ? p->context : "", hint));
}

static bool next_event(builder *b, yaml_event_t *event) {
    if (b->document->problem)
        return false;
    if (yaml_parser_parse(&b->parser, event))
        return true;
    stop_at_syntax_error(b);
    return false;
}

static void free_node(mu_yaml *node) {
    while (node) {
        mu_yaml *next = node->next;
        free_node(node->key);
        free_node(node->child);
        free(node->text);
        free(node);
        node = next;
    }
}

static mu_yaml *new_node(mu_yaml_kind kind, const yaml_event_t *event) {
    mu_yaml *node = mu_alloc(1, sizeof *node);
    node->kind = kind;
    node->line = (int)event->start_mark.line + 1;
    node->column = (int)event->start_mark.column + 1;
    return node;
}

static void refuse_marks(mu_yaml *node, const yaml_char_t *anchor, const yaml_char_t *tag) {
    if (anchor)
        node->refused = "anchors (&name) are not supported; write the value out";
    else if (tag)
        node->refused = "tags (!name) are not supported; write the plain value";
}

static mu_yaml *build_scalar(const yaml_event_t *event) {
    mu_yaml *node = new_node(MU_YAML_SCALAR, event);
    const char *text = (const char *)event->data.scalar.value;
    node->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    node->text = mu_strdup(text);
    refuse_marks(node, event->data.scalar.anchor, event->data.scalar.tag);
    if (strlen(text) != event->data.scalar.length)
        node->refused = "a text with a NUL character";
    return node;
}

static mu_yaml *build_node(builder *b, const yaml_event_t *event, int depth);

static mu_yaml *build_next(builder *b, int depth, yaml_event_type_t end) {
    yaml_event_t event;
    if (!next_event(b, &event))
        return NULL;
    mu_yaml *node = event.type == end ? NULL : build_node(b, &event, depth);
    yaml_event_delete(&event);
    return node;
}

static void build_list(builder *b, mu_yaml *list, int depth) {
    mu_yaml **tail = &list->child;
    for (mu_yaml *item; (item = build_next(b, depth, YAML_SEQUENCE_END_EVENT)) != NULL; tail = &item->next)
        *tail = item;
}

/* Drops a key whose value could not be read: the syntax error behind it is reported. */
static void build_map(builder *b, mu_yaml *map, int depth) {
    mu_yaml **tail = &map->child;
    for (mu_yaml *key; (key = build_next(b, depth, YAML_MAPPING_END_EVENT)) != NULL;) {
        mu_yaml *value = build_next(b, depth, YAML_NO_EVENT);
        if (!value) {
            free_node(key);
            return;
        }
        if (key->kind != MU_YAML_SCALAR)
            key->refused = "a key must be a plain name, not a list or a map";
        else if (key->plain && !strcmp(key->text, "<<"))
            key->refused = "merge keys (<<) are not supported; write the values out";
        value->key = key;
        *tail = value;
        tail = &value->next;
    }
}

static mu_yaml *build_node(builder *b, const yaml_event_t *event, int depth) {
    mu_yaml *node = NULL;
    if (event->type == YAML_SCALAR_EVENT)
        return build_scalar(event);
    if (event->type == YAML_ALIAS_EVENT) {
        node = new_node(MU_YAML_SCALAR, event);
        node->text = mu_strdup("");
        node->refused = "aliases (*name) are not supported; write the value out";
        return node;
    }
    bool is_map = event->type == YAML_MAPPING_START_EVENT;
    node = new_node(is_map ? MU_YAML_MAP : MU_YAML_LIST, event);
    if (is_map)
        refuse_marks(node, event->data.mapping_start.anchor, event->data.mapping_start.tag);
    else
        refuse_marks(node, event->data.sequence_start.anchor, event->data.sequence_start.tag);
    if (depth >= b->max_depth)
        stop(b->document, node->line, node->column, mu_strdup("lists and maps nested deeper than any option needs"));
    else if (is_map)
        build_map(b, node, depth + 1);
    else
        build_list(b, node, depth + 1);
    return node;
}

static void build_document(builder *b) {
    bool have_root = false;
    for (bool done = false; !done;) {
        yaml_event_t event;
        if (!next_event(b, &event))
            return;
        switch (event.type) {
        case YAML_STREAM_END_EVENT:
            done = true;
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (have_root)
                stop(b->document, (int)event.start_mark.line + 1, (int)event.start_mark.column + 1,
                     mu_strdup("a second YAML document begins; a file holds one configuration"));
            break;
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        default:
            b->document->root = build_node(b, &event, 0);
            have_root = true;
        }
        yaml_event_delete(&event);
    }
}

void mu_yaml_read(mu_yaml_document *d, const char *text, size_t bytes, int max_depth) {
    *d = (mu_yaml_document){ 0 };
    if (!is_text(d, text, bytes))
        return;
    if (bytes >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) {       /* the byte order mark of some editors */
        text += 3;
        bytes -= 3;
    }
    builder b = { .document = d, .max_depth = max_depth };
    if (!yaml_parser_initialize(&b.parser))
        MU_FATAL(MU_STATUS_INTERNAL, "libyaml: out of memory");
    yaml_parser_set_encoding(&b.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&b.parser, (const unsigned char *)text, bytes);
    build_document(&b);
    if (d->problem && b.parser.error == YAML_READER_ERROR)      /* which knows an offset only */
        place_of(text, b.parser.problem_offset, &d->line, &d->column);
    yaml_parser_delete(&b.parser);
}

void mu_yaml_free(mu_yaml_document *d) {
    free_node(d->root);
    free(d->problem);
    *d = (mu_yaml_document){ 0 };
}
