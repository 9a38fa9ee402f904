/* Whole configurations: a table of bad ones, each with the words its message must contain, and valid ones
 * whose values are checked. */
#include "train/config.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define DIR "run.dir=runs/t"
#define DATA "data.train=[{domain: d, path: synthetic}]"

static char *const enough[] = { (char *)DIR, (char *)DATA };      /* the minimal complete configuration */

/* A file f.yaml, then overrides; DIR and DATA come first unless `bare`. `lines` errors are expected, so that
 * one mistake does not cause follow-up errors. */
typedef struct {
    const char *name, *yaml;
    int lines;
    const char *words[4];
    const char *overrides[4];
    int ranks;                  /* 0: one */
    bool bare;
    mu_status status;           /* 0: MU_STATUS_CONFIG */
} bad_case;

static const bad_case cases[] = {
    /* the shape of the file */
    { "unknown section", "modle: {num_layers: 2}", 1, .words = { "f.yaml:1:1: unknown section 'modle'",
      "did you mean 'model'?" } },
    { "far section", "colours: {red: 2}", 1, .words = { "f.yaml:1:1: unknown section 'colours'",
      "the sections are run, model, moe" } },
    { "unknown key", "model:\n  hiden_size: 64", 1, .words = { "f.yaml:2:3: unknown key 'hiden_size'",
      "did you mean 'hidden_size'?" } },
    { "far key", "log:\n  colour: 64", 1, .words = { "f.yaml:2:3: unknown key 'colour'",
      "its keys are every, progress" } },
    { "key of another section", "model:\n  num_experts: 4", 1, .words = { "f.yaml:2:3",
      "'num_experts' belongs to section moe" } },
    { "near a key of another section", "model:\n  num_expert: 4", 1, .words = { "f.yaml:2:3",
      "did you mean 'num_experts' of section moe?" } },
    { "key at the margin", "moe:\n  top_k: 1\n  norm_topk_prob: false\nnum_experts: 4", 1,
      .words = { "f.yaml:4:1: 'num_experts' is not a section", "section moe" } },
    { "dotted key", "moe.top_k: 3", 1, .words = { "f.yaml:1:1: 'moe.top_k'", "write 'moe:'", "'top_k: ...'" } },
    { "duplicate key", "moe:\n  top_k: 3\n  top_k: 4", 1,
      .words = { "f.yaml:3:3: moe.top_k appears twice, first in line 2" } },
    { "duplicate section", "moe:\n  top_k: 3\noptim: {lr: 1}\nmoe:\n  num_experts: 4", 1,
      .words = { "f.yaml:4:1: section moe appears twice, first in line 1" } },
    { "empty section", "moe:\noptim: {lr: 1}", 1, .words = { "f.yaml:1:5: section moe is empty" } },
    { "section of a scalar", "moe: 8", 1, .words = { "f.yaml:1:6: section moe must be a map" } },
    { "section of a list", "moe: [8]", 1, .words = { "f.yaml:1:6: section moe must be a map" } },
    { "root list", "- moe\n- optim", 1, .words = { "f.yaml:1:1: a configuration is a map of sections" } },
    { "root scalar", "hello", 1, .words = { "f.yaml:1:1: a configuration is a map of sections" } },
    { "two documents", "moe: {top_k: 3}\n---\nmoe: {top_k: 4}", 1,
      .words = { "f.yaml:2:1: a second YAML document" } },
    { "anchor", "moe:\n  top_k: &k 3", 1, .words = { "f.yaml:2:10: anchors" } },
    { "alias", "moe:\n  top_k: *k", 1, .words = { "f.yaml:2:10: aliases" } },
    { "tag", "moe:\n  top_k: !!int 3", 1, .words = { "f.yaml:2:10: tags" } },
    { "merge key", "moe:\n  <<: {top_k: 3}", 1, .words = { "f.yaml:2:3: merge keys" } },
    { "key of a list", "moe:\n  [a]: 3", 1, .words = { "f.yaml:2:3: a key must be a plain name" } },
    { "too deep", "data: {train: [{domain: {a: {b: c}}}]}", 2,
      .words = { "f.yaml:1:29: lists and maps nested deeper" } },
    { "tab", "moe:\n\ttop_k: 3", 1, .words = { "f.yaml:2:1: YAML: ", "tab" } },
    { "open quote", "run:\n  dir: \"x\n", 1, .words = { "f.yaml:3:1: YAML: ", "begins in line 2" } },
    { "open list", "optim: {betas: [0.9, 0.95}", 1, .words = { "f.yaml:1:26: YAML: " } },
    { "indentation", "moe:\n  top_k: 3\n num_experts: 4", 1,
      .words = { "f.yaml:3:2: YAML: did not find expected key" } },
    { "colon without space", "moe:\n  top_k:3", 1, .words = { "f.yaml:2:3: section moe must be a map" } },
    { "latin-1", "run: {dir: caf\xE9}", 1, .words = { "f.yaml:1:15: byte 0xe9 is not UTF-8" } },
    { "control character", "run: {dir: \x02}", 1, .words = { "f.yaml:1:12: control character 0x02" } },
    /* integers */
    { "1e6", "train:\n  steps: 1e6", 1,
      .words = { "f.yaml:2:10: train.steps: '1e6' is not an integer (write 1000000)",
      "an integer from 1 to 1000000000" } },
    { "1_000", "train: {steps: 1_000}", 1, .words = { "f.yaml:1:16: train.steps: '1_000'", "(write 1000)" } },
    { "hexadecimal", "train: {steps: 0x10}", 1, .words = { "(write 16)" } },
    { "leading zero", "train: {steps: 010}", 1, .words = { "(write 10)" } },
    { "plus", "train: {steps: +10}", 1, .words = { "(write 10)" } },
    { "letters after", "train: {steps: 10abc}", 1, .words = { "'abc' after the number" } },
    { "1.0", "train: {steps: 1.0}", 1, .words = { "(write 1)" } },
    { "fraction", "train: {steps: 1.5}", 1, .words = { "a whole number is needed" } },
    { "quoted integer", "train: {steps: '10'}", 1, .words = { "f.yaml:1:16: train.steps: '10' is quoted" } },
    { "empty integer", "train:\n  steps:\n  seq_len: 8", 1, .words = { "train.steps: the value is empty" } },
    { "null integer", "train: {steps: ~}", 1, .words = { "'~' is not an integer" } },
    { "list for integer", "train: {steps: [10]}", 1, .words = { "f.yaml:1:16: train.steps: a list is given" } },
    { "map for integer", "train:\n  steps:\n    a: 3", 1,
      .words = { "f.yaml:3:5: train.steps: a map is given" } },
    { "zero steps", "train: {steps: 0}", 1, .words = { "0 is out of range",
      "an integer from 1 to 1000000000" } },
    { "negative", "model: {num_layers: -1}", 1, .words = { "-1 is out of range", "from 1 to 1024" } },
    { "beyond 64 bits", "run: {seed: 18446744073709551616}", 1, .words = { "out of range",
      "9007199254740992" } },
    { "beyond 53 bits", "run: {seed: 9007199254740993}", 1, .words = { "9007199254740993 is out of range" } },
    { "too many experts", "moe: {num_experts: 65537}", 1,
      .words = { "moe.num_experts: 65537 is out of range", "0 to 65536" } },
    /* numbers */
    { "nan", "optim:\n  lr: nan", 1,
      .words = { "f.yaml:2:7: optim.lr: 'nan' is not a number (not a finite number)", "0 to 1000" } },
    { ".nan", "optim: {lr: .nan}", 1, .words = { "not a finite number" } },
    { "inf", "optim: {lr: inf}", 1, .words = { "not a finite number" } },
    { "-.inf", "optim: {lr: -.inf}", 1, .words = { "not a finite number" } },
    { "1e999", "optim: {lr: 1e999}", 1, .words = { "1e999 is too large" } },
    { "1e-999", "optim: {lr: 1e-999}", 1, .words = { "1e-999 is too small" } },
    { "trailing junk", "optim: {lr: 3e-4x}", 1, .words = { "'x' after the number" } },
    { "decimal comma", "optim:\n  lr: 0,001", 1, .words = { "no commas" } },
    { "point first", "optim: {lr: .001}", 1, .words = { "(write 0.001)" } },
    { "point last", "optim: {grad_clip: 1.}", 1, .words = { "(write 1.0)" } },
    { "quoted number", "optim: {lr: \"1e-3\"}", 1, .words = { "is quoted" } },
    { "negative rate", "optim: {lr: -1e-3}", 1, .words = { "-1e-3 is out of range" } },
    { "share over one", "data: {val_fraction: 0.95}", 1,
      .words = { "data.val_fraction: 0.95 is out of range", "0 to 0.9" } },
    { "word for number", "optim: {lr: fast}", 1, .words = { "'fast' is not a number" } },
    /* booleans and choices */
    { "yes", "model: {qk_norm: yes}", 1,
      .words = { "f.yaml:1:18: model.qk_norm: 'yes' is not a boolean (write true)" } },
    { "maybe", "model: {qk_norm: maybe}", 1, .words = { "'maybe' is not a boolean", "true or false" } },
    { "False", "model: {qk_norm: False}", 1, .words = { "(write false)" } },
    { "1 for true", "model: {qk_norm: 1}", 1, .words = { "(write true)" } },
    { "quoted boolean", "model: {qk_norm: 'true'}", 1, .words = { "is quoted" } },
    { "near choice", "moe: {score_func: sigmod}", 1,
      .words = { "f.yaml:1:19: moe.score_func: 'sigmod' is unknown; did you mean 'sigmoid'?" } },
    { "far choice", "optim: {schedule: stairs}", 1, .words = { "'stairs' is unknown",
      "cosine, linear, wsd or constant" } },
    { "list for choice", "optim: {schedule: [cosine]}", 1, .words = { "a list is given" } },
    { "near balance", "moe:\n  balance: [aux_loss, expert_bais]", 1,
      .words = { "f.yaml:2:23: moe.balance: 'expert_bais'", "did you mean 'expert_bias'?" } },
    { "none and more", "moe: {balance: [none, aux_loss]}", 1,
      .words = { "moe.balance: 'none' cannot be combined" } },
    { "twice", "moe: {balance: [aux_loss, aux_loss]}", 1,
      .words = { "f.yaml:1:27: moe.balance: 'aux_loss' appears twice" } },
    { "empty balance", "moe: {balance: []}", 1, .words = { "the list is empty" } },
    { "map for balance", "moe: {balance: {aux_loss: 0.1}}", 1, .words = { "a map is given" } },
    { "unknown device", "train: {device: gpu}", 1, .words = { "'gpu' is unknown; did you mean 'cuda'?", "auto, cpu, cuda, cpu-avx512, cpu-avx2, cpu-base, ref or guarded" } },
    { "bf16 on the reference", "train: {device: ref, dtype: bf16}", 1, .words = { "dtype", "auto, cpu or cuda" } },
    { "one beta", "optim: {betas: [0.9]}", 1,
      .words = { "f.yaml:1:16: optim.betas: the list has 1 value, not 2" } },
    { "three betas", "optim: {betas: [0.9, 0.95, 0.99]}", 1, .words = { "has 3 values, not 2" } },
    { "one number for betas", "optim: {betas: 0.9}", 1, .words = { "a single value is given" } },
    { "beta of one", "optim: {betas: [0.9, 1.0]}", 1,
      .words = { "f.yaml:1:22: optim.betas: 1.0 is out of range" } },
    /* texts and domains */
    { "list for text", "run: {dir: [a]}", 1, .words = { "run.dir: a list is given" }, .overrides = { DATA },
      .bare = true },
    { "data as text", "data: {train: texts}", 1, .words = { "f.yaml:1:15: data.train: a list is needed" },
      .overrides = { DIR }, .bare = true },
    { "data as map", "data: {train: {domain: a, path: synthetic}}", 1,
      .words = { "a list is needed, each item a map" }, .overrides = { DIR }, .bare = true },
    { "no data in list", "data: {train: []}", 1, .words = { "data.train: the list is empty" },
      .overrides = { DIR }, .bare = true },
    { "domain without path", "data: {train: [{domain: a}]}", 1,
      .words = { "f.yaml:1:16: data.train: path is missing" }, .overrides = { DIR }, .bare = true },
    { "domain without name", "data: {train: [{path: synthetic}]}", 1, .words = { "domain is missing" },
      .overrides = { DIR }, .bare = true },
    { "domain name", "data: {train: [{domain: a/b, path: synthetic}]}", 1,
      .words = { "f.yaml:1:25: data.train: 'a/b' is not a valid domain name" }, .overrides = { DIR }, .bare = true },
    { "weight of zero", "data: {train: [{domain: a, path: synthetic, weight: 0}]}", 1,
      .words = { "greater than 0" }, .overrides = { DIR }, .bare = true },
    { "weight of a word", "data: {train: [{domain: a, path: synthetic, weight: x}]}", 1,
      .words = { "'x' is not a number" }, .overrides = { DIR }, .bare = true },
    { "domain twice",
      "data:\n  train:\n    - {domain: a, path: synthetic}\n    - {domain: a, path: synthetic}", 1,
      .words = { "f.yaml:4:7: data.train: domain 'a' appears twice" }, .overrides = { DIR }, .bare = true },
    { "key of a domain", "data: {train: [{domain: a, paht: synthetic}]}", 1,
      .words = { "f.yaml:1:28: data.train: unknown key 'paht'; did you mean 'path'?" }, .overrides = { DIR },
      .bare = true },
    { "a phase's domain", "data:\n  train: [{domain: latin, path: synthetic}]\n  phases:\n    - mix: {latin: 1,\n            latn: 2}", 1,
      .words = { "f.yaml:5:13: data.phases: phase 1 names domain 'latn', which is not in data.train; did you mean 'latin'?" },
      .overrides = { DIR }, .bare = true },
    { "phases of a negative weight", "data:\n  phases:\n    - mix: {d: -1}", 1, .words = { "f.yaml:3:16: data.phases: -1 is out of range" } },
    { "overridden texts", "data: {phases: [{mix: {d: 1}}]}", 1, .words = { "f.yaml:1:24: data.phases: phase 1 names domain 'd'" },
      .overrides = { DIR, "data.train=[{domain: other, path: synthetic}]" }, .bare = true },
    { "overridden phases", "", 1, .words = { "command line: data.phases: phase 2 names domain 'e', which is not in data.train" },
      .overrides = { "data.phases=[{until_step: 3, mix: {d: 1}}, {mix: {e: 1}}]" } },
    /* several options at once */
    { "nothing given", "", 2, .words = { "f.yaml: run.dir: must be given",
      "data.train: must be given, for example `train: [{domain:", "scripts/get-texts.sh",
      "`path: synthetic`" }, .bare = true },
    { "empty dir", "run: {dir: \"\"}", 1, .words = { "f.yaml:1:12: run.dir: must be given" },
      .overrides = { DATA }, .bare = true },
    { "heads", "model: {hidden_size: 100, num_heads: 3}", 1,
      .words = { "f.yaml:1:22: model.hidden_size: 100 is not divisible by num_heads 3; 99 or 102" } },
    { "more heads than width", "model: {hidden_size: 2, num_heads: 3}", 1, .words = { "3 or 6 would be" } },
    { "odd derived head", "model: {hidden_size: 9, num_heads: 3}", 1,
      .words = { "9 / num_heads 3 = 3 is odd" } },
    { "odd head", "model: {head_dim: 7}", 1, .words = { "f.yaml:1:19: model.head_dim: 7 is odd" } },
    { "kv heads", "model: {num_heads: 8, num_kv_heads: 3}", 1,
      .words = { "f.yaml:1:37: model.num_kv_heads: 3 is not a divisor of num_heads 8; 2 would be" } },
    { "more kv heads", "model: {num_kv_heads: 8}", 1,
      .words = { "8 is not a divisor of num_heads 4; 4 would be" } },
    { "top_k", "moe: {num_experts: 4, top_k: 5}", 1,
      .words = { "f.yaml:1:30: moe.top_k: 5 is more than num_experts 4" } },
    { "top_k against a default", "moe: {num_experts: 1, norm_topk_prob: false}", 1,
      .words = { "f.yaml: moe.top_k: 2 is more than num_experts 1" } },
    { "top 1 normalised", "moe: {top_k: 1}", 1,
      .words = { "moe.top_k: 1 with norm_topk_prob true: the gate would always be 1", "no gradient",
      "`norm_topk_prob: false`" } },
    { "no MoE layer is left", "moe: {first_k_dense: 4}", 1,
      .words = { "f.yaml:1:22: moe.first_k_dense: 4 leaves no MoE layer among 4 layers", "moe.num_experts: 0" } },
    { "no n-th layer", "moe: {moe_layer_freq: 5}", 1, .words = { "f.yaml:1:23: moe.moe_layer_freq: 5 leaves no MoE layer among 4 layers" } },
    { "experts over ranks", "moe: {num_experts: 6}\nparallel: {ep: 4}", 1,
      .words = { "f.yaml:2:16: parallel.ep: 4 does not divide moe.num_experts 6" }, .ranks = 4 },
    { "ranks over ep", "parallel: {ep: 4}", 1,
      .words = { "parallel.ep: 4 does not divide the number of ranks, 6", "mpirun -n 8" },
      .overrides = { "train.global_batch_size=36" }, .ranks = 6 },
    { "ep on one rank", "parallel: {ep: 2}", 1, .words = { "2 does not divide the number of ranks, 1",
      "mpirun -n 2" } },
    { "ep without experts", "moe: {num_experts: 0}\nparallel: {ep: 2}", 1,
      .words = { "f.yaml:2:16: parallel.ep: 2 needs experts" }, .ranks = 2 },
    { "first_k_dense", "moe: {first_k_dense: 5}", 1,
      .words = { "f.yaml:1:22: moe.first_k_dense: 5 is more than model.num_layers 4" } },
    { "seq_len", "train: {seq_len: 257}", 1,
      .words = { "f.yaml:1:18: train.seq_len: 257 is more than model.max_seq_len 256" } },
    { "min_lr", "optim: {lr: 1e-3, min_lr: 1e-2}", 1,
      .words = { "f.yaml:1:27: optim.min_lr: 0.01 is more than lr 0.001" } },
    { "warmup", "train: {steps: 50}\noptim: {warmup_steps: 100}", 1,
      .words = { "f.yaml:2:23: optim.warmup_steps: 100 is more than train.steps 50" } },
    { "batch over ranks", "train: {global_batch_size: 10}", 1,
      .words = { "f.yaml:1:28: train.global_batch_size: 10 is not a multiple of 4 ranks; 8 and 12 are the nearest that fit" }, .ranks = 4 },
    { "batch over micro-batches", "train: {global_batch_size: 30, micro_batch_size: 4}", 1,
      .words = { "of 2 ranks x micro_batch_size 4 = 8; 24 and 32 are the nearest that fit" }, .ranks = 2 },
    { "batch under ranks", "train: {global_batch_size: 3}", 1, .words = { "; 4 is the nearest that fits" },
      .ranks = 4 },
    { "two rules for the bias", "moe: {balance: [expert_bias, quantile_balancing]}", 1,
      .words = { "f.yaml:1:16: moe.balance: expert_bias and quantile_balancing both set the selection bias" } },
    { "quantiles of forced choices", "moe: {balance: [quantile_balancing], force_skew: true}", 1,
      .words = { "f.yaml:1:16: moe.balance: quantile_balancing needs experts chosen by their scores; it cannot be combined with force_skew" } },
    { "forced both ways", "moe: {force_balanced: true, force_skew: true}", 1,
      .words = { "f.yaml:1:41: moe.force_skew: cannot be combined with force_balanced" } },
    { "forced and forced domains", "moe: {force_balanced: true, force_domains: {d: 1}}", 1,
      .words = { "moe.force_domains: cannot be combined with force_balanced" } },
    { "no such expert", "moe: {force_domains: {d: 8}}", 1,
      .words = { "f.yaml:1:22: moe.force_domains: domain 'd' has expert 8, but num_experts is 8: experts are 0 to 7" } },
    { "no such domain", "data: {train: [{domain: latin, path: here/texts}]}\nmoe: {force_domains: {latni: 0}}", 1,
      .words = { "f.yaml:2:22: moe.force_domains: no domain 'latni' in data.train; did you mean 'latin'?" }, .overrides = { DIR }, .bare = true },
    { "protected domain", "data: {train: [{domain: latin, path: here/texts}]}\nprotect: {domains: [latin, chem]}", 1,
      .words = { "f.yaml:2:20: protect.domains: no domain 'chem' in data.train" }, .overrides = { DIR }, .bare = true },
    { "protected domain of a carrier", "data: {train: [{domain: latin, path: here/texts}]}\nprotect: {carriers: {latni: 0}}", 1,
      .words = { "f.yaml:2:21: protect.carriers: no domain 'latni' in data.train; did you mean 'latin'?" }, .overrides = { DIR }, .bare = true },
    { "a boost without a bias", "protect: {starved_boost: 0.1}", 1,
      .words = { "f.yaml:1:26: protect.starved_boost: raises the selection bias, which is absent without expert_bias; add expert_bias" } },
    { "a boost of a bias that is found anew", "protect: {starved_boost: 0.1}\nmoe: {balance: [quantile_balancing]}", 1,
      .words = { "f.yaml:1:26: protect.starved_boost: raises the selection bias, which quantile_balancing finds anew" } },
    { "re-seeding without states", "protect: {reseed_dead: true}\nstats: {every: 0}", 1,
      .words = { "f.yaml:1:24: protect.reseed_dead: needs the states of experts, but stats.every is 0" } },
    { "no such carrier", "protect: {carriers: {d: 8}}", 1,
      .words = { "f.yaml:1:21: protect.carriers: domain 'd' has expert 8, but moe.num_experts is 8" } },
    { "too few experts left",
      "data: {train: [{domain: a, path: here/texts}, {domain: b, path: here/texts}, {domain: c, path: here/texts}]}\n"
      "moe: {num_experts: 3, force_domains: {a: 0, b: 2}}", 1,
      .words = { "takes 2 of 3 experts, so tokens of any other domain can choose among 1 only, fewer than top_k 2" }, .overrides = { DIR }, .bare = true },
    { "parameters", "moe: {num_experts: 65536, moe_ffn_hidden_size: 1048576}", 1,
      .words = { "model.hidden_size: the model would have about 2.1e+14 parameters, more than 2^40" } },
    { "tokens", "model: {max_seq_len: 16777216}\ntrain: {seq_len: 16777216, global_batch_size: 10000000}", 1,
      .words = { "train.global_batch_size: x seq_len makes 1.7e+14 tokens" } },
    { "rows", "model: {max_seq_len: 16777216}\ntrain: {seq_len: 16777216, global_batch_size: 128}", 1,
      .words = { "train.micro_batch_size: ", "more than 2^31" } },
    /* missing texts */
    { "missing path", "data:\n  train: [{domain: a, path: /nowhere/at/all}]", 1,
      .words = { "f.yaml:2:10: data.train: path '/nowhere/at/all' of domain 'a': No such file" },
      .overrides = { DIR }, .bare = true, .status = MU_STATUS_NOINPUT },
    { "near path", "data: {train: [{domain: a, path: here/texst}]}", 1,
      .words = { "did you mean 'here/texts'?" }, .overrides = { DIR }, .bare = true,
      .status = MU_STATUS_NOINPUT },
    { "home", "data: {train: [{domain: a, path: ~/texst}]}", 1, .words = { "path '/home/of/nobody/texst' of domain 'a': No such file" },
      .overrides = { DIR }, .bare = true, .status = MU_STATUS_NOINPUT },
    { "two missing paths",
      "data: {train: [{domain: a, path: x1}, {domain: b, path: here/texts}, {domain: c, path: x2}]}", 2,
      .words = { "'x1' of domain 'a'", "'x2' of domain 'c'" }, .overrides = { DIR }, .bare = true,
      .status = MU_STATUS_NOINPUT },
    { "missing path and bad value", "data: {train: [{domain: a, path: x1}]}\nmoe: {top_k: 9}", 2,
      .words = { "moe.top_k: 9 is more", "'x1' of domain 'a'" }, .overrides = { DIR }, .bare = true },
    /* overrides */
    { "override of nothing", "", 1,
      .words = { "command line: unknown key 'topk' in section moe; did you mean 'top_k'?" },
      .overrides = { "moe.topk=2" } },
    { "override of another section", "", 1,
      .words = { "command line: unknown key 'lr' in section train; 'lr' belongs to section optim" },
      .overrides = { "train.lr=2" } },
    { "override without value", "", 1, .words = { "command line: moe.top_k: the value is empty" },
      .overrides = { "moe.top_k=" } },
    { "override without equals", "", 1,
      .words = { "command line: 'moe.top_k' is not an option; write section.key=value" },
      .overrides = { "moe.top_k" } },
    { "override without section", "", 1, .words = { "did you mean 'moe.top_k'?" }, .overrides = { "top_k=2" } },
    { "override with dashes", "", 1, .words = { "'--moe.top_k=2' is not an option" },
      .overrides = { "--moe.top_k=2" } },
    { "override out of range", "", 1,
      .words = { "command line: moe.top_k: 0 is out of range; allowed: an integer from 1 to 1024" },
      .overrides = { "moe.top_k=0" } },
    { "override makes a bad pair", "", 1,
      .words = { "command line: moe.top_k: 9 is more than num_experts 8" }, .overrides = { "moe.top_k=9" } },
    { "three bad overrides", "", 3, .words = { "moe.top_k", "moe.num_experts", "optim.lr" },
      .overrides = { "moe.top_k=x", "moe.num_experts=y", "optim.lr=z" } },
    { "file stays wrong", "moe:\n  top_k: 1e1", 1, .words = { "f.yaml:2:10: moe.top_k: '1e1'" },
      .overrides = { "moe.top_k=4" } },
    /* errors that would only follow from others are not shown */
    { "refused value is not compared", "moe: {num_experts: 6_4, top_k: 16}", 1,
      .words = { "moe.num_experts: '6_4'", "(write 64)" } },
    { "misspelt key is not compared", "moe: {num_expert: 64, top_k: 16}", 1,
      .words = { "did you mean 'num_experts'?" } },
    { "misspelt section is not compared", "mo: {num_experts: 64}", 1, .words = { "did you mean 'moe'?" },
      .overrides = { "moe.top_k=16" } },
    { "behind a syntax error", "moe: {top_k: 16}\nrun: {dir: x", 1, .words = { "YAML" },
      .overrides = { "optim.lr=1e-3" }, .bare = true },
    /* everything at once */
    { "all at once",
      "colours: {a: 1}\nmoe:\n  top_k: 1e1\n  lr: 3\n  first_k_dense: 9\ntrain: {seq_len: 512}\ndata: {train: [{domain: d, path: x1}]}\n", 7, .words = { "f.yaml:1:1", "f.yaml:3:10", "f.yaml:4:3", "f.yaml:6:18: train.seq_len" }, .bare = true },
};

