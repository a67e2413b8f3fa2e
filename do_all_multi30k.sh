#!/usr/bin/env bash
# Check the data, train on Multi-30K and test the best model; ./do_all_multi30k.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/util/drivers.sh"
usage="Usage: ./do_all_multi30k.sh ROOTPATH TASK GPU [LANG]
       [key=value ...] [--option ...]

Check the data, train on Multi-30K (English -> LANG), test the best model.

$root_help
  TASK        1: Multi-30K's own captions; 2: Flickr30k's five captions per
              image, in a run folder of its own
$gpu_help
  LANG        target language: de (default), fr or cs; or several, such as
              de,fr,cs: one model for all of them
$train_help
  visual.kind=pooled   frozen ResNet-152 features instead of raw images through
              CLIP; give name=NAME with it"

begin 3 "$@"
root "$1"
task=$2
device "$3"
shift 3
lang=de
if is_word "$1"; then lang=$1; shift; fi
case $task in
    1) do_all multi30k "$lang" 1 data.task=1 "data.lang=$lang" "$@" ;;
    2) run_name=multi30k_task2
       do_all multi30k "$lang" 2 data.task=2 "data.lang=$lang" "$@" ;;
    *) wrong "TASK: expected 1 or 2; found '$task'" ;;
esac
