#!/usr/bin/env bash
# Test a trained or released model on Multi-30K; ./do_test_multi30k.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/util/drivers.sh"
usage="Usage: ./do_test_multi30k.sh ROOTPATH MODELDIR IMAGE_PATH GPU
       [key=value ...] [--option ...]

Test a model on Multi-30K, in the language that it was trained for.

$root_help
$model_help
  IMAGE_PATH  folder of the raw images, for a model with CLIP; None for a model
              on frozen features
$gpu_help
$test_help"

begin 4 "$@"
root "$1"
device "$4"
if [ "$3" = None ]; then
    do_test "$2" "${@:5}"
else
    [ -d "$3" ] || wrong "IMAGE_PATH: no folder '$3' (nor the word None)"
    do_test "$2" "--images=$3" "${@:5}"
fi
