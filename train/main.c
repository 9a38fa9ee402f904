/* main.c - the program: help texts, the table of sub-commands, start and exit. */
#include "train/train.h"

#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *usage, *what;
} command;
static const command commands[] = {
    { "train", mu_cmd_train, "CONFIG [section.key=value ...] [--resume auto|never|PATH] [--fork PATH | --init-from PATH] [--record-routing FILE.h5] [--replay-routing FILE.h5]"
      " [--dry-run [--ranks N]]",
      "Trains the model that CONFIG (a YAML file) describes; start it with mpirun for several ranks.\n\n"
      "  --resume auto    (default) resume from the newest valid checkpoint of run.dir, or start a new run\n"
      "  --resume never   error if run.dir already holds a run\n"
      "  --resume PATH    resume from this checkpoint, or from the newest of that run\n"
      "  --fork PATH      a new run in run.dir, from this checkpoint or the newest of that run: with its weights, optimizer\n"
      "                   state and step, and other data, seed or options; where run.dir holds a checkpoint, that is resumed\n"
      "  --init-from PATH a new run in run.dir with the weights and the architecture of a run, a checkpoint or a folder of\n"
      "                   safetensors (docs/running.md); optimizer state, step and data are new; where run.dir holds a\n"
      "                   checkpoint, that is resumed\n"
      "  --record-routing FILE.h5   write the experts of every token of each step (docs/experts.md)\n"
      "  --replay-routing FILE.h5   give the tokens of each step the experts of such a record\n"
      "  --dry-run        print the resolved configuration, parameters, FLOPs, memory per rank and the placement\n"
      "                   of experts, and exit; texts need not exist\n"
      "  --ranks N        with --dry-run: plan for N ranks, without mpirun\n\n"
      "USR1 or USR2 (to mpirun) makes it write a checkpoint and exit with 75; the same command resumes.\n"
      "`muster --help-config` lists every configuration key." },
    { "eval", mu_cmd_eval,
      "PATH [--mask LAYER:EXPERT,...] [--force LAYER:EXPERT,...] [--record-routing FILE.h5] [--replay-routing FILE.h5]"
      " [section.key=value ...]",
      "Validation loss and bits per byte of every domain. PATH is a run, a checkpoint or a folder of Hugging Face's files\n"
      "(which needs data.train and takes train.seq_len). Overrides may name texts that have moved\n"
      "(data.train='[{domain: latin, path: elsewhere/latin}]'), data.val_fraction, train.eval_sequences,\n"
      "train.device, train.dtype and train.threads.\n\n"
      "  --mask LAYER:EXPERT,...    no token has these experts: the next best are chosen (docs/experts.md)\n"
      "  --force LAYER:EXPERT,...   every token has these experts among its top_k\n"
      "  --record-routing FILE.h5   write the experts of every token in each MoE layer to a new file\n"
      "  --replay-routing FILE.h5   give every token the experts of a record of the same evaluation" },
    { "generate", mu_cmd_generate,
      "PATH --prompt TEXT [--tokens N] [--temperature X] [--top-p X] [--seed N] [--show-experts] [--no-cache]"
      " [--mask LAYER:EXPERT,...] [--force LAYER:EXPERT,...] [section.key=value ...]",
      "Continues the prompt, with the model of a run, a checkpoint or a folder of Hugging Face's files. The text goes\n"
      "to stdout, timing to stderr. Keys and values of earlier tokens are kept in a KV cache, so each new token costs one\n"
      "pass over that token alone. The context is at most model.max_seq_len tokens: when it is full, its last half is\n"
      "kept and recomputed once.\n\n"
      "  --tokens N        tokens to add (default 200)\n"
      "  --temperature X   0: greedy (most likely token); 1 (default): sample from the model's distribution\n"
      "  --top-p X         sample from the most likely tokens with total probability X (default 1)\n"
      "  --seed N          random seed of sampling (default 1)\n"
      "  --show-experts    show the experts of each token in each MoE layer\n"
      "  --no-cache        recompute the whole context for each new token: slow, the same text\n"
      "  --mask LAYER:EXPERT,...    no token has these experts: the next best are chosen (docs/experts.md)\n"
      "  --force LAYER:EXPERT,...   every token has these experts among its top_k\n\n"
      "Overrides may be train.device, train.dtype and train.threads." },
    { "stats", mu_cmd_stats, "PATH DOMAIN=PATH ... [section.key=value ...]",
      "What the experts do with texts, without training: per domain the loss, the load of every expert, which experts\n"
      "it uses more than others do, what it loses without them (criticality), and how alike experts are. A path is one\n"
      "that data.train takes (texts, a token file, `synthetic`); all of a text is counted, and criticality is measured on\n"
      "stats.probe_tokens of it. Works on several ranks, too (mpirun).\n\n"
      "Overrides may be stats.probe_tokens, data.text_key, train.device, train.dtype and train.threads." },
    { "inspect", mu_cmd_inspect, "RUN_OR_CHECKPOINT [--state]",
      "Shows a run (state, last losses, checkpoints) and its newest checkpoint, or the given one: configuration,\n"
      "parameters, shards, totals of its state arrays, and expert load.\n\n"
      "  --state    list every array: name, type, shape, sharded (an expert's, written by the rank that holds it) or\n"
      "             replicated (written by rank 0 for all), bytes" },
    { "verify", mu_cmd_verify, "RUN_OR_CHECKPOINT",
      "Checks manifest, hashes, shapes and value ranges of one checkpoint, or of all checkpoints of a run, on one\n"
      "rank. Exit code 65 when any is damaged." },
    { "report", mu_cmd_report, "RUN [--out FILE.html] [--no-texts]",
      "Writes one page about a run, running or not: what it is, a diagnosis in words, losses per domain, load of every\n"
      "expert, which expert serves which domain, states over time. The page needs no network and no scripts; docs/report.md\n"
      "explains each picture.\n\n"
      "  --out FILE.html   the file (default RUN/report.html); only a page of muster is replaced\n"
      "  --no-texts        do not run the newest checkpoint on a text of each domain (large models)" },
    { "compare", mu_cmd_compare, "RUN RUN ... [--out FILE.html]",
      "Writes one page about several runs: options that differ, losses against steps, tokens and seconds, domains,\n"
      "balance, states of the experts.\n\n"
      "  --out FILE.html   the file (default compare.html); only a page of muster is replaced" },
    { "watch", mu_cmd_watch, "RUN",
      "Shows a run in the terminal and draws it again each second while it goes on: progress, losses, load and state of\n"
      "every expert, last events; q ends it. Into a pipe it prints the same once. Colours unless NO_COLOR is set;\n"
      "blocks where the locale is UTF-8, else ASCII." },
    { "selftest", mu_cmd_selftest, "[train.device=D] [train.dtype=T] [train.threads=N]",
      "Checks this build on this machine in under a minute, one line per check: the value and gradient of every\n"
      "balancing term, the same gradients for any split of a batch (over ranks, too, under mpirun), the device against\n"
      "double precision, batch invariance, a checkpoint written and resumed, and the speed. Exit code 70 when any fails." },
    { "train-tokenizer", mu_cmd_train_tokenizer, "--vocab-size N --out tokenizer.json [--pattern NAME] [--min-frequency N] [--special TOKEN ...]"
      " [--text-key KEY] [--threads N] TEXT ...",
      "Trains a byte-level BPE tokenizer on texts, folders or files as in data.train, and writes its tokenizer.json, for muster\n"
      "and Hugging Face. The result is that of Hugging Face's trainer, whatever the number of threads (docs/tokenizers.md).\n"
      "An existing tokenizer is replaced; any other file is left alone.\n\n"
      "  --vocab-size N      ids: special tokens, 256 bytes, merges\n"
      "  --pattern NAME      how texts are split into pieces, in which tokens are merged: gpt2 (default), cl100k, qwen2,\n"
      "                      o200k, tekken, deepseek, digits-gpt2\n"
      "  --min-frequency N   pairs of tokens that occur less often are not merged (default 2)\n"
      "  --special TOKEN     a special token, instead of <|endoftext|>; the first ends a document\n"
      "  --text-key KEY      key of the text in the objects of .jsonl and .json files (default text)\n"
      "  --threads N         default: OMP_NUM_THREADS if set, else all cores" },
    { "expert", mu_cmd_expert,
      "list|archive|freeze|restore|reseed|duplicate|prune RUN_OR_CHECKPOINT [LAYER:EXPERT] [--out FOLDER] [--dry-run] [--force] [section.key=value ...]",
      "Looks at the experts of a checkpoint, archives one, or writes a new checkpoint in which some are changed (docs/experts.md). The\n"
      "source is never changed: FOLDER, a new one, gets the checkpoint, archives of what it overwrote, and a configuration with which\n"
      "it trains on.\n\n"
      "  list RUN                 state, load, domains, criticality and archives of every expert\n"
      "  archive RUN L:E          a record of the expert in RUN/archive, or FOLDER: router row, weights, optimizer state, what it knows\n"
      "  freeze RUN L:E           its weights, router row and selection bias do not change in training; --undo: they do again\n"
      "  restore RUN L:E          brings it back from its best record in RUN/archive\n"
      "      --from PATH          an archive file; or a run or checkpoint that still has the expert\n"
      "      --slot L:E           in the place of another expert of the layer: a dead, duplicate or overwritten one\n"
      "      --heal STEPS         then trains it alone for up to 100 steps; written only when its domain is known again and others lose nothing\n"
      "  reseed RUN L:E           a dead expert becomes a split of the busiest one that carries no domain\n"
      "  duplicate RUN L:E        a copy of the expert in the place of a dead one\n"
      "      --slot L:E           that one\n"
      "  prune RUN                removes experts of all MoE layers alike, but not the last carrier of a domain in a layer\n"
      "      --keep N             experts that stay\n"
      "      --by load|criticality   those with the highest load (default), or the highest criticality for any domain\n\n"
      "  --dry-run                write nothing: the validation loss of every domain before and after\n"
      "  --force                  replace or remove experts in any state; for prune: leave a domain out of a table whose expert goes, and, given\n"
      "                           twice, remove the last carrier of a domain\n\n"
      "Overrides may name texts that have moved (data.train), data.val_fraction, train.device, train.dtype and train.threads." },
    { "convert", mu_cmd_convert, "IN OUT --to hf|muster [--dtype fp32|bf16] [--shard-size SIZE]",
      "Writes the weights of IN, a run, a checkpoint or a folder of Hugging Face, in the other format into the new folder OUT\n"
      "(docs/models.md says which models).\n\n"
      "  --to hf           config.json, safetensors and tokenizer, for AutoModelForCausalLM.from_pretrained; what no model\n"
      "                    type of Hugging Face holds is an error that names the option\n"
      "  --to muster       a checkpoint of weights for train --init-from, eval, stats and generate\n"
      "  --dtype D         with --to hf: fp32 (default) or bf16\n"
      "  --shard-size N    with --to hf: largest size of a file of weights (default 5GB)" },
    { "tokenize", mu_cmd_tokenize, "[--tokenizer PATH] [--text-key KEY] [--clusters N [--seed S]] [--threads N] --out FILE.h5 DOMAIN=PATH ...",
      "Writes a token file from texts: per domain a folder of .txt, .jsonl and .json files, each also .gz or .zst, or one such file.\n"
      "An existing token file is replaced, with a note; any other file is left alone.\n"
      "data.train then takes {domain: DOMAIN, path: FILE.h5}.\n\n"
      "  --tokenizer PATH    a tokenizer.json, or the folder that holds one (default bytes)\n"
      "  --text-key KEY      key of the text in the objects of .jsonl and .json files (default text)\n"
      "  --clusters N        texts without labels: the documents of all paths are grouped by what they have in common, and the\n"
      "                      file has the domains cluster-00, the largest, to N - 1; prints what each is, and the lines of\n"
      "                      data.train (docs/tokenizers.md)\n"
      "  --seed S            of the clusters (default 1)\n"
      "  --threads N         default: OMP_NUM_THREADS if set, else all cores; the file is the same" },
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *out) {
    fprintf(out, "muster " MU_VERSION ": trains sparse Mixture-of-Experts language models from scratch\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  muster %s %s\n", commands[i].name, commands[i].usage);
    fprintf(
        out,
        "\n  muster COMMAND --help    help for a command\n"
        "  muster --help-config     every configuration key (--help-config=markdown: as docs/configuration.md)\n"
        "  muster --version\n");
}

