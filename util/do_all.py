"""Check what a training needs, cheapest first; then train, and test the best model. What the do_all
drivers run.

    python -m util.do_all --config configs/vatex.yaml --rootpath ROOT [train.py's other options]
    [key=value ...]

The arguments are those of train.py. Nothing is trained unless the device, the run folder, the
encoders and then the data are in order. Exit status: as train.py's; 1 also where the data have
problems.
"""

import sys

from basic.arguments import training_arguments
from basic.command import command, telling


@command('do_all')
def main(argv=None):
    """The command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = training_arguments(words)
    with telling('loading PyTorch'):  # the arguments are known to be right by now
        import train
        from util.check_data import check_data, print_report
    if train.nothing_to_do(args):
        return 0
    config = train.check_start(args).config
    splits = ('train', 'val') if args.no_test else ('train', 'val', 'test')
    report = check_data(config, args.rootpath, splits=splits, quick=args.resume)
    print_report(report)
    if report.problems:
        return 1
    return train.main(words)


if __name__ == '__main__':
    sys.exit(main())
