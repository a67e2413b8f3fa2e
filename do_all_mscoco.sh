#!/usr/bin/env bash
# Check the data, train on MSCOCO and test the best model; ./do_all_mscoco.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/util/drivers.sh"
usage="Usage: ./do_all_mscoco.sh ROOTPATH GPU [LANG] [key=value ...] [--option ...]

Check the data, train on MSCOCO (English -> LANG), test the best model.

$root_help
$gpu_help
  LANG        target language: zh (default, also written cn) or ja; or zh,ja:
              one model for both
$train_help"

begin 2 "$@"
root "$1"
device "$2"
shift 2
lang=zh
if is_word "$1"; then lang=${1//cn/zh}; shift; fi
do_all mscoco "$lang" 1 "data.lang=$lang" "$@"
