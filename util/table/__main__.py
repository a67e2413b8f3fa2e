import sys

from util.table.table import main

sys.exit(main())
