#!/usr/bin/env bash
# Test a trained or released model on VATEX; ./do_test_vatex.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/util/drivers.sh"
usage="Usage: ./do_test_vatex.sh ROOTPATH MODELDIR GPU [key=value ...] [--option ...]

Test a model on VATEX.

$root_help
$model_help
$gpu_help
$test_help"

begin 3 "$@"
root "$1"
device "$3"
do_test "$2" "${@:4}"
