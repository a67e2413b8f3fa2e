# Shared by do_all_*.sh and do_test_*.sh, which source it; bash 3.2 and later.
#
#   begin NUMBER "$@"          --help, or fewer than NUMBER arguments: print $usage and leave
#   root ARG                   set $rootpath and, for `demo`, $demo
#   device ARG                 set $gpu
#   is_word ARG                is it a plain word, such as a language, or several as de,fr, and not key=value or --option?
#   do_all COLLECTION LANG TASK [key=value ...] [--option ...]      names the run $run_name, if that is set
#   do_test MODELDIR [key=value ...] [--option ...]

repo=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-$(command -v python3 || command -v python || echo python3)}
demo= run_name=

root_help="  ROOTPATH    folder that holds the collections' folders, or the word demo:
              a small made-up corpus, made on first use"
gpu_help="  GPU         index of the GPU, such as 0; or several, such as 0,1,2,3, with a
              process on each; or cpu (cpu:2: two processes)"
train_help="  key=value   any option of the config, such as train.batch_size=64;
              --print-config lists them; name=NAME names the run folder
  --recommended     with configs/recommended.yaml, which retrieved better than
                    the paper's settings, in a run folder of its own
  --ablation NAME   with configs/ablation/NAME.yaml, in a run folder of its own
  --resume          go on with an interrupted run
  --overwrite       replace the run that is there by a new one
  --run-dir DIR     run folder, instead of
                    ROOTPATH/<collection>/runs/<config>_<lang>/seed_<n>
  --seed N, --workers N, --no-test, --no-report, --print-config
                    as in: python train.py --help
The Python is that of \$PYTHON, else python3 in PATH."
test_help="  key=value   any option of the config, such as eval.ties=mean
  --split val, --save-embeddings [DIR], --output FILE, --tokenizer NAME
              as in: python evaluation.py --help
The Python is that of \$PYTHON, else python3 in PATH."
model_help="  MODELDIR    run folder (or the folder above it, if it holds just that one), or
              a released one (runs_0, which holds model_best.pth.tar)"

# Run a module of this checkout from wherever we are: relative paths stay good, and, unlike in PYTHONPATH, the
# checkout's own path may hold any character.
tool() {
    exec "$python" -P -c 'import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)' "$repo" "$@"
}

# The words as the user typed them, quoted for a shell: what a message says to type next begins with them.
as_typed() {
    local word quote="'"
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
            printf '%s ' "$word"
        else
            printf "'%s' " "${word//$quote/$quote\\$quote$quote}"
        fi
    done
}

wrong() {   # MESSAGE: a wrong argument
    printf '%s: %s\n\n%s\n' "$(basename "$0")" "$1" "$usage" >&2
    exit 2
}

begin() {
    local needed=$1 word
    shift
    for word in "$@"; do
        case $word in -h | --help) printf '%s\n' "$usage"; exit 0 ;; esac
    done
    [ $# -ge "$needed" ] || wrong "expected at least $needed arguments, found $#"
    case $0 in
        */*) NRCCR_TYPED=$(as_typed "$0" "$@") ;;
        *) NRCCR_TYPED=$(as_typed bash "$0" "$@") ;;
    esac
    export NRCCR_TYPED
}

is_word() { [[ ${1-} =~ ^[A-Za-z][A-Za-z0-9_,-]*$ ]]; }

root() {
    if [ "$1" = demo ]; then
        demo=yes rootpath=$repo/demo
    elif [ -d "$1" ]; then
        rootpath=$1
    else
        wrong "ROOTPATH: no folder '$1' (nor the word demo)"
    fi
}

device() {
    [[ $1 =~ ^(cpu(:[0-9]+)?|[0-9]+(,[0-9]+)*)$ ]] ||
        wrong "GPU: expected cpu, or the index of a GPU, such as 0, or of several, such as 0,1; found '$1'"
    gpu=$1
}

# Sort what follows the named arguments: key=value into $overrides, --options (with their values) into $options, and
# the names of configs to put on top (--recommended, --ablation NAME) into $tops.
sort_rest() {
    overrides=() options=() tops=()
    while [ $# -gt 0 ]; do
        case $1 in
            --save-embeddings)           # its folder may be left out
                options+=("$1")
                if [ $# -ge 2 ] && [[ $2 != -* && $2 != *=* ]]; then options+=("$2"); shift; fi ;;
            --run-dir | --seed | --workers | --split | --output | --tokenizer | --images)
                [ $# -ge 2 ] || wrong "$1 needs a value"
                options+=("$1" "$2")
                shift ;;
            --ablation=*)
                set -- --ablation "${1#*=}" "${@:2}"
                continue ;;
            --ablation)
                [ -f "$repo/configs/ablation/${2-}.yaml" ] ||
                    wrong "--ablation: no '${2-}'; there are: $(cd "$repo/configs/ablation" && printf '%s ' *.yaml |
                        sed 's/\.yaml//g')"
                tops+=("ablation/$2")
                shift ;;
            --recommended) tops+=(recommended) ;;
            -*) options+=("$1") ;;
            *=*) overrides+=("$1") ;;
            *) wrong "'$1' is neither key=value nor an option" ;;
        esac
        shift
    done
}

do_all() {
    local config=$repo/configs/$1.yaml collection=$1 lang=$2 task=$3 word configs noise=()
    shift 3
    sort_rest "$@"
    for word in ${overrides[@]+"${overrides[@]}"}; do
        case $word in data.lang=*) lang=${word#*=} ;; data.task=*) task=${word#*=} ;; data.noise=*) noise=(--noise "${word#*=}") ;; esac
    done
    if [ -n "$demo" ]; then
        config=$repo/configs/demo/$collection.yaml
        for word in ${lang//[],[ ]/ }; do                 # de, or several: de,fr or [de, fr]
            (tool util.make_demo --rootpath "$rootpath" --collection "$collection" --lang "$word" \
                ${noise[@]+"${noise[@]}"}) || exit
        done
        overrides=("text.bert=$rootpath/bert" "visual.clip=$rootpath/clip" ${overrides[@]+"${overrides[@]}"})
    fi
    configs=(--config "$config")
    for word in ${tops[@]+"${tops[@]}"}; do
        configs+=(--config "$repo/configs/$word.yaml")
        [ -z "$run_name" ] || run_name+=_${word#*/}
    done
    [ -z "$run_name" ] || overrides=("name=$run_name" ${overrides[@]+"${overrides[@]}"})
    tool util.do_all "${configs[@]}" --rootpath "$rootpath" --device "$gpu" \
        ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"}
}

do_test() {
    local model=$1
    shift
    [ -e "$model" ] || wrong "MODELDIR: no such folder or file '$model'"
    sort_rest "$@"
    [ ${#tops[@]} = 0 ] || wrong "--recommended and --ablation are for training: a test takes the config of its run"
    exec "$python" "$repo/evaluation.py" --checkpoint "$model" --rootpath "$rootpath" --device "$gpu" \
        ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"}
}
