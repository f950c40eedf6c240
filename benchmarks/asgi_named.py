"""A WSGI app for servers that run ASGI, called by a2wsgi. The environment says which, in how many threads."""

import os
from importlib import import_module

from a2wsgi import WSGIMiddleware

# What the app's name and the number of threads are for who starts this; workloads.py sets them.
APP = "BENCHMARK_APP"
THREADS = "BENCHMARK_THREADS"

_module, _, _name = os.environ[APP].partition(":")
app = WSGIMiddleware(getattr(import_module(_module), _name), workers=int(os.environ[THREADS]))
