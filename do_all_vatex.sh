#!/usr/bin/env bash
# Check the data, train on VATEX and test the best model; ./do_all_vatex.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/util/drivers.sh"
usage="Usage: ./do_all_vatex.sh ROOTPATH GPU [key=value ...] [--option ...]

Check the data, train on VATEX (English -> Chinese), test the best model.

$root_help
$gpu_help
$train_help"

begin 2 "$@"
root "$1"
device "$2"
do_all vatex zh 1 "${@:3}"
