#!/usr/bin/env bash
# 60 sets of recordings of people in 30 languages, to train a teacher on; Italian is left out, to measure it on.
#
#   distiller/voices/people.sh FOLDER     makes FOLDER/SPEAKER/CLIP.flac, 16 kHz: prompts, words, syllables, letters
#
# They come from packages of Debian:
#   asterisk-core-sounds-{en,es,fr,ru}-g722   telephone prompts by professional speakers (CC-BY-SA 3.0; ru: CC-BY 3.0)
#   hedgewars-data                            voices of a game, without the robot (GFDL 1.3)
#   ktuberling-data, klettres-data            words; letters and syllables: programs for children (GPL 2 or later)
#   gcin-voice                                syllables of Mandarin by two speakers (GPL 3 or LGPL 3; CC-BY 3.0)
# Needs apt-get, dpkg, ffmpeg and 1 GB. The same command again makes what is missing.
set -euo pipefail
export LC_ALL=C.UTF-8
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
for tool in apt-get dpkg ffmpeg; do
  command -v "$tool" >/dev/null || { echo "error: this needs $tool, which is not installed" >&2; exit 2; }
done
out=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
cd "$work"
for package in asterisk-core-sounds-{en,es,fr,ru}-g722 hedgewars-data ktuberling-data klettres-data gcin-voice; do
  apt-get download -qq "$package" 2>/dev/null || { echo "error: apt-get cannot download $package" >&2; exit 2; }
  dpkg -x "$package"_*.deb .
done

clips() { # SPEAKER FOLDER NAME FORMAT: lines "FORMAT FILE TARGET" for all files of that name
  find "$2" -type f -name "$3" -printf '%P\n' | while read -r file; do
    name=${file%.*} && echo "$4 $2/$file $out/$1/${name//\//-}.flac"
  done
}

{
  for language in en es fr ru; do clips "core-$language" "$(echo usr/share/asterisk/sounds/"$language"*/)" '*.g722' g722; done
  for voice in usr/share/games/hedgewars/Data/Sounds/voices/*/; do
    name=$(basename "$voice") && [ "$name" = Robot ] || clips "hedgewars-$name" "${voice%/}" '*.ogg' ogg
  done
  for game in ktuberling/sounds klettres; do
    for folder in usr/share/$game/*/; do
      name=$(basename "$folder")
      case $name in it | sr@*) ;; *) clips "${game%%/*}-$name" "${folder%/}" '*.[ow][ga][gv]' auto ;; esac
    done
  done
  for speaker in 3 5; do clips "gcin-$speaker" usr/share/gcin-voice/ogg "$speaker.ogg" ogg; done
} | while read -r format file target; do
  mkdir -p "${target%/*}"
  [ -e "$target" ] || echo "$format" "$file" "$target"
done | xargs -P "$(nproc)" -n 3 sh -c '
  [ "$0" = auto ] || set -- "$@" -f "$0"; file=$1 target=$2; shift 2
  ffmpeg -nostdin -v error -y "$@" -i "$file" -ar 16000 -ac 1 "$target.part.flac" && mv "$target.part.flac" "$target" ||
    echo "left out: $file" >&2'
echo "$(find "$out" -name "*.flac" | wc -l) clips in $(find "$out" -mindepth 1 -type d | wc -l) folders"