static char folder[] = "/tmp/muster-config-XXXXXX";

static int setup(void **state) {
    (void)state;
    setenv("HOME", "/home/of/nobody", 1);
    return !mkdtemp(folder) || chdir(folder) || mkdir("here", 0700) || mkdir("here/texts", 0700);
}

static int teardown(void **state) {
    (void)state;
    unlink("f.yaml");
    return rmdir("here/texts") || rmdir("here") || chdir("/") || rmdir(folder);
}

static void write_file(const char *text) {
    FILE *f = fopen("f.yaml", "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int lines_of(const char *text) {
    int n = *text != '\0';
    for (; *text; text++) n += *text == '\n';
    return n;
}

static void check_bad(const bad_case *t) {
    mu_config c;
    static mu_error e;
    char *overrides[8];
    int n = 0;
    mu_status expected = t->status ? t->status : MU_STATUS_CONFIG;
    write_file(t->yaml);
    for (int i = 0; i < 2 && !t->bare; i++) overrides[n++] = enough[i];
    for (int i = 0; i < 4 && t->overrides[i]; i++) overrides[n++] = (char *)t->overrides[i];
    mu_status status = mu_config_load(&c, "f.yaml", n, overrides, t->ranks ? t->ranks : 1, true, &e);
    if (status != expected || e.status != expected)
        fail_msg("%s: status %d (%d in the error), not %d\n%s", t->name, status, e.status, expected, e.text);
    for (int i = 0; i < 4 && t->words[i]; i++)
        if (!strstr(e.text, t->words[i])) fail_msg("%s: '%s' is not in\n%s", t->name, t->words[i], e.text);
    if (lines_of(e.text) != t->lines) fail_msg("%s: %d lines, not %d\n%s", t->name, lines_of(e.text), t->lines, e.text);
    mu_config_free(&c);
}

static void bad_configurations_are_refused(void **state) {
    (void)state;
    size_t n = sizeof cases / sizeof *cases;
    assert_true(n >= 130);
    for (size_t i = 0; i < n; i++) check_bad(&cases[i]);
}

/* ------------------------------------------------------------------ good ones */

static void load(mu_config *c, const char *yaml, int n, const char **overrides, int ranks) {
    static mu_error e;
    write_file(yaml);
    mu_status status = mu_config_load(c, "f.yaml", n, (char *const *)overrides, ranks, true, &e);
    if (status != MU_STATUS_OK) fail_msg("refused: %s", e.text);
    assert_string_equal(e.text, "");
}

#define MINIMAL "run: {dir: runs/a}\ndata: {train: [{domain: d, path: synthetic}]}\n"

static void defaults_and_derived_values(void **state) {
    (void)state;
    mu_config c;
    load(&c, MINIMAL, 0, NULL, 1);
    assert_string_equal(c.run.dir, "runs/a");
    assert_int_equal(c.model.num_kv_heads, 4);
    assert_int_equal(c.model.head_dim, 64);
    assert_int_equal(c.model.ffn_hidden_size, 2 * 512);
    assert_int_equal(c.moe.balance, MU_BALANCE_GLOBAL_AUX);
    assert_int_equal(c.moe.score_func, MU_MOE_SCORE_SOFTMAX);
    assert_true(c.moe.z_loss_coeff == 0.001 && c.moe.norm_topk_prob && c.optim.lr == 1e-3);
    assert_true(c.optim.betas[0] == 0.9 && c.optim.betas[1] == 0.95);
    assert_int_equal(c.train.steps, 1000);
    assert_int_equal(c.checkpoint.every, 200);
    assert_int_equal(c.log.every, 10);
    mu_config_free(&c);
}

static void dense_and_sigmoid(void **state) {
    (void)state;
    mu_config c;
    /* without experts the moe section is not checked */
    load(&c, MINIMAL "moe: {num_experts: 0, top_k: 1, first_k_dense: 9, force_skew: true, force_balanced: true}\n"
                 "model: {hidden_size: 96, head_dim: 10, num_kv_heads: 1}\n", 0, NULL, 2);
    assert_int_equal(c.model.ffn_hidden_size, 4 * 96);
    assert_int_equal(c.model.head_dim, 10);
    assert_int_equal(c.model.num_kv_heads, 1);
    mu_config_free(&c);
    load(&c, MINIMAL "moe:\n  score_func: sigmoid\n  balance:\n    - expert_bias\n    - seq_aux_loss\n", 0, NULL, 1);
    assert_true(c.moe.z_loss_coeff == 0);
    assert_int_equal(c.moe.balance, MU_BALANCE_BIAS | MU_BALANCE_SEQ_AUX);
    mu_config_free(&c);
    load(&c, MINIMAL "moe: {score_func: sigmoid, z_loss_coeff: 0, balance: none}", 0, NULL, 1);
    assert_int_equal(c.moe.balance, MU_BALANCE_NONE);
    mu_config_free(&c);
    load(&c, MINIMAL "moe: {num_experts: 0, score_func: sigmoid, z_loss_coeff: 0.5}", 0, NULL, 1);
    assert_true(c.moe.z_loss_coeff == 0.5);     /* the user's value is kept, though unused */
    mu_config_free(&c);
    load(&c, MINIMAL "moe: {top_k: 1, norm_topk_prob: false}", 0, NULL, 1);
    mu_config_free(&c);
}

/* Only the last value counts when options are compared. */
static void overrides_win(void **state) {
    (void)state;
    mu_config c;
    const char *overrides[] = { "moe.top_k=4", "moe.top_k=6", "train.global_batch_size=24", "model.num_heads=8",
                                "moe.balance=[aux_loss, expert_bias]",
                                "data.train=[{domain: a, path: here/texts, weight: 2}, {domain: b, path: synthetic}]" };
    load(&c, MINIMAL "moe: {top_k: 99}\nmodel: {num_heads: 7}\nparallel: {ep: 2}\n", 6, overrides, 6);
    assert_int_equal(c.moe.top_k, 6);
    assert_int_equal(c.model.head_dim, 32);
    assert_int_equal(c.train.global_batch_size, 24);
    assert_int_equal(c.moe.balance, MU_BALANCE_AUX | MU_BALANCE_BIAS);
    assert_int_equal(c.data.train.n, 2);
    assert_true(c.data.train.list[0].weight == 2);
    assert_true(mu_options_given(&c.options, "model", "num_heads"));
    assert_false(mu_options_given(&c.options, "model", "num_layers"));
    mu_config_free(&c);
}

/* ~ is expanded in every path of the configuration. */
static void home_is_expanded(void **state) {
    (void)state;
    static const char *const cases[][2] = { { "~", "/home/of/nobody" }, { "~/a b", "/home/of/nobody/a b" }, { "./~a/b", "./~a/b" },
                                            { "a/~/b", "a/~/b" }, { "", "" } };
    mu_config c;
    const char *overrides[] = { "data.train=[{domain: a, path: ~/x/../../../../tmp}]" };
    for (int i = 0; i < 5; i++) {
        char *path;
        assert_int_equal(mu_expand_home(cases[i][0], &path, NULL), MU_STATUS_OK);
        assert_string_equal(path, cases[i][1]);
        free(path);
    }
    write_file("run: {dir: ~/runs/a}\n");
    static mu_error e;
    mu_status status = mu_config_load(&c, "f.yaml", 1, (char *const *)overrides, 1, false, &e);
    if (status != MU_STATUS_OK) fail_msg("%s", e.text);
    assert_string_equal(c.run.dir, "/home/of/nobody/runs/a");
    assert_string_equal(c.data.train.list[0].path, "/home/of/nobody/x/../../../../tmp");
    mu_config_free(&c);
}

/* ~bob is not expanded, nor is ~ without HOME: both are errors, not folder names. */
static void home_is_unknown(void **state) {
    (void)state;
    static const char *const variables[] = { "/home/of/nobody", NULL, "" };
    static const char *const paths[] = { "~bob/runs", "~/runs", "~" };
    mu_config c;
    char *path;
    static mu_error e;
    for (int i = 0; i < 3; i++) {
        if (variables[i]) setenv("HOME", variables[i], 1);
        else unsetenv("HOME");
        const char *wanted = i ? "HOME is not set" : "~USER is not expanded";
        assert_int_equal(mu_expand_home(paths[i], &path, &e), MU_STATUS_USAGE);
        assert_non_null(strstr(e.text, wanted));
        assert_null(path);
        char text[200];
        snprintf(text, sizeof text, "run: {dir: \"%s\"}\ndata: {train: [{domain: a, path: \"%s/x\"}]}\n", paths[i], paths[i]);
        write_file(text);
        assert_int_equal(mu_config_load(&c, "f.yaml", 0, NULL, 1, false, &e), MU_STATUS_CONFIG);
        assert_non_null(strstr(e.text, wanted));
        assert_non_null(strstr(strstr(e.text, wanted) + 1, wanted));        /* both paths */
        mu_config_free(&c);
    }
    setenv("HOME", "/home/of/nobody", 1);
}

/* train.threads decides; without it OMP_NUM_THREADS. */
static void threads_asked_for(void **state) {
    (void)state;
    static const struct { const char *variable; int option, wanted; } cases[] = {
        { NULL, 0, 0 }, { NULL, 3, 3 }, { "2", 0, 2 }, { "2", 3, 3 }, { "4,2", 0, 4 }, { "many", 0, 0 }, { "-1", 0, 0 }, { "", 0, 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mu_train_config cfg = { .threads = cases[i].option };
        if (cases[i].variable) setenv("OMP_NUM_THREADS", cases[i].variable, 1);
        else unsetenv("OMP_NUM_THREADS");
        assert_int_equal(mu_config_threads(&cfg), cases[i].wanted);
    }
    unsetenv("OMP_NUM_THREADS");
}

/* A longer run does not warm up again; values given now are used. */
static void resumed_runs_keep_derived_values(void **state) {
    (void)state;
    mu_config old, now;
    load(&old, MINIMAL "train: {steps: 50}\nmoe: {z_loss_coeff: 0.02}\noptim: {lr: 1e-4}\n", 0, NULL, 1);
    load(&now, MINIMAL "train: {steps: 2000}\noptim: {lr: 1e-3}\n", 0, NULL, 1);
    assert_int_equal(now.optim.warmup_steps, 100);
    mu_config_inherit(&now, &old);
    assert_int_equal(now.optim.warmup_steps, 5);
    assert_true(now.optim.min_lr == 1e-5 && now.moe.z_loss_coeff == 0.02 && now.optim.lr == 1e-3);
    mu_config_free(&now);
    load(&now, MINIMAL "train: {steps: 2000}\noptim: {min_lr: 2e-6, warmup_steps: 7}\nmoe: {z_loss_coeff: 0.001}", 0, NULL, 1);
    mu_config_inherit(&now, &old);
    assert_int_equal(now.optim.warmup_steps, 7);
    assert_true(now.optim.min_lr == 2e-6 && now.moe.z_loss_coeff == 0.001);
    mu_config_free(&now);
    load(&now, MINIMAL "train: {steps: 4}\noptim: {lr: 1e-6}\n", 0, NULL, 1);    /* too small for the old values */
    mu_config_inherit(&now, &old);
    assert_int_equal(now.optim.warmup_steps, 0);
    assert_true(now.optim.min_lr == 1e-7);
    mu_config_free(&now);
    mu_config_free(&old);
}

static void commands_take_some_overrides(void **state) {
    (void)state;
    static const struct { const char *text; bool eval, generate; } uses[] = {
        { "train.device=cpu", true, true }, { "train.threads=2", true, true }, { "train.eval_sequences=3", true, false },
        { "data.train=[]", true, false }, { "data.val_fraction=0.5", true, false }, { "data.tokenizer=bytes", false, false },
        { "moe.balance=none", false, false }, { "train.device", false, false }, { "train.devices=cpu", false, false },
        { "train.steps=3", false, false },
    };
    static mu_error e;
    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++) {
        assert_int_equal(mu_config_check_use(uses[i].text, MU_ON_EVAL, "eval", &e) == MU_STATUS_OK, uses[i].eval);
        assert_int_equal(mu_config_check_use(uses[i].text, MU_ON_GENERATE, "generate", &e) == MU_STATUS_OK, uses[i].generate);
    }
    assert_string_equal(e.text, "train.steps=3: generate accepts only train.device, train.dtype, train.threads;"
                                " all other options come from the checkpoint");
}

static void rates_of_a_constant_schedule(void **state) {
    (void)state;
    mu_config c;
    load(&c, MINIMAL "optim: {schedule: constant, lr: 1e-5}\ntrain: {steps: 10}\n", 0, NULL, 1);
    mu_config_free(&c);
    load(&c, MINIMAL "optim: {lr: 1e-4, warmup_steps: 10}\ntrain: {steps: 10}\n", 0, NULL, 1);
    mu_config_free(&c);
}

/* A partly given schedule derives its other values. */
static void short_and_slow_runs(void **state) {
    (void)state;
    mu_config c;
    load(&c, MINIMAL "train: {steps: 40}\n", 0, NULL, 1);
    assert_int_equal(c.optim.warmup_steps, 4);
    assert_true(c.optim.min_lr == 1e-4);
    mu_config_free(&c);
    load(&c, MINIMAL "optim: {lr: 1e-5}\n", 0, NULL, 1);
    assert_true(fabs(c.optim.min_lr - 1e-6) < 1e-12);
    assert_int_equal(c.optim.warmup_steps, 100);
    mu_config_free(&c);
}

static void no_file_is_needed(void **state) {
    (void)state;
    mu_config c;
    static mu_error e;
    assert_int_equal(mu_config_load(&c, NULL, 2, enough, 1, true, &e), MU_STATUS_OK);
    mu_config_free(&c);
    assert_int_equal(mu_config_load(&c, NULL, 0, NULL, 1, true, &e), MU_STATUS_CONFIG);
    assert_int_equal(lines_of(e.text), 2);
    mu_config_free(&c);
    assert_int_equal(mu_config_load(&c, NULL, 0, NULL, 1, true, NULL), MU_STATUS_CONFIG);
    mu_config_free(&c);
    assert_int_equal(mu_config_load(&c, "f.ymal", 2, enough, 1, true, &e), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, folder));
    assert_non_null(strstr(e.text, "/f.ymal: No such file or directory; did you mean 'f.yaml'?"));
    mu_config_free(&c);
}

