/* threads.c - number of threads, and their cores. */
#include "base/base.h"

#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int the_threads = 1;

int mu_threads(void) { return the_threads; }

void mu_threads_set(int n) {
    MU_CHECK(n >= 1, "%d threads requested, at least 1 needed", n);
    the_threads = n;
    omp_set_dynamic(0);
    omp_set_num_threads(n);
}

int mu_cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

/* Whether the user chose a binding for mpirun, which is then kept. */
static bool binding_was_chosen(void) {
    static const char *const names[] = {
        "OMPI_MCA_hwloc_base_binding_policy",    "OMPI_MCA_hwloc_base_cpu_list",
        "PRTE_MCA_hwloc_default_binding_policy", "OMPI_MCA_rmaps_base_mapping_policy",
        "PRTE_MCA_rmaps_default_mapping_policy", "SLURM_CPU_BIND_TYPE"
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return true;
    return false;
}

/* Name and parent of a process. */
static bool read_process(pid_t pid, char name[64], pid_t *parent) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    long ppid = 0;
    name[0] = '\0';
    while (fgets(line, sizeof line, f)) {
        sscanf(line, "Name: %63s", name);
        sscanf(line, "PPid: %ld", &ppid);
    }
    fclose(f);
    *parent = (pid_t)ppid;
    return true;
}

void mu_host_name(char host[MU_HOST_NAME]) {
    memset(host, 0, MU_HOST_NAME);
    gethostname(host, MU_HOST_NAME - 1);
}

/* The launcher among this process's ancestors; 0 when there is none. */
long mu_launcher(void) {
    static const char *const names[] = {
        "mpirun", "mpiexec", "orterun", "orted", "prterun", "prted", "prte"
    };
    pid_t pid = getppid();
    for (int up = 0; up < 16 && pid > 1; up++) {
        char name[64];
        pid_t parent;
        if (!read_process(pid, name, &parent)) return 0;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (!strcmp(name, names[i])) return pid;
        pid = parent;
    }
    return 0;
}

bool mu_output_is_terminal(void) {
    pid_t pid = (pid_t)mu_launcher();
    if (!pid) return isatty(STDOUT_FILENO);
    char path[64], target[128];
    snprintf(path, sizeof path, "/proc/%ld/fd/1", (long)pid);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0) return false;
    target[n] = '\0';
    return !strncmp(target, "/dev/pts/", 9) || !strncmp(target, "/dev/tty", 8);
}

/* The cores that the user allows the job on this node: the launcher's. */
static bool launcher_cores(cpu_set_t *cores) {
    pid_t pid = (pid_t)mu_launcher();
    return pid && sched_getaffinity(pid, sizeof *cores, cores) == 0;
}

/* Cores first .. first + count - 1 of `allowed`. */
static cpu_set_t part_of(const cpu_set_t *allowed, int first, int count) {
    cpu_set_t mine;
    CPU_ZERO(&mine);
    for (int core = 0, seen = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, allowed)) {
            if (seen >= first && seen < first + count) CPU_SET(core, &mine);
            seen++;
        }
    return mine;
}

int mu_cores_share(int local_rank, int local_size, int wanted) {
    cpu_set_t allowed, mine;
    bool launched = launcher_cores(&allowed);
    if (!launched || binding_was_chosen()) {
        bool bound = launched && mu_cores() < CPU_COUNT(&allowed);
        int share = bound ? mu_cores() : mu_cores() / local_size;
        return wanted ? wanted : share > 0 ? share : 1;
    }
    int n = CPU_COUNT(&allowed);
    int first = (int)((int64_t)n * local_rank / local_size),
        count = (int)((int64_t)n * (local_rank + 1) / local_size) - first;
    bool fits = n >= local_size && (wanted ? wanted : 1) <= count;
    mine = fits ? part_of(&allowed, first, count) : allowed; /* more threads than cores: left to the scheduler */
    sched_setaffinity(0, sizeof mine, &mine);
    return wanted ? wanted : n >= local_size ? count : 1;
}
