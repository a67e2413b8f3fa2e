import sys

from util.import_captions.importing import main

sys.exit(main())
