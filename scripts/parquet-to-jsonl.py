#!/usr/bin/env python3
"""parquet-to-jsonl.py - the texts of Parquet and Arrow files, and of folders of Hugging Face's datasets, as one .jsonl file
for muster. Needs pyarrow. Rows are read some at a time, whatever the size of the files."""
import argparse
import json
import os
import re
import sys
import time

USAGE, DATA, NOINPUT, IO = 64, 65, 66, 74
SPLIT = re.compile(r"^(train|validation|valid|dev|test)([-_.]|$)")
BATCH_ROWS = 1024


class Failure(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Arguments(argparse.ArgumentParser):
    def error(self, message):
        raise Failure(USAGE, message + "; see --help")


def arguments():
    p = Arguments(description="Writes the texts of Parquet or Arrow files as a .jsonl with one {\"text\": ...} per row, in the order of the"
                              " paths given, and of names within a folder. The file gets its name when it is complete.")
    p.add_argument("path", nargs="+", help=".parquet or .arrow file, or a folder of them: a dataset as downloaded, or as saved by save_to_disk")
    p.add_argument("--out", required=True, help="FILE.jsonl, FILE.jsonl.zst or FILE.jsonl.gz; must not exist")
    p.add_argument("--text-key", default="text", metavar="KEY", help="column with the text (default: text)")
    p.add_argument("--split", help="train, validation, test, ...: of a dataset with several, by the names of its folders or files")
    p.add_argument("--quiet", action="store_true", help="no progress")
    a = p.parse_args()
    if not re.search(r"\.jsonl(\.zst|\.gz)?$", a.out):
        raise Failure(USAGE, f"--out {a.out}: the name must end in .jsonl, .jsonl.zst or .jsonl.gz")
    if os.path.lexists(a.out):
        raise Failure(USAGE, f"--out {a.out} exists; remove it, or choose another name")
    return a


def data_files(path):
    """The .parquet and .arrow files of a path, sorted; links to folders are not followed, hidden names and caches are left out."""
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise Failure(NOINPUT, f"{path}: no such file or folder")
    def unreadable(error):
        raise error

    found = []
    for folder, folders, names in os.walk(path, onerror=unreadable):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [os.path.join(folder, n) for n in names if n.endswith((".parquet", ".arrow")) and not n.startswith((".", "cache-"))]
    return sorted(found)


def split_of(root, file):
    """The first part of the path within the dataset that is named like a split; None: none is."""
    for part in os.path.relpath(file, root).split(os.sep) if file != root else []:
        match = SPLIT.match(part)
        if match:
            return match.group(1)
    return None


def choose_files(a):
    chosen, splits = [], set()
    for path in a.path:
        for file in data_files(path):
            split = split_of(path, file)
            splits.add(split or "")
            if a.split is None or split == a.split or (split is None and a.split in os.path.relpath(file, path).split(os.sep)):
                chosen.append(file)
    names = ", ".join(sorted(s for s in splits if s))
    if a.split is None and len(splits) > 1 and names:
        raise Failure(USAGE, f"{' '.join(a.path)}: several splits ({names}{', others' if '' in splits else ''}); choose one with --split")
    if not chosen:
        raise Failure(NOINPUT, f"{' '.join(a.path)}: no .parquet or .arrow files" + (f" of split {a.split} (there are: {names or 'none'})" if a.split else ""))
    return chosen


def column_of(schema, key, file):
    import pyarrow as pa
    if key not in schema.names:
        raise Failure(DATA, f"{file}: no column {key}; --text-key selects one of: {', '.join(schema.names)}")
    kind = schema.field(key).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or str(inner) == "string_view"):
        raise Failure(DATA, f"{file}: column {key} is of type {kind}, not text")


def columns(file, key):
    """The text column of a file, in batches."""
    import pyarrow as pa
    if file.endswith(".parquet"):
        import pyarrow.parquet as pq
        with pq.ParquetFile(file) as f:
            column_of(f.schema_arrow, key, file)
            for batch in f.iter_batches(batch_size=BATCH_ROWS, columns=[key]):
                yield batch.column(0)
        return
    with pa.memory_map(file) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            source.seek(0)
            reader = batches = pa.ipc.open_stream(source)
        column_of(reader.schema, key, file)
        for batch in batches:
            column = batch.column(reader.schema.names.index(key))
            for at in range(0, len(column), BATCH_ROWS):
                yield column.slice(at, BATCH_ROWS)


class Counter:
    """What was written, and the progress on stderr."""

    def __init__(self, files, quiet):
        self.files, self.quiet = len(files), quiet
        self.file = self.rows = self.bytes = self.empty = self.nul = 0
        self.start = self.shown = time.monotonic()

    def show(self, last=False):
        now = time.monotonic()
        if self.quiet or (not last and now - self.shown < 2):
            return
        self.shown = now
        rate = self.bytes / 1e6 / max(now - self.start, 1e-3)
        print(f"file {self.file} of {self.files}: {self.rows} documents, {self.bytes / 1e6:.1f} MB of text, {rate:.0f} MB/s", file=sys.stderr, flush=True)


def write_file(out, file, key, count):
    import pyarrow as pa
    row = 0
    try:
        for column in columns(file, key):
            lines = []
            for text in column.to_pylist():
                row += 1
                if not text:
                    count.empty += 1
                elif "\0" in text:
                    count.nul += 1
                else:
                    lines.append(json.dumps({"text": text}, ensure_ascii=False))
                    count.bytes += len(text.encode())
            count.rows += len(lines)
            if lines:
                out.write(("\n".join(lines) + "\n").encode())
            count.show()
    except (pa.ArrowException, UnicodeDecodeError, EOFError, OSError) as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise           # of the system; pyarrow's own, for damaged files, have no number
        raise Failure(DATA, f"{file}: damaged, or not of its kind, near row {row}: {e}") from e


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(a, files):
    import pyarrow as pa
    count = Counter(files, a.quiet)
    temporary = f"{a.out}.tmp-{os.getpid()}"
    kind = {".zst": "zstd", ".gz": "gzip"}.get(os.path.splitext(a.out)[1])
    try:
        with pa.OSFile(temporary, "wb") as plain:
            out = pa.CompressedOutputStream(plain, kind) if kind else plain
            for count.file, file in enumerate(files, 1):
                write_file(out, file, a.text_key, count)
            if kind:
                out.close()
        if count.rows == 0:
            raise Failure(DATA, f"{' '.join(a.path)}: no text in {len(files)} files")
        sync(temporary)
        os.rename(temporary, a.out)
        sync(os.path.dirname(os.path.abspath(a.out)))
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    count.show(last=True)
    return count


def main():
    try:
        a = arguments()
        try:
            import pyarrow  # noqa: F401
        except ImportError as e:
            raise Failure(NOINPUT, f"needs the Python package pyarrow (pip install pyarrow): {e}") from e
        files = choose_files(a)
        count = write(a, files)
    except Failure as e:
        print(f"parquet-to-jsonl: error: {e}", file=sys.stderr)
        return e.code
    except OSError as e:
        print(f"parquet-to-jsonl: error: {e}", file=sys.stderr)
        return NOINPUT if isinstance(e, (FileNotFoundError, PermissionError)) else IO
    except KeyboardInterrupt:
        print("parquet-to-jsonl: stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{a.out}: {count.rows} documents, {count.bytes} bytes of text, from {len(files)} file{'s' if len(files) > 1 else ''}")
    for n, what in ((count.empty, "empty"), (count.nul, "with a NUL character")):
        if n:
            print(f"left out: {n} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
