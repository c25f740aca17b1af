#!/usr/bin/env bash
# Recordings for probe.py --words: the same telephone prompts by two speakers over two channels, in three languages.
#
#   distiller/probes/prompt_pairs.sh FOLDER     makes FOLDER/{fr,es,it}/{studio,telephone}/PROMPT.flac, 16 kHz
#
# They come from packages of Debian. studio: asterisk-core-sounds-{fr,es,it}-g722, professional speakers in wide band
# (Digium and others, CC-BY-SA 3.0). telephone: other speakers through the GSM codec, asterisk-prompt-fr-armelle (Michel
# Gutierrez, Armelle Desjardins; BSD), asterisk-prompt-es-co (Avatar Ltda., July E. Jimenez; GPL 2) and
# asterisk-prompt-it-menardi-gsm (Marco Menardi, Paola Dal Zot, http://www.voip.ammdomus.it; CC-BY-SA 3.0 Italy).
# They are for evaluation: nothing is trained on them.
#
# A prompt is kept if both speakers have it, in at most 2.5 s; if it is speech; and if the speaker has no other prompt
# of the same bytes. Needs apt-get, dpkg, ffmpeg and 100 MB; DEBS may name a folder that has the packages already.
set -euo pipefail
export LC_ALL=C # one order for sort and join
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
debs=$(cd "${DEBS:-.}" && pwd)
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
cd "$work"

unpack() { # PACKAGE: into a folder of that name
  compgen -G "$debs/$1_*.deb" >/dev/null && cp "$debs/$1"_*.deb . ||
    apt-get download -qq "$1" 2>/dev/null || { echo "error: apt-get cannot download $1" >&2; exit 2; }
  dpkg -x "$1"_*.deb "$1"
}

prompts() { # FOLDER ENDING BYTES: lines "PROMPT FILE"; of equal files the first
  find "$1" -type f -name "*.$2" -size "-$(($3 + 1))c" -printf '%P\n' | grep -vE '^(silence/|beep|tt-monkeys|(as|des)cending-2tone)' |
    sort | while read -r file; do echo "$(md5sum <"$1/$file") $file"; done | awk '!seen[$1]++ { print $3 }' |
    while read -r file; do name=${file%."$2"} && echo "${name//\//-} $1/$file"; done | sort
}

for pair in fr:asterisk-prompt-fr-armelle es:asterisk-prompt-es-co it:asterisk-prompt-it-menardi-gsm; do
  language=${pair%%:*} telephone=${pair##*:} studio=asterisk-core-sounds-${pair%%:*}-g722
  unpack "$studio" && unpack "$telephone"
  mkdir -p "$out/$language/studio" "$out/$language/telephone"
  join <(prompts "$studio"/usr/share/asterisk/sounds/"$language"* g722 20000) \
    <(prompts "$telephone"/usr/share/asterisk/sounds/"$language"* gsm 4125) | # 8 bytes a ms, and 33 every 20 ms
    while read -r name wide narrow; do
      echo g722 "$wide" "$out/$language/studio/$name.flac"
      echo gsm "$narrow" "$out/$language/telephone/$name.flac"
    done
done | xargs -P "$(nproc)" -n 3 sh -c 'ffmpeg -nostdin -v error -y -f "$0" -i "$1" -ar 16000 -ac 1 "$2"'
for folder in "$out"/*/*/; do echo "$(find "$folder" -name '*.flac' | wc -l) prompts in $folder"; done
