"""Lets the tests of this folder import `bench`, which lies beside src and is not part of the package."""

import sys

from sapwood.cli.bench_verb import checkout

sys.path.insert(0, str(checkout()))
