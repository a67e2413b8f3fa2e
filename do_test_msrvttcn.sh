#!/usr/bin/env bash
# Test a trained or released model on MSR-VTT-CN; ./do_test_msrvttcn.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/util/drivers.sh"
usage="Usage: ./do_test_msrvttcn.sh ROOTPATH MODELDIR GPU
       [key=value ...] [--option ...]

Test a model on MSR-VTT-CN.

$root_help
$model_help
$gpu_help
$test_help"

begin 3 "$@"
root "$1"
device "$3"
do_test "$2" "${@:4}"