static void print_config_help(bool markdown) {
    int n;
    const mu_option *table = mu_config_table(&n);
    mu_options options;
    mu_config config;
    mu_options_init(&options, table, n, &config);
    char *text = mu_options_help(&options, markdown);
    fputs(text, stdout);
    free(text);
    mu_options_free(&options, &config);
}

static const command *find_command(const char *name) {
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++) {
        names[i] = commands[i].name;
        if (!strcmp(name, commands[i].name)) return &commands[i];
    }
    const char *near = mu_suggest(name, names, N_COMMANDS);
    mu_error e;
    mu_error_set(&e, MU_STATUS_USAGE, "unknown command \"%s\"%s%s%s; `muster --help` lists all commands", name,
                 near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    mu_report_error(&e, 0);
    return NULL;
}

/* Checks that standard output was written: the disk may be full. */
static int finish(int code) {
    bool lost = fflush(stdout) != 0;
    lost |= ferror(stdout) != 0;
    if (lost && mu_messages_rank() == 0) fprintf(stderr, "muster: error: standard output could not be written\n");
    return lost && code == MU_STATUS_OK ? MU_STATUS_IO : code;
}

/* Finds the program that checks HDF5 files first (train/probe/): beside this one, or where it is installed. */
static void find_probe(void) {
    static const char *const folders[] = { "", MUSTER_LIBEXEC "/" };
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    while (n > 0 && self[n - 1] != '/') n--;
    for (size_t i = 0; n > 0 && i < sizeof folders / sizeof *folders; i++) {
        char *path = mu_format("%.*s%smuster-probe-hdf5", (int)n, self, folders[i]);
        bool found = access(path, X_OK) == 0;
        if (found) mu_store_set_helper(path);
        free(path);
        if (found) return;
    }
    const char *rank = getenv("PMIX_RANK");
    if (!rank || !strcmp(rank, "0"))
        mu_log(MU_LOG_WARNING, "muster-probe-hdf5, which checks HDF5 files in a process of its own, is neither beside muster nor in "
               MUSTER_LIBEXEC ": a malicious HDF5 file may crash muster");
}

