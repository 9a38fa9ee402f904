/* store.c - HDF5 files in which damage is detected: the only file that includes hdf5.h.
 *
 * Problems of plain HDF5, and their solutions here:
 *   - A flipped bit in data reads back silently wrong: every dataset has a Fletcher32 checksum, and in the
 *     1.10 file format all metadata has checksums. That format is also the newest which both HDF5 1.10 and
 *     1.14 read, so files can be copied between machines.
 *   - A full disk shows only when something is closed, and a file whose close failed crashes the
 *     library's exit handler: every return value is checked, and the exit handler is disabled.
 *   - A file can point elsewhere (links, external or virtual storage), load code (filter plugins), claim
 *     terabytes, crash the library or send it into an endless loop: a file must pass store_check.c first, and
 *     where a helper is set, the library must survive it in a separate process (store_probe.c).
 *   - Objects store their creation time: switched off, so equal content gives equal files. */
#include "base/base.h"
#include "base/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_DIMS = 4, CHUNK_BYTES = 1 << 20 };

typedef struct { mu_store_type type; int n_dims; int64_t shape[MAX_DIMS]; } layout;

struct mu_store {
    hid_t file;
    bool writing;
    bool failed;                /* a write failed: the file is not worth keeping */
    char *path;
    struct stat opened;         /* fstat when opened for reading */
    char *part_name;            /* of the array that is read in parts: it stays open */
    hid_t part_set;
    layout part_layout;
};

/* ------------------------------------------------------------------ errors of the library */

/* The first failure in a chain of calls. Later calls get the invalid ids of earlier ones and fail, too, which changes
 * nothing. */
typedef struct { bool failed; int system_error; char what[64], why[512]; } trouble;

static herr_t note_error(unsigned n, const H5E_error2_t *error, void *data) {
    trouble *t = data;
    const char *desc = error->desc ? error->desc : "";
    if (n == 0) snprintf(t->why, sizeof t->why, "%s", desc); /* walking upward: the deepest comes first */
    const char *code = strstr(desc, "errno = ");
    if (code && !t->system_error) t->system_error = atoi(code + strlen("errno = "));
    return 0;
}

static void note_trouble(trouble *t, const char *what) {
    t->failed = true;
    snprintf(t->what, sizeof t->what, "%s", what);
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, note_error, t);
    if (t->system_error)                        /* the description has addresses and a time in it */
        snprintf(t->why, sizeof t->why, "%s", mu_io_reason(t->system_error));
    else if (!t->why[0])
        snprintf(t->why, sizeof t->why, "no reason given");
}

/* Takes the result of any HDF5 call (negative: failed) and passes it on. */
static int64_t check(trouble *t, int64_t result, const char *what) {
    if (result < 0 && !t->failed) note_trouble(t, what);
    return result;
}

static void close_id(trouble *t, hid_t id, herr_t (*close_function)(hid_t), const char *what) {
    if (id >= 0) check(t, close_function(id), what);
}

static void start_library(void) {
    static bool started;
    if (started) return;
    MU_CHECK(H5dont_atexit() >= 0, "HDF5 was started before the store");
    MU_CHECK(H5open() >= 0, "cannot initialise HDF5");
    MU_CHECK(H5Eset_auto2(H5E_DEFAULT, NULL, NULL) >= 0, "cannot switch off HDF5's error output");
    MU_CHECK(H5PLset_loading_state(0) >= 0, "cannot switch off HDF5's plugins");
    started = true;
}

/* ------------------------------------------------------------------ types and shapes */

static const struct { const char *name; size_t size; } types[] = {
    [MU_STORE_F64] = { "f64", 8 }, [MU_STORE_F32] = { "f32", 4 }, [MU_STORE_I32] = { "i32", 4 },
    [MU_STORE_I64] = { "i64", 8 }, [MU_STORE_U16] = { "u16", 2 }, [MU_STORE_U8] = { "u8", 1 },
};
enum { N_TYPES = sizeof types / sizeof *types };

const char *mu_store_type_name(mu_store_type type) { return types[type].name; }
size_t mu_store_type_size(mu_store_type type) { return types[type].size; }

