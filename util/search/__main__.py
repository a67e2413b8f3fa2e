import sys

from util.search.main import main

sys.exit(main())
