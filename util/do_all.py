"""Check the data, train, and test the best model: what the do_all scripts run.

    python -m util.do_all --config configs/vatex.yaml --rootpath ROOT
                          [train.py's other options] [key=value ...]

The arguments are those of train.py. Training starts only if the device, the run folder, the
encoders and the data are in order; they are checked in this order, the fastest checks first. The
exit status is that of train.py, or 1 if the data have problems.
"""

import sys

from basic.arguments import training_arguments
from basic.command import command, telling


@command('do_all')
def main(argv=None):
    """The command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = training_arguments(words)
    # PyTorch is imported only now, because a wrong argument should not take seconds to report.
    with telling('loading PyTorch'):
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
