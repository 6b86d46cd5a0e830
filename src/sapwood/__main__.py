"""`python -m sapwood VERB …`: the command line, where the script `sapwood` is not on the path."""

from sapwood.cli.main import main

raise SystemExit(main())
