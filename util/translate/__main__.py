import sys

from util.translate.translate import main

sys.exit(main())