static hid_t native_type(mu_store_type type) {
    switch (type) {
    case MU_STORE_F64: return H5T_NATIVE_DOUBLE;
    case MU_STORE_F32: return H5T_NATIVE_FLOAT;
    case MU_STORE_I32: return H5T_NATIVE_INT32;
    case MU_STORE_I64: return H5T_NATIVE_INT64;
    case MU_STORE_U16: return H5T_NATIVE_UINT16;
    case MU_STORE_U8:  return H5T_NATIVE_UINT8;
    }
    MU_FATAL(MU_STATUS_INTERNAL, "invalid store type %d", (int)type);
}

/* The type in the file, in either byte order; muster writes little-endian. */
static hid_t file_type(mu_store_type type, bool big_endian) {
    switch (type) {
    case MU_STORE_F64: return big_endian ? H5T_IEEE_F64BE : H5T_IEEE_F64LE;
    case MU_STORE_F32: return big_endian ? H5T_IEEE_F32BE : H5T_IEEE_F32LE;
    case MU_STORE_I32: return big_endian ? H5T_STD_I32BE : H5T_STD_I32LE;
    case MU_STORE_I64: return big_endian ? H5T_STD_I64BE : H5T_STD_I64LE;
    case MU_STORE_U16: return big_endian ? H5T_STD_U16BE : H5T_STD_U16LE;
    case MU_STORE_U8:  return big_endian ? H5T_STD_U8BE : H5T_STD_U8LE;
    }
    MU_FATAL(MU_STATUS_INTERNAL, "invalid store type %d", (int)type);
}

static bool is_float(mu_store_type type) { return type == MU_STORE_F64 || type == MU_STORE_F32; }

static bool is_empty(const layout *l) {
    for (int i = 0; i < l->n_dims; i++)
        if (l->shape[i] == 0) return true;
    return false;
}

/* "f32 [16, 3]", into `text`, which is returned. */
static const char *describe(const layout *l, char text[128]) {
    int at = snprintf(text, 128, "%s [", types[l->type].name);
    for (int i = 0; i < l->n_dims; i++)
        at += snprintf(text + at, 128 - (size_t)at, "%s%lld", i ? ", " : "", (long long)l->shape[i]);
    snprintf(text + at, 128 - (size_t)at, "]");
    return text;
}

/* Bytes of the data; false on overflow. */
static bool count_bytes(const layout *l, int64_t *bytes) {
    *bytes = (int64_t)types[l->type].size;
    for (int i = 0; i < l->n_dims; i++)
        if (__builtin_mul_overflow(*bytes, l->shape[i], bytes)) return false;
    return true;
}

/* Chunks of about CHUNK_BYTES that are runs of whole rows, of even height so that the last is nearly full. */
static void choose_chunk(const layout *l, hsize_t chunk[MAX_DIMS]) {
    int64_t bytes;
    MU_CHECK(count_bytes(l, &bytes), "array too large");
    for (int i = 0; i < l->n_dims; i++) {
        int64_t rest = bytes / l->shape[i];
        int64_t rows = bytes <= CHUNK_BYTES ? l->shape[i] : rest < CHUNK_BYTES ? CHUNK_BYTES / rest : 1;
        int64_t pieces = (l->shape[i] + rows - 1) / rows;
        rows = (l->shape[i] + pieces - 1) / pieces;
        chunk[i] = (hsize_t)rows;
        bytes = rest * rows;
    }
}

/* ------------------------------------------------------------------ names */

static void check_name(const char *name) {
    size_t n = strlen(name);
    MU_CHECK(n > 0 && n < 1024 && name[n - 1] != '/' && !strstr(name, "//") && strcmp(name, "."),
             "\"%s\" is not a valid dataset name", name);
}

/* Moves *at to the next '/' of the path; false at the end. `part` receives the path up to there. */
static bool next_part(const char *name, size_t *at, char part[1024]) {
    if (!name[*at]) return false;
    const char *slash = strchr(name + *at + 1, '/');
    *at = slash ? (size_t)(slash - name) : strlen(name);
    memcpy(part, name, *at);
    part[*at] = '\0';
    return true;
}

/* 1: exists; 0: does not; -1: failure (in `t`). */
static int find(mu_store *s, const char *name, trouble *t) {
    char part[1024];
    for (size_t at = 0; next_part(name, &at, part);) {
        int64_t exists = check(t, H5Lexists(s->file, part, H5P_DEFAULT), "looking up");
        if (exists <= 0) return (int)exists;
    }
    return 1;
}

