/* names.cpp - names of kernels, from the program's own symbol table, and the way errors end. */
#include "engine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <map>
#include <memory>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace emu {

std::string text(const char *format, ...) {
    char buffer[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return buffer;
}

void fail(const char *format, ...) {
    char message[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "emulation: %s%s\n", current ? (where(current) + ": ").c_str() : "", message);
    fflush(stderr);
    _exit(70);
}

namespace {

struct Symbol { uint64_t address, size; std::string mangled; };

#ifdef __SANITIZE_ADDRESS__
constexpr int shared_kind = STT_OBJECT;         /* see __shared__ in cuda_runtime.h */
#else
constexpr int shared_kind = STT_TLS;
#endif

/* The functions and the static variables of functions of this program: they are in no dynamic table, so the file
 * itself is read. Kernels, the emulation and the shared variables are in one file, the program. */
struct Object {
    char *base;
    std::string path;
    std::map<uint64_t, Symbol> functions;
    std::vector<Symbol> shared;

    Object() {
        Dl_info info;
        struct stat status;
        if (!dladdr((void *)kernel_name, &info)) fail("the emulation cannot find itself");
        base = (char *)info.dli_fbase;
        path = realpath_of(info.dli_fname);
        int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0 || fstat(file, &status) != 0) fail("cannot read the symbols of %s", path.c_str());
        const char *bytes = (const char *)mmap(nullptr, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        close(file);
        if (bytes == MAP_FAILED) fail("cannot map %s", path.c_str());
        const auto *header = (const Elf64_Ehdr *)bytes;
        const auto *sections = (const Elf64_Shdr *)(bytes + header->e_shoff);
        for (int i = 0; i < header->e_shnum; i++)
            if (sections[i].sh_type == SHT_SYMTAB) read(bytes, sections[i], sections[sections[i].sh_link]);
        munmap((void *)bytes, (size_t)status.st_size);
        if (functions.empty()) fail("%s has no symbols: was it stripped?", path.c_str());
    }
    /* A program that is not in the dynamic loader's list by its path is known as it was called. */
    static std::string realpath_of(const char *name) {
        char real[4096];
        ssize_t n = strchr(name, '/') && strstr(name, ".so") ? -1 : readlink("/proc/self/exe", real, sizeof real);
        return n < 0 ? name : std::string(real, (size_t)n);
    }
    void read(const char *bytes, const Elf64_Shdr &table, const Elf64_Shdr &strings) {
        const auto *symbol = (const Elf64_Sym *)(bytes + table.sh_offset), *end = symbol + table.sh_size / sizeof *symbol;
        for (; symbol < end; symbol++) {
            Symbol s{symbol->st_value, symbol->st_size, bytes + strings.sh_offset + symbol->st_name};
            int kind = ELF64_ST_TYPE(symbol->st_info);
            if (kind == STT_FUNC && s.size) functions[s.address] = s;
            bool local = s.mangled.rfind("_ZZ", 0) == 0 || s.mangled.rfind("_ZGVZ", 0) == 0;
            if (kind == shared_kind && (local || s.mangled == "dynamic_shared")) shared.push_back(s);
        }
    }
};

const Object &object(void) {
    static const Object the_object;
    return the_object;
}

struct Kernel { std::string name; size_t shared; };

/* "void (anonymous namespace)::sum<float, 4>(float*, int)" -> "(anonymous namespace)::sum<float, 4>" */
std::string readable(const std::string &mangled) {
    int status;
    char *demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    std::string name = status == 0 ? demangled : mangled;
    free(demangled);
    if (name.rfind("void ", 0) == 0) name = name.substr(5);
    int depth = 0;
    for (size_t i = 0; i < name.size(); i++) {
        if (name[i] == '<') depth++;
        else if (name[i] == '>') depth--;
        else if (name[i] == '(' && depth == 0 && name.compare(i, 11, "(anonymous ") != 0) return name.substr(0, i);
    }
    return name;
}

/* "_ZZL3sumILi256EEvPfE4part" -> "part of sum<256>" */
std::string readable_variable(const std::string &mangled) {
    int status;
    char *demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    std::string name = status == 0 ? demangled : mangled;
    free(demangled);
    size_t parameters = name.rfind(")::");
    if (parameters == std::string::npos) return name;
    if (name.rfind("void ", 0) == 0) name = name.substr(5), parameters -= 5;
    size_t open = parameters;
    for (int depth = 1; open-- && depth;) depth += (name[open] == ')') - (name[open] == '(');
    return name.substr(parameters + 3) + " of " + name.substr(0, open + 1);
}

const Kernel &kernel_of(const void *function) {
    static std::map<const void *, Kernel> known;
    auto found = known.find(function);
    if (found != known.end()) return found->second;
    auto symbol = object().functions.find((uint64_t)((char *)function - object().base));
    if (symbol == object().functions.end()) fail("%p, launched as a kernel, is no function of %s", function, object().path.c_str());
    const std::string &mangled = symbol->second.mangled;
    Kernel kernel{readable(mangled), 0};
    std::string local = "_ZZ" + mangled.substr(2) + "E";        /* a static variable of this function */
    for (const Symbol &s : object().shared)
        if (s.mangled.rfind(local, 0) == 0) kernel.shared += s.size;
    return known.emplace(function, kernel).first->second;
}

}

const std::string &kernel_name(const void *function) { return kernel_of(function).name; }
size_t kernel_shared(const void *function) { return kernel_of(function).shared; }

const std::vector<Variable> &shared_variables(void) {
    static std::vector<Variable> variables;
    if (variables.empty())
        for (const Symbol &s : object().shared)
            variables.push_back({readable_variable(s.mangled), s.address, s.size, s.mangled.rfind("_ZGV", 0) == 0});
    return variables;
}

/* By the debug information, which another program knows to read; only called when all is lost. Inlined calls are several
 * lines, the innermost first: what stands in the emulation's own headers says nothing. */
std::string source_line(const void *pc) {
    if (!pc) return "";
    std::string found, command = text("addr2line -i -e '%s' %#zx 2>/dev/null", object().path.c_str(),
                                      (size_t)((const char *)pc - 1 - object().base));
    char line[512];
    FILE *out = popen(command.c_str(), "r");
    while (out && fgets(line, sizeof line, out)) {
        line[strcspn(line, " \n")] = 0;
        if (strstr(line, "cuda_on_host/on_host.h") || strstr(line, "cuda_on_host/include") || line[0] == '?') continue;
        const char *slash = strrchr(line, '/');
        found += (found.empty() ? "" : ", called from ") + std::string(slash ? slash + 1 : line);
    }
    if (out) pclose(out);
    return found;
}

}
