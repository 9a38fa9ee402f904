/* names.cpp - names of kernels, from the program's own symbol table, and the way errors end. */
#include "engine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <map>
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

/* The functions and thread variables of one object file: static ones are in no dynamic table, so it is read itself. */
struct Object {
    std::map<uint64_t, Symbol> functions;
    std::vector<Symbol> thread_variables;

    explicit Object(const char *path) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        struct stat status;
        if (file < 0 || fstat(file, &status) != 0) fail("cannot read the symbols of %s", path);
        const char *base = (const char *)mmap(nullptr, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        close(file);
        if (base == MAP_FAILED) fail("cannot map %s", path);
        const auto *header = (const Elf64_Ehdr *)base;
        const auto *sections = (const Elf64_Shdr *)(base + header->e_shoff);
        for (int i = 0; i < header->e_shnum; i++)
            if (sections[i].sh_type == SHT_SYMTAB) read(base, sections[i], sections[sections[i].sh_link]);
        munmap((void *)base, (size_t)status.st_size);
        if (functions.empty()) fail("%s has no symbols: was it stripped?", path);
    }
    void read(const char *base, const Elf64_Shdr &table, const Elf64_Shdr &strings) {
        const auto *symbol = (const Elf64_Sym *)(base + table.sh_offset), *end = symbol + table.sh_size / sizeof *symbol;
        for (; symbol < end; symbol++) {
            Symbol s{symbol->st_value, symbol->st_size, base + strings.sh_offset + symbol->st_name};
            if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && s.size) functions[s.address] = s;
            if (ELF64_ST_TYPE(symbol->st_info) == STT_TLS) thread_variables.push_back(s);
        }
    }
};

struct Kernel { std::string name; size_t shared; };

/* "void (anonymous namespace)::sum<float, 4>(float*, int)" -> "sum<float, 4>" */
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

const Kernel &kernel_of(const void *function) {
    static std::map<const void *, Kernel> known;
    static std::map<std::string, Object> objects;
    auto found = known.find(function);
    if (found != known.end()) return found->second;
    Dl_info info;
    if (!dladdr(function, &info)) fail("%p, launched as a kernel, is no function of this program", function);
    std::string path = strchr(info.dli_fname, '/') ? info.dli_fname : "/proc/self/exe";
    auto object = objects.find(path);
    if (object == objects.end()) object = objects.emplace(path, Object(path.c_str())).first;
    auto symbol = object->second.functions.find((uint64_t)function - (uint64_t)info.dli_fbase);
    if (symbol == object->second.functions.end()) fail("%p, launched as a kernel, is no function of %s", function, path.c_str());
    const std::string &mangled = symbol->second.mangled;
    Kernel kernel{readable(mangled), 0};
    std::string local = "_ZZ" + mangled.substr(2) + "E";        /* a static variable of this function */
    for (const Symbol &s : object->second.thread_variables)
        if (s.mangled.rfind(local, 0) == 0) kernel.shared += s.size;
    return known.emplace(function, kernel).first->second;
}

}

const std::string &kernel_name(const void *function) { return kernel_of(function).name; }
size_t kernel_shared(const void *function) { return kernel_of(function).shared; }

}