bool mu_store_has(mu_store *s, const char *name) {
    check_name(name);
    trouble t = { 0 };
    return find(s, name, &t) == 1;
}

/* ------------------------------------------------------------------ files */

/* Plain POSIX access whatever the environment asks for, and without locks: some file systems have none
 * (NFS, Lustre), and a file has a temporary name until it is complete. */
static hid_t file_access(trouble *t, bool writing) {
    hid_t fapl = check(t, H5Pcreate(H5P_FILE_ACCESS), "preparing");
    check(t, H5Pset_fapl_sec2(fapl), "preparing");
    check(t, H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG), "preparing");
    check(t, H5Pset_file_locking(fapl, 0, 1), "preparing");
    check(t, H5Pset_libver_bounds(fapl, H5F_LIBVER_V110, writing ? H5F_LIBVER_V110 : H5F_LIBVER_LATEST),
          "preparing");
    return fapl;
}

static mu_store *new_store(const char *path) {
    start_library();
    mu_store *s = mu_alloc(1, sizeof *s);
    *s = (mu_store){ .file = -1, .path = mu_strdup(path) };
    return s;
}

static void free_store(mu_store *s) {
    free(s->path);
    free(s);
}

/* Completes opening or creating: sets *out, or releases everything. */
static mu_status finish_opening(mu_store **out, mu_store *s, trouble *t, mu_status status, const char *verb,
                                mu_error *e) {
    *out = NULL;
    if (!t->failed) {
        *out = s;
        return MU_STATUS_OK;
    }
    mu_error_set(e, status, "%s: cannot be %s: %s", s->path, verb, t->why);
    if (s->file >= 0) H5Fclose(s->file);
    free_store(s);
    return status;
}

mu_status mu_store_create(mu_store **out, const char *path, mu_error *e) {
    mu_store *s = new_store(path);
    trouble t = { 0 };
    /* Always a new file: not the target of a link, nor one that a failed close left open in the library. */
    if (unlink(path) && errno != ENOENT) {
        t.failed = true;
        snprintf(t.why, sizeof t.why, "%s", mu_io_reason(errno));
        return finish_opening(out, s, &t, MU_STATUS_IO, "replaced", e);
    }
    hid_t fapl = file_access(&t, true);
    hid_t fcpl = check(&t, H5Pcreate(H5P_FILE_CREATE), "preparing");
    check(&t, H5Pset_obj_track_times(fcpl, 0), "preparing");
    if (!t.failed) s->file = check(&t, H5Fcreate(path, H5F_ACC_EXCL, fcpl, fapl), "creating");
    s->writing = true;
    close_id(&t, fcpl, H5Pclose, "preparing");
    close_id(&t, fapl, H5Pclose, "preparing");
    return finish_opening(out, s, &t, MU_STATUS_IO, "created", e);
}

/* fstat of the open file, which may have been replaced under its name. */
static void look_at_file(mu_store *s, struct stat *st, trouble *t) {
    int *fd = NULL;
    if (!t->failed) check(t, H5Fget_vfd_handle(s->file, H5P_DEFAULT, (void **)&fd), "looking at the file");
    if (!t->failed && fstat(*fd, st)) t->failed = true, snprintf(t->why, sizeof t->why, "%s", mu_io_reason(errno));
}

static mu_status open_file(mu_store **out, const char *path, mu_error *e) {
    mu_store *s = new_store(path);
    trouble t = { 0 };
    hid_t fapl = file_access(&t, false);
    if (!t.failed) s->file = check(&t, H5Fopen(path, H5F_ACC_RDONLY, fapl), "opening");
    close_id(&t, fapl, H5Pclose, "preparing");
    look_at_file(s, &s->opened, &t);
    mu_status status = t.system_error ? MU_STATUS_IO : MU_STATUS_DATA;
    return finish_opening(out, s, &t, status, "read as HDF5 (damaged, unfinished or another format)", e);
}

/* The last 64 files that passed the checks, so that an unchanged file is checked once. */
static struct sound { dev_t device; ino_t inode; off_t bytes; struct timespec written, changed; } sound[64];
static int n_sound;

static bool is_sound(const struct sound *file) {
    for (int i = 0; i < n_sound && i < 64; i++)
        if (!memcmp(&sound[i], file, sizeof *file)) return true;
    return false;
}

