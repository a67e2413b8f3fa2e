"""The arguments of train.py, checked as far as they can be without importing torch.

Importing torch and transformers takes seconds; a mistyped option is told before that.
"""
import argparse
import re

from basic.config import ConfigError, load_config
from basic.print_config import describe_config

DEVICE = ('auto: the first GPU, or the CPU where there is none (default); cpu; the index of a GPU, such as 0, or of '
          'several, with a process on each: 0,1,2 (cpu:2: two processes on the CPU)')


def training_arguments(argv=None):
    """Parse and check; where something is wrong, say so and end the program with status 2.

    Args:
        argv: list of words; None: those of the command line.
    Returns:
        argparse.Namespace: configs (files), overrides (all options, as key=value), config (the Config they make),
        rootpath, device, run_dir, resume, overwrite, no_test.
    """
    parser = argparse.ArgumentParser(prog='train.py', description='Train NRCCR on one collection, keep the best '
                                     'model, test it.', epilog='--print-config lists the options.')
    parser.add_argument('--config', dest='configs', required=True, action='append', metavar='FILE', help='for example '
                        'configs/vatex.yaml; given again, what a further file says wins, for example '
                        'configs/ablation/no_adversary.yaml')
    parser.add_argument('--rootpath', metavar='ROOT', help="folder that holds the collections' folders")
    parser.add_argument('--device', default='auto', help=DEVICE)
    parser.add_argument('--run-dir', metavar='DIR',
                        help='run folder (default: ROOT/<collection>/runs/<config>_<lang>/seed_<n>)')
    parser.add_argument('--resume', action='store_true', help="go on after the run folder's last finished epoch")
    parser.add_argument('--overwrite', action='store_true', help='replace the run that the run folder holds')
    parser.add_argument('--no-test', action='store_true', help='do not test the best model at the end')
    parser.add_argument('--print-config', action='store_true',
                        help='show every option with its meaning, its value and its default, and train nothing')
    parser.add_argument('--seed', type=int, metavar='N', help='short for train.seed=N')
    parser.add_argument('--workers', type=int, metavar='N', help='short for train.workers=N')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='options over the config file')
    args = parser.parse_intermixed_args(argv)
    args.overrides += [f'train.{key}={value}' for key in ('seed', 'workers')
                       if (value := getattr(args, key)) is not None]
    try:
        args.config = load_config(args.configs, args.overrides)
    except (ConfigError, OSError) as error:
        parser.exit(2, f'train.py: error: {error}\n')
    if args.print_config:
        print(describe_config(args.config), end='')
        parser.exit(0)
    if args.rootpath is None:
        parser.error('the following arguments are required: --rootpath')
    check_device(args.device, parser)
    if args.resume and args.overwrite:
        parser.error('--resume and --overwrite contradict each other: give one')
    return args


def check_device(name, parser):
    """End the program where a device's name cannot be one; whether there is such a GPU, torch tells later."""
    if not re.fullmatch('auto|cpu(:[1-9][0-9]?)?|(cuda:)?[0-9]+(,[0-9]+)*', name):
        parser.error(f"--device '{name}': expected auto, cpu, cpu:N for N processes, or the indices of GPUs, such "
                     'as 0 or 0,1')
