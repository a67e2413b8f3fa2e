import sys

from util.make_demo.corpus import main

sys.exit(main())
