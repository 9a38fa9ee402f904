#!/bin/bash
# get-texts.sh [FOLDER] [MAX_BYTES] - texts with domain labels, from Debian packages.
#
# Makes one sub-folder of .txt files per domain in FOLDER (default: texts), each at most MAX_BYTES
# (default: 3000000). Packages are downloaded and unpacked, never installed; only the texts stay.
# FOLDER/SOURCES.txt lists sources and licences.
#
# A domain is complete or absent: it is made in a temporary folder and then renamed. Existing domains
# are not fetched again; to recreate one, remove its folder.
#
# Exit: 0 all domains are there, 1 a domain could not be made, 3 the packages are not available (no package lists,
# no network), 64 wrong arguments.
set -euo pipefail
export LC_ALL=C
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # these change the behaviour of cd, grep and bash

usage() { echo -n "usage: scripts/" && sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }
case ${1:-} in
    -h | --help) usage; exit 0 ;;
    -*) echo "get-texts: unexpected argument $(printf %q "$1"); see --help" >&2; exit 64 ;;
esac
if (($# > 2)); then echo "get-texts: unexpected argument $(printf %q "$3"); see --help" >&2; exit 64; fi
folder=${1:-texts}
max_bytes=${2:-3000000}
recipe=1                                # a change in how texts are made gets a new number

say() { echo "get-texts: $*"; }
fail() { local code=$1; shift; echo "get-texts: error: $*" >&2; exit "$code"; }

[[ $max_bytes =~ ^[1-9][0-9]{4,10}$ ]] || fail 64 "MAX_BYTES must be a number from 10000 up, not $(printf %q "$max_bytes")"
mkdir -p -- "$folder"
folder=$(cd -- "$folder" && pwd)
shown=$(printf %q "$folder")            # in messages
in_the_way() { fail 1 "$shown/$1 exists but was not made by this script"; }
for file in .lock SOURCES.txt; do
    [[ ! -L $folder/$file && ( -f $folder/$file || ! -e $folder/$file ) ]] || in_the_way "$file"
done
heading="What the texts are, by domain. Made by get-texts.sh from Debian's packages; the licences are the sources'."
[[ ! -e $folder/SOURCES.txt || $(head -n 1 "$folder/SOURCES.txt") == "$heading" ]] || in_the_way SOURCES.txt
exec 9>> "$folder/.lock"
flock -w 10 9 || fail 1 "another get-texts.sh is running in $shown"
for left in "$folder"/.partial-*; do    # by a killed run
    if [[ ! -L $left && -f $left/.get-texts ]]; then rm -rf "$left"; fi
done
work=$(mktemp -d "$folder/.partial-XXXXXX")
: > "$work/.get-texts"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP              # and so through EXIT

# ---------------------------------------------------------------- packages

# fetch PACKAGE...: unpacks them into $work/root. As root, apt would download as its own user, who may not
# write here.
fetch() {
    local package reason
    for package in "$@"; do
        apt-cache show "$package" > /dev/null 2>&1 ||
            fail 3 "apt has no package $package; run 'apt-get update' as root, or add Debian's main to its sources"
        mkdir -p "$work/deb" "$work/root"
        (cd "$work/deb" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=2 download "$package") \
            > "$work/log" 2>&1 9>&- || {
            reason=$(grep -m 1 '^E:' "$work/log" || tail -n 1 "$work/log")
            fail 3 "apt cannot download $package: ${reason:-no reason given}"
        }
        say "fetched $(basename "$work"/deb/*.deb) ($(stat -c %s "$work"/deb/*.deb) bytes)"
        dpkg -x "$work"/deb/*.deb "$work/root"
        rm -rf "$work/deb"
    done
}

# A .dict.dz is gzip with an index; one of its lines is the alphabet that the index is sorted by.
dictd() { gzip -dc < "$work/root/usr/share/dictd/$1.dict.dz" | sed '/abcdefghijklmnopqrstuvwxyz/d'; }

# ---------------------------------------------------------------- making texts smaller and plainer

# spread_entries FILE BYTES PREFIX: splits a dictionary at its headwords (a line that starts in the first
# column after an empty one) and keeps, evenly spread over it, whole entries of at most BYTES: PREFIX-a.txt,
# PREFIX-b.txt ...
spread_entries() {
    awk -v size="$(stat -c %s "$1")" -v bytes="$2" -v prefix="$3" '
        function flush_entry(   letter) {
            seen += length(entry)
            if (entry ~ /[^ \n]/ && kept + length(entry) <= bytes * seen / size + 0.5) {
                letter = tolower(substr(entry, 1, 1))
                if (letter !~ /[a-z]/) letter = "other"
                printf "%s", entry > (prefix "-" letter ".txt")
                kept += length(entry)
            }
            entry = ""
        }
        blank && /^[^ \t]/ { flush_entry() }
        { entry = entry $0 "\n"; blank = /^[ \t]*$/ }
        END { flush_entry() }' "$1"
}

# spread_files BYTES FILE...: removes documents, evenly spread, until the rest fits BYTES.
spread_files() {
    local bytes=$1 size=0 seen=0 kept=0 file n
    shift
    for file in "$@"; do size=$((size + $(stat -c %s "$file"))); done
    for file in "$@"; do
        n=$(stat -c %s "$file")
        seen=$((seen + n))
        if ((n > 0 && (kept + n) * size <= bytes * seen)); then kept=$((kept + n)); else rm "$file"; fi
    done
}

# first_lines BYTES: as many whole lines as fit. Reads to the end, so that upstream commands do not see a closed pipe.
first_lines() { awk -v bytes="$1" '{ n += length($0) + 1; if (n <= bytes) print }'; }

# Removes emphasis, links and HTML from Markdown, and the links to the next page (lines with
# U+2039, U+203A).
strip_markdown() {
    sed -z -E 's/!?\[([^]]*)\]\([^)]*\)/\1/g' | sed -E '/\xe2\x80[\xb9\xba]/d
        s/\*\*//g; s/(^|[^A-Za-z0-9])_/\1/g; s/_([^A-Za-z0-9]|$)/\1/g
        s/<[^>]*>//g; s/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g; s/^#+ *//; s/\\([-_*.#>])/\1/g' | cat -s
}

# ---------------------------------------------------------------- the domains, each into the folder $out

make_general() {
    fetch dict-gcide
    # The dictionary proper starts at its entry A; each paragraph ends with a line that only names the edition.
    dictd gcide | sed -n '/^A \\A\\/,$p' | sed -E '/^ *\[[^]]*(Webster|PJC|WordNet)[^]]*\][ A-Z]*$/d' > "$work/gcide"
    spread_entries "$work/gcide" "$max_bytes" "$out/gcide"
    origin "dict-gcide: The Collaborative International Dictionary of English, a spread of its entries; GPL-2+"
}

make_computing() {
    fetch dict-foldoc jargon-text
    # From the first chapter on, without the rules and tables drawn with line characters (U+2500 to U+257F).
    gzip -dc "$work/root/usr/share/doc/jargon-text/jargon.txt.gz" |
        sed -n '/^Chapter.*Hacker Slang/,$p' | sed '/\xe2[\x94\x95]/d' | cat -s | first_lines $((max_bytes * 2 / 5)) > "$out/jargon.txt"
    dictd foldoc | sed '1,/^original version/d' | sed 's/%%%/\n/g' > "$work/foldoc"
    spread_entries "$work/foldoc" $((max_bytes * 3 / 5)) "$out/foldoc"
    origin "dict-foldoc: The Free On-line Dictionary of Computing, http://foldoc.org/, editor Denis Howe," \
        "a spread of its entries; GFDL-1.1+"
    origin "jargon-text: The Jargon File 4.4.7, its first part; public domain"
}

# The text is compressed in a form of its own; the program that goes with it takes the folder of the data as
# -p.
make_scripture() {
    fetch bible-kjv bible-kjv-text
    local bible=$work/root/usr/bin/bible libraries=
    if ldd "$bible" | grep -q 'libreadline.*not found'; then
        if apt-cache show libreadline8t64 > /dev/null 2>&1; then fetch libreadline8t64; else fetch libreadline8; fi
        libraries=$(dirname "$(find "$work/root" -name 'libreadline.so.*' | head -n 1)")
    fi
    # Chapters start with a line "Genesis 1" or "1 Samuel 1": one file per book, in the order of the books.
    LD_LIBRARY_PATH=$libraries "$bible" -p "$work/root/usr/lib/" -l78 gen1:1-rev22:21 < /dev/null |
        awk -v out="$out" '
            blank && /^[1-3A-Z][A-Za-z ]* [0-9]+$/ {
                name = $0
                sub(/ [0-9]+$/, "", name)
                gsub(/ /, "-", name)
                if (name != book) {
                    if (file) close(file)
                    book = name
                    file = sprintf("%s/%02d-%s.txt", out, ++n, tolower(name))
                }
            }
            { blank = /^$/ }
            file { print > file }'
    spread_files "$max_bytes" "$out"/*.txt
    origin "bible-kjv-text: The King James Bible, a spread of its books; public domain" \
        "(the program that unpacks it: GPL-2+)"
}

make_latin() {
    fetch dict-freedict-lat-eng dict-freedict-eng-lat
    local name
    for name in freedict-lat-eng freedict-eng-lat; do
        dictd "$name" | sed '1,/FreeDict Dictionary ver\./d' | first_lines $((max_bytes / 2)) > "$out/$name.txt"
    done
    origin "dict-freedict-lat-eng, dict-freedict-eng-lat: FreeDict's Latin dictionaries; GPL-2+"
}

make_politics() {
    fetch anarchism
    local doc=$work/root/usr/share/doc/anarchism/markdown file name
    for file in "$doc"/sec*.md* "$doc"/append*.md*; do
        [[ -e $file ]] || continue
        name=$(basename "$file" .gz)
        gzip -dcf "$file" | strip_markdown > "$out/${name%.md}.txt"
    done
    spread_files "$max_bytes" "$out"/*.txt
    origin "anarchism: An Anarchist FAQ, a spread of its sections; GPL-2"
}

make_licences() {
    local file
    for file in /usr/share/common-licenses/*; do
        [[ -f $file && ! -L $file ]] && cp "$file" "$out/$(basename "$file").txt"
    done
    spread_files "$max_bytes" "$out"/*.txt
    origin "base-files: /usr/share/common-licenses of this machine; each licence's own terms (verbatim copies)"
}

# Of each program the first part of its code, without addresses and bytes.
make_assembly() {
    command -v objdump > /dev/null || fail 1 "objdump is missing; it is in binutils and comes with every compiler"
    local program programs=()
    for program in bash cp dpkg find grep gzip ls mawk perl sed sort tar; do
        program=$(command -v "$program") && programs+=("$program")
    done
    for program in "${programs[@]}"; do
        objdump -d --no-show-raw-insn --section=.text "$program" |
            sed -nE 's/^[0-9a-f]+ (<.*>:)$/\n\1/p; s/^ +[0-9a-f]+:\t([^ ]+)/\1/p' |
            sed -E 's/ +#.*//; s/[ \t]+$//; s/ +/ /' |
            first_lines $((max_bytes / ${#programs[@]})) > "$out/$(basename "$program").txt"
    done
    origin "programs of this machine, disassembled: $(basename -a "${programs[@]}" | tr '\n' ' ')-" \
        "each program's own licence (mostly GPL)"
}

# Small on purpose: a rare domain.
make_chemistry() {
    fetch dict-elements
    dictd elements | sed -n '/^hydrogen/,$p' | first_lines "$max_bytes" > "$out/elements.txt"
    origin "dict-elements: The Elements Database, Jay F. Kominek; public domain"
}

# ---------------------------------------------------------------- all of them

origin() { echo "$*" >> "$out/.origin"; }

# Checks the result: some text, no binary bytes, no HTML tags.
check_texts() {
    [[ -n $(find "$out" -name '*.txt' -print -quit) && -z $(find "$out" -name '*.txt' -size 0 -print -quit) ]] ||
        fail 1 "$domain: no text; has a package changed?"
    ! grep -rlP '[\x00-\x08\x0e-\x1f]' "$out" --include='*.txt' || fail 1 "$domain: the files above are not plain text"
    ! grep -rlE '</(p|a|td|div|b|i)>' "$out" --include='*.txt' || fail 1 "$domain: the files above have HTML in them"
}

text_bytes() { find "$1" -name '*.txt' -printf '%s\n' | awk '{ n += $1 } END { print n + 0 }'; }

for domain in general computing scripture politics assembly latin licences chemistry; do
    if [[ -e $folder/$domain/.finished ]]; then
        say "$domain: exists"
        continue
    fi
    [[ ! -e $folder/$domain && ! -L $folder/$domain ]] || in_the_way "$domain"
    out=$work/$domain
    mkdir "$out"
    "make_$domain"
    check_texts
    echo "recipe $recipe, at most $max_bytes bytes" > "$out/.finished"
    sync "$out"/* "$out/.finished"
    mv -T "$out" "$folder/$domain"
    rm -rf "$work/root"
    say "$domain: $(text_bytes "$folder/$domain") bytes in $(find "$folder/$domain" -name '*.txt' | wc -l) files"
done

{
    echo "$heading"
    for finished in "$folder"/*/.finished; do
        made=$(dirname "$finished")
        printf '\n%s: %d bytes (%s)\n' "$(basename "$made")" "$(text_bytes "$made")" "$(cat "$finished")"
        sed 's/^/    /' "$made/.origin"
    done
} > "$work/sources"
mv "$work/sources" "$folder/SOURCES.txt"
say "all domains are in $shown, see SOURCES.txt"