/* config.resolved.yaml holds every option, including derived values. */
static void dump_gives_the_same_configuration(void **state) {
    (void)state;
    static const char *const more[] = { "", "moe: {score_func: sigmoid, balance: [expert_bias, seq_aux_loss]}", "moe: {num_experts: 0}",
                                        "model: {init_std: 0.1234567890123456789, rope_theta: 1e6}\nrun: {dir: 'a b: \"c\" é'}\n"
                                        "optim: {eps: 1e-30}\ndata: {train: [{domain: a, path: 'here/texts', weight: 0.1}]}" };
    for (int i = 0; i < 4; i++) {
        mu_config c, d;
        static mu_error e;
        int n;
        const mu_option *rows = mu_config_table(&n);
        char *yaml = i < 3 ? mu_format("%s%s", MINIMAL, more[i]) : mu_strdup(more[i]);
        load(&c, yaml, 0, NULL, 1);
        char *text = mu_options_dump(&c.options, &c);
        mu_status status = mu_config_load_text(&d, "resolved", text, 0, NULL, &e);
        if (status != MU_STATUS_OK) fail_msg("%s\n%s", e.text, text);
        for (int k = 0; k < n; k++) {
            char *left = mu_option_text(&rows[k], &c), *right = mu_option_text(&rows[k], &d);
            assert_string_equal(left, right);
            bool retired = rows[k].use == MU_USE_RETIRED;
            assert_int_equal(mu_options_given(&d.options, rows[k].section, rows[k].key), !retired);
            free(left);
            free(right);
        }
        char *again = mu_options_dump(&d.options, &d);
        assert_string_equal(text, again);
        free(again);
        free(text);
        free(yaml);
        mu_config_free(&c);
        mu_config_free(&d);
    }
}