/* Checks that the library can read the file safely. */
static mu_status check_file(int fd, const char *path, mu_error *e) {
    struct stat st;
    if (fstat(fd, &st)) return mu_error_set(e, MU_STATUS_IO, "%s: %s", path, strerror(errno));
    struct sound file;
    memset(&file, 0, sizeof file);              /* including padding: compared as bytes */
    file.device = st.st_dev, file.inode = st.st_ino, file.bytes = st.st_size;
    file.written = st.st_mtim, file.changed = st.st_ctim;
    if (is_sound(&file)) return MU_STATUS_OK;
    mu_status status = mu_store_check(fd, path, st.st_size, e);
    if (!status) status = mu_store_probe(path, e);
    if (!status) sound[n_sound++ % 64] = file;
    return status;
}

mu_status mu_store_open(mu_store **out, const char *path, mu_error *e) {
    *out = NULL;
    int64_t bytes;
    const char *reason;
    int fd = mu_file_open(path, false, &bytes, &reason);
    if (fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, reason);
    mu_status status = check_file(fd, path, e);
    close(fd);
    return status ? status : open_file(out, path, e);
}

static void close_part(mu_store *s, trouble *t) {
    if (s->part_name) close_id(t, s->part_set, H5Dclose, "closing");
    free(s->part_name);
    s->part_name = NULL;
}

mu_status mu_store_close(mu_store *s, mu_error *e) {
    if (!s) return MU_STATUS_OK;
    trouble t = { 0 };
    mu_status status = MU_STATUS_OK;
    close_part(s, &t);
    check(&t, H5Fclose(s->file), "closing");
    if (s->writing && (t.failed || s->failed)) {
        status = mu_error_set(e, MU_STATUS_IO, "%s: not written completely%s%s", s->path,
                              t.failed ? ": " : "", t.why);
        /* The library keeps a file that it could not close open until the process ends; truncating at least frees its
         * space. The file is incomplete, so nothing is lost. */
        if (truncate(s->path, 0))
            mu_error_add(e, status, "%s: cannot be emptied: %s", s->path, strerror(errno));
    } else if (t.failed) {
        status = mu_error_set(e, MU_STATUS_IO, "%s: closing: %s", s->path, t.why);
    } else if (s->writing) {
        status = mu_file_sync(s->path, e);
    }
    free_store(s);
    return status;
}

/* ------------------------------------------------------------------ writing */

/* Creates parent groups one by one: those that the library creates by itself have a time stamp. */
static void make_groups(mu_store *s, const char *name, trouble *t) {
    hid_t gcpl = check(t, H5Pcreate(H5P_GROUP_CREATE), "preparing");
    check(t, H5Pset_obj_track_times(gcpl, 0), "preparing");
    char part[1024];
    for (size_t at = 0; !t->failed && next_part(name, &at, part) && name[at];) {
        if (check(t, H5Lexists(s->file, part, H5P_DEFAULT), "making groups") != 0) continue;
        hid_t group = check(t, H5Gcreate2(s->file, part, H5P_DEFAULT, gcpl, H5P_DEFAULT), "making groups");
        close_id(t, group, H5Gclose, "making groups");
    }
    close_id(t, gcpl, H5Pclose, "preparing");
}

static hid_t creation_properties(const layout *l, const hsize_t *chunk, trouble *t) {
    hid_t dcpl = check(t, H5Pcreate(H5P_DATASET_CREATE), "preparing");
    check(t, H5Pset_obj_track_times(dcpl, 0), "preparing");
    if (is_empty(l)) {                          /* a chunk cannot be empty, and there is no data to protect */
        check(t, H5Pset_layout(dcpl, H5D_COMPACT), "preparing");
        return dcpl;
    }
    check(t, H5Pset_chunk(dcpl, l->n_dims, chunk), "preparing");
    check(t, H5Pset_fletcher32(dcpl), "preparing");
    return dcpl;
}

