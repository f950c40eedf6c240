"""The same apps for the servers that run ASGI: a2wsgi calls them, in threads of its own."""

import apps
from a2wsgi import WSGIMiddleware

THREADS = 4  # as the others have, whose flag says it

bodies = WSGIMiddleware(apps.bodies, workers=THREADS)