/* A retired key is still read, and neither written nor shown. */
static void a_retired_option_is_read(void **state) {
    (void)state;
    mu_config c;
    load(&c, MINIMAL "moe: {token_drop_policy: position}", 0, NULL, 1);
    assert_true(mu_options_given(&c.options, "moe", "token_drop_policy"));
    char *texts[] = { mu_options_dump(&c.options, &c), mu_options_help(&c.options, false), mu_options_help(&c.options, true) };
    for (int i = 0; i < 3; i++) {
        assert_null(strstr(texts[i], "token_drop_policy"));
        assert_non_null(strstr(texts[i], "capacity_factor"));
        free(texts[i]);
    }
    mu_config_free(&c);
}

/* The copy in a checkpoint may be read on another machine: other ranks, no texts. */
static void copy_is_read_without_its_world(void **state) {
    (void)state;
    mu_config c;
    static mu_error e;
    const char *text = "run: {dir: a}\nparallel: {ep: 4}\ntrain: {global_batch_size: 7}\n"
                       "data: {train: [{domain: d, path: /nowhere}]}";
    const char *overrides[] = { "train.steps=2000" };
    assert_int_equal(mu_config_load_text(&c, "copy", text, 1, (char *const *)overrides, &e), MU_STATUS_OK);
    assert_int_equal(c.train.steps, 2000);
    mu_config_free(&c);
    assert_int_equal(mu_config_load_text(&c, "copy", "moe: {top_k: 9}", 0, NULL, &e), MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "copy:1:14: moe.top_k: 9 is more than num_experts 8"));
    mu_config_free(&c);
}