/* For a process that no launcher started: keeps Open MPI 4 from starting a daemon for it. With the daemon one run in
 * 2000 crashed on a busy machine: the daemon's last event came while MPI_Finalize unloaded its handler. Without the
 * daemon all such processes would share one session directory; nothing needs that, so it is not created. */
static void run_alone(void) {
    static const char *const launched[] = { "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID" };
    for (size_t i = 0; i < sizeof launched / sizeof *launched; i++)
        if (getenv(launched[i])) return;
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    setenv("OMPI_MCA_orte_create_session_dirs", "0", 0);
}

int main(int argc, char **argv) {
    setlocale(LC_ALL, "C");
    unsetenv("HDF5_USE_FILE_LOCKING"); /* the store locks nothing (base/store.c), and this would overrule it */
    run_alone();
    signal(SIGXFSZ, SIG_IGN); /* exceeding a file-size limit is a write error, not fatal */
    mu_messages_start();
    const char *first = argc > 1 ? argv[1] : "";
    bool help = !strcmp(first, "--help") || !strcmp(first, "-h") || !strcmp(first, "help");
    if (help && argc == 2) return print_usage(stdout), finish(0);
    if (!strcmp(first, "--version"))
        return printf("muster " MU_VERSION " (%s)\n", mu_dist_has_mpi() ? mu_dist_library() : "without MPI"),
               0;
    if (!strcmp(first, "--help-config")) return print_config_help(false), finish(0);
    if (!strcmp(first, "--help-config=markdown")) return print_config_help(true), finish(0);
    if (argc < 2) return print_usage(stderr), MU_STATUS_USAGE;
    const command *c = find_command(help ? argv[2] : first);
    if (!c) return MU_STATUS_USAGE;
    for (int i = 2; i < argc; i++)
        if (help || !strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return printf("muster %s %s\n\n%s\n", c->name, c->usage, c->what), 0;
    find_probe();
    int code = c->run(argc, argv);
    if (code == MU_STATUS_USAGE && mu_messages_rank() == 0)
        fprintf(stderr, "usage: muster %s %s\n", c->name, c->usage);
    return finish(code);
}
