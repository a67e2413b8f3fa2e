#!/usr/bin/env bash
# Test a trained or released model on MSCOCO; ./do_test_mscoco.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/util/drivers.sh"
usage="Usage: ./do_test_mscoco.sh ROOTPATH MODELDIR GPU [key=value ...] [--option ...]

Test a model on MSCOCO, in the language that it was trained for.

$root_help
$model_help
$gpu_help
  --images DIR    folder of the raw images (default: ROOTPATH/mscoco/all_pics)
$test_help"

begin 3 "$@"
root "$1"
device "$3"
do_test "$2" "${@:4}"
