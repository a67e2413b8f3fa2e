import sys

from util.extract_features.main import main

sys.exit(main())
