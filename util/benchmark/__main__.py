import sys

from util.benchmark.bench import main

sys.exit(main())