/* Every option has a help text, a default that parses, and one place in the structure. */
static void table_is_sound(void **state) {
    (void)state;
    int n;
    const mu_option *rows = mu_config_table(&n);
    assert_true(n > 50);
    assert_string_equal(rows[0].section, "run");
    assert_string_equal(rows[n - 1].section, "log");
    for (int i = 0; i < n; i++) {
        assert_true(strlen(rows[i].help) > 5);
        assert_true(rows[i].offset < sizeof(mu_config));
        for (int k = 0; k < i; k++) {
            assert_true(rows[k].offset != rows[i].offset);
            assert_true(strcmp(rows[k].section, rows[i].section) || strcmp(rows[k].key, rows[i].key));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_sound),
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(defaults_and_derived_values),
        cmocka_unit_test(dense_and_sigmoid),
        cmocka_unit_test(overrides_win),
        cmocka_unit_test(home_is_expanded),
        cmocka_unit_test(home_is_unknown), cmocka_unit_test(threads_asked_for),
        cmocka_unit_test(resumed_runs_keep_derived_values),
        cmocka_unit_test(commands_take_some_overrides),
        cmocka_unit_test(rates_of_a_constant_schedule),
        cmocka_unit_test(short_and_slow_runs), cmocka_unit_test(no_file_is_needed),
        cmocka_unit_test(dump_gives_the_same_configuration), cmocka_unit_test(a_retired_option_is_read),
        cmocka_unit_test(copy_is_read_without_its_world),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