/* Without data: only makes room for it. */
static void write_array(mu_store *s, const char *name, const layout *l, const hsize_t *chunk, const void *data,
                        trouble *t) {
    hsize_t dims[MAX_DIMS];
    for (int i = 0; i < l->n_dims; i++) dims[i] = (hsize_t)l->shape[i];
    make_groups(s, name, t);
    hid_t dcpl = creation_properties(l, chunk, t);
    hid_t space = check(t, H5Screate_simple(l->n_dims, dims, NULL), "preparing");
    hid_t set = -1;
    if (!t->failed)
        set = check(
            t, H5Dcreate2(s->file, name, file_type(l->type, false), space, H5P_DEFAULT, dcpl, H5P_DEFAULT),
            "creating");
    if (!t->failed && data && !is_empty(l))
        check(t, H5Dwrite(set, native_type(l->type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "writing");
    close_id(t, set, H5Dclose, "writing");
    close_id(t, space, H5Sclose, "finishing");
    close_id(t, dcpl, H5Pclose, "finishing");
}

static layout layout_of(mu_store_type type, int n_dims, const int64_t *shape) {
    MU_CHECK(n_dims >= 1 && n_dims <= MAX_DIMS, "%d dimensions; a dataset has 1 to %d", n_dims, MAX_DIMS);
    MU_CHECK((unsigned)type < N_TYPES, "invalid store type %d", (int)type);
    layout l = { .type = type, .n_dims = n_dims };
    for (int i = 0; i < n_dims; i++) {
        MU_CHECK(shape[i] >= 0, "dimension %d is %lld", i, (long long)shape[i]);
        l.shape[i] = shape[i];
    }
    return l;
}

static mu_status write_trouble(mu_store *s, const char *name, const layout *l, const trouble *t, mu_error *e) {
    char text[128];
    s->failed = true;
    return mu_error_set(e, MU_STATUS_IO, "%s: %s %s: %s: %s", s->path, name, describe(l, text), t->what, t->why);
}

/* A new dataset, of whatever is given of it. */
static mu_status add_array(mu_store *s, const char *name, const layout *l, const hsize_t *chunk, const void *data,
                           mu_error *e) {
    MU_CHECK(s->writing, "%s is open for reading", s->path);
    trouble t = { 0 };
    if (s->failed) return mu_error_set(e, MU_STATUS_IO, "%s: %s: an earlier write failed", s->path, name);
    MU_CHECK(!mu_store_has(s, name), "%s: %s is written twice", s->path, name);
    write_array(s, name, l, chunk, data, &t);
    return t.failed ? write_trouble(s, name, l, &t, e) : MU_STATUS_OK;
}

mu_status mu_store_write(mu_store *s, const char *name, mu_store_type type, int n_dims, const int64_t *shape,
                         const void *data, mu_error *e) {
    check_name(name);
    layout l = layout_of(type, n_dims, shape);
    hsize_t chunk[MAX_DIMS] = { 0 };
    if (!is_empty(&l)) choose_chunk(&l, chunk);
    return add_array(s, name, &l, chunk, data, e);
}

mu_status mu_store_make(mu_store *s, const char *name, mu_store_type type, int n_dims, const int64_t *shape, int64_t rows,
                        mu_error *e) {
    check_name(name);
    layout l = layout_of(type, n_dims, shape);
    MU_CHECK(rows > 0, "%s: chunks of %lld rows", name, (long long)rows);
    hsize_t chunk[MAX_DIMS];
    for (int i = 0; i < n_dims; i++) chunk[i] = (hsize_t)(i == 0 && rows < shape[0] ? rows : shape[i]);
    return add_array(s, name, &l, chunk, NULL, e);
}

mu_status mu_store_write_text(mu_store *s, const char *name, const char *text, mu_error *e) {
    return mu_store_write(s, name, MU_STORE_U8, 1, (int64_t[]){ (int64_t)strlen(text) }, text, e);
}

mu_status mu_store_attribute(mu_store *s, const char *name, const char *key, const char *text, mu_error *e) {
    MU_CHECK(s->writing && key[0] && text[0], "%s: attribute \"%s\" of %s is \"%s\"", s->path, key, name, text);
    trouble t = { 0 };
    if (s->failed) return mu_error_set(e, MU_STATUS_IO, "%s: %s: an earlier write failed", s->path, name);
    hid_t type = check(&t, H5Tcopy(H5T_C_S1), "preparing"), space = check(&t, H5Screate(H5S_SCALAR), "preparing");
    check(&t, H5Tset_size(type, strlen(text)), "preparing");
    check(&t, H5Tset_strpad(type, H5T_STR_NULLPAD), "preparing");
    hid_t attribute = -1;
    if (!t.failed) attribute = check(&t, H5Acreate_by_name(s->file, name, key, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), "creating an attribute");
    if (!t.failed) check(&t, H5Awrite(attribute, type, text), "writing an attribute");
    close_id(&t, attribute, H5Aclose, "writing an attribute");
    close_id(&t, space, H5Sclose, "finishing");
    close_id(&t, type, H5Tclose, "finishing");
    if (!t.failed) return MU_STATUS_OK;
    s->failed = true;
    return mu_error_set(e, MU_STATUS_IO, "%s: %s: attribute \"%s\": %s: %s", s->path, name, key, t.what, t.why);
}

/* ------------------------------------------------------------------ reading */

static mu_status not_plain(mu_store *s, const char *name, const char *what, mu_error *e) {
    return mu_error_set(e, MU_STATUS_DATA, "%s: %s: %s", s->path, name, what);
}

static mu_status read_trouble(mu_store *s, const char *name, const trouble *t, mu_error *e) {
    return mu_error_set(e, t->system_error ? MU_STATUS_IO : MU_STATUS_DATA, "%s: %s: %s (damaged?): %s",
                        s->path, name, t->what, t->why);
}

/* The only types a dataset may have; false for any other. */
static bool recognise_type(hid_t set, mu_store_type *type, trouble *t) {
    hid_t id = check(t, H5Dget_type(set), "reading the type");
    bool known = false;
    for (int i = 0; !t->failed && !known && i < 2 * N_TYPES; i++) {
        *type = (mu_store_type)(i / 2);
        known = check(t, H5Tequal(id, file_type(*type, i % 2)), "reading the type") > 0;
    }
    close_id(t, id, H5Tclose, "reading the type");
    return known;
}

static bool recognise_shape(hid_t set, layout *l, trouble *t) {
    hid_t space = check(t, H5Dget_space(set), "reading the shape");
    hsize_t dims[MAX_DIMS];
    bool plain = !t->failed && H5Sget_simple_extent_type(space) == H5S_SIMPLE;
    l->n_dims = plain ? (int)check(t, H5Sget_simple_extent_ndims(space), "reading the shape") : 0;
    plain = plain && !t->failed && l->n_dims >= 1 && l->n_dims <= MAX_DIMS;
    if (plain) check(t, H5Sget_simple_extent_dims(space, dims, NULL), "reading the shape");
    for (int i = 0; plain && !t->failed && i < l->n_dims; i++) {
        plain = dims[i] <= INT64_MAX;
        l->shape[i] = (int64_t)dims[i];
    }
    close_id(t, space, H5Sclose, "reading the shape");
    return plain;
}

/* Opens a dataset and takes its measure. On success the caller closes *set. */
static mu_status open_array(mu_store *s, const char *name, hid_t *set, layout *l, mu_error *e) {
    check_name(name);
    trouble t = { 0 };
    int found = find(s, name, &t);
    if (t.failed) return read_trouble(s, name, &t, e);
    if (found == 0) return not_plain(s, name, "not in the file", e);
    *set = check(&t, H5Dopen2(s->file, name, H5P_DEFAULT), "opening as a dataset");
    const char *fault = NULL;
    if (!t.failed && !recognise_type(*set, &l->type, &t)) fault = "its type is none of ours";
    if (!t.failed && !fault && !recognise_shape(*set, l, &t)) fault = "not an array of 1 to 4 dimensions";
    if (!t.failed && !fault) return MU_STATUS_OK;
    close_id(&t, *set, H5Dclose, "closing");
    return t.failed ? read_trouble(s, name, &t, e) : not_plain(s, name, fault, e);
}

static bool compatible(const layout *want, const layout *have) {
    if (want->n_dims != have->n_dims) return false;
    for (int i = 0; i < want->n_dims; i++)
        if (want->shape[i] != have->shape[i]) return false;
    return want->type == have->type || (is_float(want->type) && is_float(have->type));
}

mu_status mu_store_read(mu_store *s, const char *name, mu_store_type type, int n_dims, const int64_t *shape,
                        void *data, mu_error *e) {
    layout want = layout_of(type, n_dims, shape), have;
    hid_t set;
    mu_status status = open_array(s, name, &set, &have, e);
    if (status) return status;
    trouble t = { 0 };
    bool fits = compatible(&want, &have);
    if (fits && !is_empty(&have))
        check(&t, H5Dread(set, native_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "reading");
    close_id(&t, set, H5Dclose, "closing");
    if (t.failed) return read_trouble(s, name, &t, e);
    char expected[128], found[128];
    if (!fits)
        return mu_error_set(e, MU_STATUS_DATA, "%s: %s: expected %s, found %s", s->path, name,
                            describe(&want, expected), describe(&have, found));
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ parts of arrays */

/* Reads or writes rows [first, first + n), which there are. */
static void transfer(hid_t set, const layout *l, int64_t first, int64_t n, void *in, const void *out, trouble *t) {
    hsize_t from[MAX_DIMS] = { (hsize_t)first }, count[MAX_DIMS] = { (hsize_t)n };
    for (int i = 1; i < l->n_dims; i++) count[i] = (hsize_t)l->shape[i];
    hid_t memory = check(t, H5Screate_simple(l->n_dims, count, NULL), "preparing");
    hid_t file = check(t, H5Dget_space(set), "preparing");
    check(t, H5Sselect_hyperslab(file, H5S_SELECT_SET, from, NULL, count, NULL), "selecting a part");
    if (!t->failed && in) check(t, H5Dread(set, native_type(l->type), memory, file, H5P_DEFAULT, in), "reading");
    if (!t->failed && out) check(t, H5Dwrite(set, native_type(l->type), memory, file, H5P_DEFAULT, out), "writing");
    close_id(t, file, H5Sclose, "finishing");
    close_id(t, memory, H5Sclose, "finishing");
}

/* A file that is open for hours may be overwritten or truncated meanwhile: zeros beyond its end would pass Fletcher32. */
static mu_status check_unchanged(mu_store *s, mu_error *e) {
    trouble t = { 0 };
    struct stat now, was = s->opened;
    look_at_file(s, &now, &t);
    if (t.failed) return mu_error_set(e, MU_STATUS_IO, "%s: %s", s->path, t.why);
    if (now.st_size == was.st_size && !memcmp(&now.st_mtim, &was.st_mtim, sizeof now.st_mtim)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "%s was written to while it was being read", s->path);
}

/* Opens the array of which that part is asked for, unless it is open: parts are many. */
static mu_status open_part(mu_store *s, const char *name, mu_store_type type, int64_t first, int64_t n, mu_error *e) {
    char found[128];
    layout *l = &s->part_layout;
    trouble t = { 0 };
    if (!s->part_name || strcmp(s->part_name, name)) {
        close_part(s, &t);
        if (t.failed) return s->writing ? write_trouble(s, name, l, &t, e) : read_trouble(s, name, &t, e);
        mu_status status = open_array(s, name, &s->part_set, l, e);
        if (status) return status;
        s->part_name = mu_strdup(name);
    }
    if (l->type != type || (l->n_dims != 1 && !s->writing))
        return mu_error_set(e, MU_STATUS_DATA, "%s: %s: expected %s of one dimension, found %s", s->path, name,
                            types[type].name, describe(l, found));
    MU_CHECK(first >= 0 && n >= 0 && first <= l->shape[0] && n <= l->shape[0] - first,
             "%s: %s: rows [%lld, %lld) of %lld", s->path, name, (long long)first, (long long)(first + n),
             (long long)l->shape[0]);
    return MU_STATUS_OK;
}

mu_status mu_store_write_part(mu_store *s, const char *name, mu_store_type type, int64_t first, int64_t n,
                              const void *data, mu_error *e) {
    MU_CHECK((unsigned)type < N_TYPES, "invalid store type %d", (int)type);
    MU_CHECK(s->writing, "%s is open for reading", s->path);
    if (s->failed) return mu_error_set(e, MU_STATUS_IO, "%s: %s: an earlier write failed", s->path, name);
    mu_status status = open_part(s, name, type, first, n, e);
    if (status) return status;
    trouble t = { 0 };
    if (n > 0 && !is_empty(&s->part_layout)) transfer(s->part_set, &s->part_layout, first, n, NULL, data, &t);
    return t.failed ? write_trouble(s, name, &s->part_layout, &t, e) : MU_STATUS_OK;
}

mu_status mu_store_read_part(mu_store *s, const char *name, mu_store_type type, int64_t first, int64_t n, void *data,
                             mu_error *e) {
    MU_CHECK((unsigned)type < N_TYPES, "invalid store type %d", (int)type);
    mu_status status = s->writing ? MU_STATUS_OK : check_unchanged(s, e);
    if (!status) status = open_part(s, name, type, first, n, e);
    if (status) return status;
    trouble t = { 0 };
    if (n > 0) transfer(s->part_set, &s->part_layout, first, n, data, NULL, &t);
    return t.failed ? read_trouble(s, name, &t, e) : MU_STATUS_OK;
}

mu_status mu_store_chunk(mu_store *s, const char *name, int64_t *chunk, mu_error *e) {
    layout l;
    hid_t set;
    hsize_t dims[MAX_DIMS] = { 0 };
    mu_status status = open_array(s, name, &set, &l, e);
    if (status) return status;
    trouble t = { 0 };
    hid_t dcpl = check(&t, H5Dget_create_plist(set), "reading the layout");
    bool chunked = !t.failed && check(&t, H5Pget_layout(dcpl), "reading the layout") == H5D_CHUNKED;
    if (chunked) check(&t, H5Pget_chunk(dcpl, MAX_DIMS, dims), "reading the layout");
    close_id(&t, dcpl, H5Pclose, "closing");
    close_id(&t, set, H5Dclose, "closing");
    if (t.failed) return read_trouble(s, name, &t, e);
    *chunk = 1;
    for (int i = 0; i < l.n_dims && chunked; i++) *chunk *= (int64_t)dims[i];
    return MU_STATUS_OK;
}

mu_status mu_store_shape(mu_store *s, const char *name, mu_store_type *type, int *n_dims, int64_t shape[4],
                         mu_error *e) {
    layout l;
    hid_t set;
    mu_status status = open_array(s, name, &set, &l, e);
    if (status) return status;
    trouble t = { 0 };
    close_id(&t, set, H5Dclose, "closing");
    if (t.failed) return read_trouble(s, name, &t, e);
    *type = l.type;
    *n_dims = l.n_dims;
    memcpy(shape, l.shape, (size_t)l.n_dims * sizeof *shape);
    return MU_STATUS_OK;
}

mu_status mu_store_read_text(mu_store *s, const char *name, char **text, mu_error *e) {
    mu_store_type type;
    int n_dims;
    int64_t shape[MAX_DIMS];
    *text = NULL;
    mu_status status = mu_store_shape(s, name, &type, &n_dims, shape, e);
    if (status) return status;
    if (type != MU_STORE_U8 || n_dims != 1) return not_plain(s, name, "not a text (u8, one dimension)", e);
    char *read = mu_alloc((size_t)shape[0] + 1, 1);
    status = mu_store_read(s, name, MU_STORE_U8, 1, shape, read, e);
    if (!status && memchr(read, '\0', (size_t)shape[0]))
        status = not_plain(s, name, "a text with a NUL byte", e);
    if (status) free(read);
    else *text = read;
    return status;
}

mu_status mu_store_finish(mu_store *s, mu_status status, mu_error *e) {
    if (!s) return status;
    mu_status closed = mu_store_close(s, status == MU_STATUS_OK ? e : NULL);
    return status == MU_STATUS_OK ? closed : status;
}

/* ------------------------------------------------------------------ walking, for the helper */

/* Makes the library read all metadata of an object and of the objects below it, but no data. */
static herr_t look_at(hid_t group, const char *name, const H5L_info_t *info, void *data) {
    (void)info;
    trouble *t = data;
    layout l;
    hid_t id = check(t, H5Oopen(group, name, H5P_DEFAULT), "opening");
    if (!t->failed && H5Iget_type(id) == H5I_GROUP)
        check(t, H5Literate(id, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, look_at, t), "walking");
    else if (!t->failed && recognise_type(id, &l.type, t) && recognise_shape(id, &l, t))
        H5Dget_storage_size(id);                /* walks the index of the chunks */
    close_id(t, id, H5Oclose, "closing");
    return t->failed ? -1 : 0;
}

mu_status mu_store_walk(const char *path, mu_error *e) {
    mu_store *s;
    mu_status status = open_file(&s, path, e);
    if (status) return status;
    trouble t = { 0 };
    look_at(s->file, "/", NULL, &t);
    if (t.failed) status = mu_error_set(e, MU_STATUS_DATA, "%s: %s (damaged?): %s", path, t.what, t.why);
    return mu_store_finish(s, status, e);
}
